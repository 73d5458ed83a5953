"""The Metropolis-Hastings walk comes to rest at its law: exactly, by its matrix, and empirically, by walking."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amed_env.agents.walks.metropolis import MetropolisHastings, ScoreTable

SCORES = np.array([[0.0, 0.3, -0.2], [0.5, 0.0, 0.1]])
STATES = np.array(list(itertools.product(range(3), repeat=2)))


def softmax(scores, temperature):
    weights = np.exp(scores / temperature)
    return weights / weights.sum(axis=1, keepdims=True)


def joint(law, states=STATES):
    """Probability of each state under independent layers, given that it is one of these states."""
    weights = np.prod([law[i, states[:, i]] for i in range(states.shape[1])], axis=0)
    return weights / weights.sum()


def stationary(matrix):
    """The left eigenvector of eigenvalue 1."""
    count = len(matrix)
    equations = np.vstack([matrix.T - np.eye(count), np.ones(count)])
    return np.linalg.lstsq(equations, np.append(np.zeros(count), 1.0), rcond=None)[0]


def transition_matrix(chain, states):
    """Probabilities of a move of a layer that is drawn uniformly, between N allocations: (N, N)."""
    number = {tuple(state): position for position, state in enumerate(states.tolist())}
    matrix = np.zeros((len(states), len(states)))
    for start, state in enumerate(states.tolist()):
        for layer, current in enumerate(state):
            for proposed, probability in enumerate(chain.proposals(layer, current)):
                target = number.get((*state[:layer], proposed, *state[layer + 1 :]))
                if probability > 0 and proposed != current and target is not None:
                    matrix[start, target] += probability * chain.acceptance(layer, current, proposed) / len(state)
        matrix[start, start] = 1.0 - matrix[start].sum()
    return matrix


@pytest.mark.parametrize("proposal", ["uniform", "scores"])
def test_the_stationary_law_is_the_softmax_of_the_scores(proposal):
    law = softmax(SCORES, 0.2)
    matrix = transition_matrix(MetropolisHastings(law, proposal), STATES)
    assert matrix.min() >= 0 and matrix.sum(axis=1) == pytest.approx(1.0)
    assert stationary(matrix) == pytest.approx(joint(law), abs=1e-12)


@pytest.mark.parametrize("proposal", ["uniform", "scores"])
def test_with_a_filter_it_is_the_same_law_given_that_nothing_is_refused(proposal):
    law, inside = softmax(SCORES, 0.2), STATES[STATES.sum(axis=1) <= 2]
    matrix = transition_matrix(MetropolisHastings(law, proposal), inside)
    assert stationary(matrix) == pytest.approx(joint(law, inside), abs=1e-12)


def test_accepting_proposals_from_p_without_their_factor_rests_at_the_square_of_p():
    law = softmax(SCORES, 0.2)
    found = stationary(transition_matrix(MetropolisHastings(law, "scores", corrected=False), STATES))
    assert found == pytest.approx(joint(law**2), abs=1e-12)
    assert np.abs(found - joint(law)).max() > 0.05


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=6), st.floats(0.05, 10), st.sampled_from(["uniform", "scores"]))
def test_detailed_balance_holds_for_any_scores(values, temperature, proposal):
    law = softmax(np.reshape(values, (2, 3)), temperature)
    flow = joint(law)[:, None] * transition_matrix(MetropolisHastings(law, proposal), STATES)
    assert np.abs(flow - flow.T).max() < 1e-12


def frequencies(chain, allowed=lambda _: True, steps=30_000):
    """How often a long walk, one random layer a move, is in each state."""
    rng, state, counts = np.random.default_rng(0), np.array([0, 0]), dict.fromkeys(map(tuple, STATES.tolist()), 0)
    for _ in range(steps):
        chain.move(state, int(rng.integers(2)), rng)
        assert allowed(state)
        counts[tuple(state.tolist())] += 1
    return np.array(list(counts.values())) / steps


def test_a_walk_visits_states_as_often_as_the_law_says():
    law = softmax(SCORES, 0.3)
    within = STATES.sum(axis=1) <= 2
    for proposal in ("uniform", "scores"):

        def allowed(choices):
            return choices.sum() <= 2

        found = frequencies(MetropolisHastings(law, proposal, allowed=allowed), allowed)
        assert found[within] == pytest.approx(joint(law, STATES[within]), abs=0.02)


def test_scores_move_towards_what_an_allocation_was_worth():
    table = ScoreTable(np.ones((2, 3), dtype=bool))
    table.update(np.array([0, 2]), 0.5, 0.2)
    table.update(np.array([0, 1]), -1.0, 0.2)
    assert table.values == pytest.approx(np.array([[0.8 * 0.1 - 0.2, 0, 0], [0, -0.2, 0.1]]))


def test_the_law_leaves_out_what_may_not_be_chosen_and_never_underflows():
    table = ScoreTable(np.array([[True, False, True], [False, True, False]]))
    table.values[0] = [0.0, 5.0, 1.0]
    assert table.law(1.0) == pytest.approx(np.array([[1 / (1 + np.e), 0, np.e / (1 + np.e)], [0, 1, 0]]))
    cold = table.law(1e-9)
    assert cold[0, 0] > 0 and cold[0, 1] == 0 and cold.sum(axis=1) == pytest.approx(1.0)


def test_a_layer_with_one_choice_stays():
    law = np.array([[0.0, 1.0, 0.0]])
    for proposal in ("uniform", "scores"):
        state = np.array([1])
        assert not MetropolisHastings(law, proposal).move(state, 0, np.random.default_rng(0)) and state[0] == 1
