"""Counting, caching, faults and the end of a search."""

import itertools

import pytest
from small_task import formula_task

from amed_env import TrialStore
from amed_env.agents import Agent, SearchSession
from amed_env.agents.session import MAX_CONSECUTIVE_FAULTS
from amed_env.errors import AllocationError, InputError, NonFiniteError, SearchEnded, StoreError


class Enumerate(Agent):
    """Evaluates allocations in order, for ever."""

    def explore(self, session):
        sizes = [range(len(session.task.precisions))] * len(session.task.workload)
        for choices in itertools.cycle(itertools.product(*sizes)):
            try:
                session.evaluate(session.task.allocation(choices))
            except NonFiniteError:
                continue


def test_different_allocations_count_and_repeated_ones_are_free():
    task = formula_task()
    session = SearchSession(task, 2)
    first = session.evaluate(task.workload.uniform(8))
    assert session.evaluate(task.workload.uniform(8)) is first
    assert session.evaluations == 1 and not session.ended and len(task.evaluator.asked) == 1
    session.evaluate(task.workload.uniform(4))
    assert session.ended
    with pytest.raises(SearchEnded):
        session.evaluate(task.workload.uniform(2))
    assert session.evaluations == 2 and len(task.evaluator.asked) == 2


def test_an_agent_cannot_get_more_than_its_evaluations():
    task = formula_task()
    result = Enumerate().search(task, 7)
    assert result.evaluations == 7 and len(result.trials) == 7 and len(task.evaluator.asked) == 7
    assert not result.interrupted


def test_an_agent_that_never_asks_for_anything_new_comes_to_an_end(monkeypatch):
    monkeypatch.setattr("amed_env.agents.session.MAX_CONSECUTIVE_REPEATS", 100)
    result = Enumerate().search(formula_task(2), 50)
    assert result.evaluations == 9


def test_what_the_store_knows_is_counted_but_not_evaluated_again(tmp_path):
    task = formula_task()
    store = TrialStore(tmp_path / "trials.sqlite")
    first = Enumerate().search(task, 5, store=store)
    again = Enumerate().search(task, 9, store=store)
    assert [t.allocation for t in again.trials][:5] == [t.allocation for t in first.trials]
    assert again.evaluations == 9 and len(task.evaluator.asked) == 9


def test_costs_of_stored_trials_are_those_of_the_task_at_hand(tmp_path):
    store = TrialStore(tmp_path / "trials.sqlite")
    Enumerate().search(formula_task(), 3, store=store)
    task = formula_task(device="bitfusion")
    result = Enumerate().search(task, 3, store=store)
    assert task.evaluator.asked == []
    for trial in result.trials:
        assert dict(trial.costs) == dict(task.cost(trial.allocation).metrics)


def test_a_store_of_another_network_is_refused(tmp_path):
    store = TrialStore(tmp_path / "trials.sqlite")
    Enumerate().search(formula_task(), 3, store=store)
    other = formula_task()
    other.evaluator.fingerprint = "another"
    with pytest.raises(StoreError, match="network, data or quantization"):
        Enumerate().search(other, 3, store=store)


def test_the_best_trial_is_feasible_and_the_most_accurate():
    task = formula_task(3, {"latency": 0.5})
    result = Enumerate().search(task, 27)
    feasible = [t for t in result.trials if t.costs["latency_ms"] <= task.limits["latency_ms"] * (1 + 1e-9)]
    assert 0 < len(feasible) < 27
    assert result.best.quality.correct == max(t.quality.correct for t in feasible)


def test_the_front_has_no_dominated_trial_and_dominates_all_others():
    result = Enumerate().search(formula_task(3, {"latency": 1.0}), 27)
    points = {(t.costs["latency_ms"], t.quality.accuracy) for t in result.trials}
    front = {(t.costs["latency_ms"], t.quality.accuracy) for t in result.pareto}
    expected = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)}
    assert front == expected


def test_faults_are_counted_and_too_many_in_a_row_end_the_search():
    task = formula_task()
    task.evaluator.fail_on = {task.allocation([0, 0, 0, 1])}
    result = Enumerate().search(task, 10)
    assert result.evaluations == 10 and len(result.trials) == 9
    assert len(result.faults) == 1 and "NaN" in result.faults[0]
    task.evaluator.fail_on = {task.allocation(c) for c in itertools.product(range(3), repeat=4) if c > (0, 0, 1, 0)}
    result = Enumerate().search(task, 60)
    assert len(result.faults) == MAX_CONSECUTIVE_FAULTS and len(result.trials) == 4


def test_ctrl_c_keeps_what_was_found():
    class Stops(Enumerate):
        def explore(self, session):
            session.evaluate(session.task.workload.uniform(8))
            raise KeyboardInterrupt

    result = Stops().search(formula_task(), 5)
    assert result.interrupted and len(result.trials) == 1 and result.best is not None


@pytest.mark.parametrize("evaluations", [0, -1, 1.5, True, "3"])
def test_senseless_numbers_of_evaluations_are_refused(evaluations):
    with pytest.raises(InputError, match="evaluations"):
        SearchSession(formula_task(), evaluations)


def test_foreign_allocations_are_refused_and_not_counted():
    session = SearchSession(formula_task(), 3)
    with pytest.raises(AllocationError, match="layer3"):
        session.evaluate(formula_task(3).workload.uniform(8))
    assert session.evaluations == 0
