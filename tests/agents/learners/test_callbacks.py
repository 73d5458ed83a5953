"""Exploration is steered: it grows while learners repeat themselves, and shrinks back."""

import pytest
from small_task import formula_task

from amed_env.agents import make_agent

STEERED = {
    "ppo": lambda model: model.ent_coef,
    "dqn": lambda model: model.least_exploration,
    "td3": lambda model: model.action_noise.noises[0].deviation,
}


def amounts(name, layers, budget, evaluations):
    """What steers exploration, after each evaluation."""
    agent = make_agent(name, warm_start_steps=0)
    seen = []

    def note(session):
        if agent.model is not None:
            seen.append(STEERED[name](agent.model))

    agent.search(formula_task(layers, budget), evaluations, 0, on_change=note)
    return seen, STEERED[name](agent.model)


@pytest.mark.parametrize("name", STEERED)
def test_exploration_grows_where_everything_is_known_soon(name):
    seen, last = amounts(name, 2, None, 9)
    assert last > seen[0]


@pytest.mark.parametrize("name", STEERED)
def test_exploration_stays_where_all_is_new(name):
    """The negative control: 4^12 allocations, and a learner that has not converged."""
    seen, _ = amounts(name, 12, None, 40)
    assert seen[-1] == seen[0]
