"""A search that was cut off and continued equals one that was not: what was learned is replayed from the store."""

import pytest
from small_task import formula_task

from amed_env import TrialStore
from amed_env.agents import make_agent

QUICK = {
    "ppo": {"warm_start_steps": 300},
    "dqn": {"warm_start_steps": 300, "learning_starts": 8},
    "sac": {"warm_start_steps": 0, "learning_starts": 8},
    "model-ppo": {"batch": 5, "first": 5, "environments": 8},
    **{name: {} for name in ("milp", "pairwise", "local", "annealing", "evolution", "tpe")},
}
LIMIT, CUT = 24, 11


def task():
    return formula_task(4, {"latency": 0.6})


def trials(result):
    return [(trial.allocation.key(), trial.quality.correct) for trial in result.trials]


def cut_off(session):
    if session.evaluations == CUT:
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", QUICK)
def test_a_search_split_in_two_equals_the_unsplit_one(name):
    whole = make_agent(name, **QUICK[name]).search(task(), LIMIT, 5)
    store = TrialStore()
    first = make_agent(name, **QUICK[name]).search(task(), LIMIT, 5, store=store, on_change=cut_off)
    assert first.interrupted and first.evaluations == CUT
    continued = task()
    second = make_agent(name, **QUICK[name]).search(continued, LIMIT, 5, store=store)
    assert trials(second) == trials(whole) and trials(second)[:CUT] == trials(first)
    evaluated = {allocation.key() for allocation, _ in continued.evaluator.asked}
    assert not evaluated & {key for key, _ in trials(first)}  # what was finished is not evaluated again
    if name not in ("milp", "pairwise"):  # which leave nothing to chance
        other = make_agent(name, **QUICK[name]).search(task(), LIMIT, 6, store=store)
        assert trials(other) != trials(whole)  # the control: another seed takes another way


@pytest.mark.parametrize("name", ["ppo", "dqn", "qr-dqn", "sac"])
def test_a_search_continued_with_more_evaluations_equals_one_that_had_them_from_the_beginning(name):
    options = {"warm_start_steps": 0} if name == "ppo" else {"warm_start_steps": 0, "learning_starts": 8}
    whole = make_agent(name, **options).search(task(), LIMIT, 5)
    store = TrialStore()
    first = make_agent(name, **options).search(task(), CUT, 5, store=store)
    second = make_agent(name, **options).search(task(), LIMIT, 5, store=store)
    assert trials(second) == trials(whole) and trials(second)[:CUT] == trials(first)
