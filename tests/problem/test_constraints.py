"""Against every allocation of small problems, one after the other."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from amed_env.problem.constraints import (
    allowed_choices,
    cheapest_choices,
    least_choosable,
    least_rest,
    smallest_reachable,
    totals,
)


@st.composite
def problems(draw, metrics=2, whole=True):
    """Costs (B, L, P), limits (B,) and an objective (L, P) of small problems."""
    metrics = draw(st.integers(1, metrics))
    layers, choices = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    values = st.integers(0, 9) if whole else st.floats(0.001, 1000)
    costs = draw(arrays(float, (metrics, layers, choices), elements=values)).astype(float)
    shares = draw(arrays(float, metrics, elements=st.floats(0.1, 1.1)))
    limits = np.maximum(np.round(shares * costs.max(axis=2).sum(axis=1)), 1.0)
    objective = draw(arrays(float, (layers, choices), elements=st.integers(0, 20)))
    return costs, limits, objective.astype(float)


def every_allocation(costs):
    """(choices, totals) of each."""
    _, layers, choices = costs.shape
    for found in itertools.product(range(choices), repeat=layers):
        yield found, costs[:, range(layers), found].sum(axis=1)


def within(total, limits):
    return bool((total <= limits * (1 + 1e-9)).all())


def the_mask(costs, limits, prefix):
    """What the environment asks after the layers in `prefix` were chosen."""
    layer = len(prefix)
    used = costs[:, range(layer), prefix].sum(axis=1)
    return allowed_choices(used, costs[:, layer], least_rest(costs)[:, layer + 1], limits)


@given(problems(metrics=1), st.data())
def test_the_mask_of_one_budget_is_exact(problem, data):
    costs, limits, _ = problem
    _, layers, choices = costs.shape
    reachable = [found for found, total in every_allocation(costs) if within(total, limits)]
    prefix = tuple(data.draw(st.integers(0, choices - 1)) for _ in range(data.draw(st.integers(0, layers - 1))))
    layer = len(prefix)
    expected = [any(found[: layer + 1] == (*prefix, choice) for found in reachable) for choice in range(choices)]
    assert the_mask(costs, limits, prefix).tolist() == expected


@given(problems(metrics=3), st.data())
def test_the_mask_never_forbids_what_several_budgets_allow(problem, data):
    costs, limits, _ = problem
    reachable = [found for found, total in every_allocation(costs) if within(total, limits)]
    assume(reachable)
    found = data.draw(st.sampled_from(reachable))
    for layer, choice in enumerate(found):
        assert the_mask(costs, limits, found[:layer])[choice]


@given(problems(metrics=1, whole=False), st.randoms(use_true_random=False))
def test_following_the_mask_ends_within_the_budget(problem, random):
    costs, limits, _ = problem
    assume(costs.min(axis=2).sum() <= limits[0])
    prefix = ()
    for _ in range(costs.shape[1]):
        prefix += (random.choice(np.flatnonzero(the_mask(costs, limits, prefix)).tolist()),)
    assert within(costs[:, range(len(prefix)), prefix].sum(axis=1), limits)


@given(problems())
def test_cheapest_choices_equal_brute_force(problem):
    costs, limits, objective = problem
    rows = range(objective.shape[0])
    values = [objective[rows, found].sum() for found, total in every_allocation(costs) if within(total, limits)]
    best = cheapest_choices(costs, limits, objective)
    if not values:
        assert best is None
        return
    assert within(costs[:, rows, best].sum(axis=1), limits)
    assert objective[rows, best].sum() == min(values)


@pytest.mark.parametrize("excess", [2e-9, 1e-8, 1e-7, 5e-7, 9e-7, 2e-6, 1e-4])
def test_the_solver_s_own_tolerance_exceeds_no_budget(excess):
    costs = np.array([[[1.0, 3.0], [1.0, 3.0], [1.0, 2.0]]])
    limits = np.array([7.0 / (1 + excess)])  # (3, 3, 1) is just too much
    objective = np.array([[9.0, 0.0], [9.0, 0.0], [1.0, 0.0]])
    best = cheapest_choices(costs, limits, objective)
    assert within(costs[:, range(3), best].sum(axis=1), limits)
    assert objective[range(3), best].sum() == 9.0


def test_a_budget_that_is_met_exactly_is_met():
    costs = np.array([[[0.1, 0.2], [0.1, 0.2], [0.1, 0.2]]])
    objective = np.array([[1.0, 0.0]] * 3)
    assert cheapest_choices(costs, np.array([0.6]), objective).tolist() == [1, 1, 1]
    assert the_mask(costs, np.array([0.1 + 0.2 + 0.2]), (1, 0)).tolist() == [True, True]


def test_infinite_limits_and_costs_of_nothing():
    costs = np.array([[[5.0, 1.0]], [[0.0, 0.0]]])
    objective = np.array([[0.0, 1.0]])
    assert cheapest_choices(costs, np.array([np.inf, np.inf]), objective).tolist() == [0]
    assert cheapest_choices(costs, np.array([2.0, 0.0]), objective).tolist() == [1]
    assert cheapest_choices(costs, np.array([0.5, 1.0]), objective) is None
    assert cheapest_choices(costs, np.array([9.0, 9.0]), np.zeros((1, 2))) is not None


@given(problems(), st.data())
def test_smallest_reachable_equals_brute_force(problem, data):
    costs, limits, _ = problem
    metric = data.draw(st.integers(0, len(limits) - 1))
    others = limits.copy()
    others[metric] = np.inf
    reachable = [total[metric] for _, total in every_allocation(costs) if within(total, others)]
    found = smallest_reachable(costs, limits, metric)
    assert found == (pytest.approx(min(reachable)) if reachable else None)


@given(problems())
def test_least_rest_equals_brute_force(problem):
    costs, _, _ = problem
    rest = least_rest(costs)
    assert rest.shape == (costs.shape[0], costs.shape[1] + 1)
    for layer in range(costs.shape[1]):
        least = np.min([total for _, total in every_allocation(costs[:, layer:])], axis=0)
        np.testing.assert_allclose(rest[:, layer], least)
    assert not rest[:, -1].any()


@given(problems(), st.data())
def test_what_may_not_be_chosen_at_all_equals_brute_force_without_it(problem, data):
    costs, limits, objective = problem
    layers, choices = objective.shape
    choosable = data.draw(arrays(bool, (layers, choices)))
    choosable[range(layers), data.draw(arrays(int, layers, elements=st.integers(0, choices - 1)))] = True
    possible = [(found, total) for found, total in every_allocation(costs) if choosable[range(layers), found].all()]
    within_all = [(found, total) for found, total in possible if within(total, limits)]
    best = cheapest_choices(costs, limits, objective, choosable)
    if within_all:
        assert choosable[range(layers), best].all() and within(costs[:, range(layers), best].sum(axis=1), limits)
        assert objective[range(layers), best].sum() == min(objective[range(layers), f].sum() for f, _ in within_all)
    else:
        assert best is None
    rest = least_rest(costs, choosable)
    np.testing.assert_allclose(rest[:, 0], np.min([total for _, total in possible], axis=0))
    np.testing.assert_allclose(rest[:, 0], least_choosable(costs, choosable).sum(axis=1))
    if len(limits) == 1:
        mask = allowed_choices(np.zeros(1), costs[:, 0], rest[:, 1], limits, choosable[0])
        assert mask.tolist() == [any(found[0] == choice for found, _ in within_all) for choice in range(choices)]
    found = smallest_reachable(costs, limits, 0, choosable)
    others = np.array([np.inf, *limits[1:]])
    reachable = [total[0] for _, total in possible if within(total, others)]
    assert found == (pytest.approx(min(reachable)) if reachable else None)


def test_totals_by_hand():
    costs = {"a": np.array([[1.0, 2.0], [3.0, 4.0]]), "b": np.array([[0.5, 0.0], [0.25, 0.0]])}
    assert totals(costs, np.array([1, 0])) == {"a": 5.0, "b": 0.25}
