"""The true optimum and front, against a search through all allocations one by one."""

import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest
from small_task import BitProportional, FormulaEvaluator, SharedBuffer

import amed_env
from amed_env import BitAllocation, Precision, Quality, Task, make_agent, make_task, optimum, pareto_front, regret
from amed_env.agents.result import pareto_front as front_of_trials
from amed_env.errors import BudgetError, InputError, UnknownNameError
from amed_env.evaluation.table import TableEvaluator
from amed_env.evaluation.table_file import QualityTable
from amed_env.hardware import evaluate_cost, load_device
from amed_env.problem.ties import Ties
from amed_env.tasks.ground_truth import all_costs, regret_of

BITS = (2, 4, 8)


def table(seed=0, layers=4, most=12):
    """Random qualities; few different numbers of correct samples, so that there are ties."""
    rng = np.random.default_rng(seed)
    rows = len(BITS) ** layers
    formula = FormulaEvaluator(layers)
    precisions = tuple(Precision(b, b) for b in BITS)
    return QualityTable(
        Ties.of(formula.workload),
        precisions,
        {split: rng.integers(0, most, rows).astype(np.uint16) for split in ("search", "test")},
        {split: rng.random(rows).astype(np.float16) for split in ("search", "test")},
        {split: Quality(most, 20, 0.1) for split in ("search", "test")},
        formula.predicted_loss(precisions),
        formula.weight_statistics(),
        (),
        {},
    )


def task(seed=0, device=None, **options):
    backend = load_device(BitProportional() if device is None else device)
    return Task("random", TableEvaluator(table(seed)), backend, options.pop("bits", BITS), **options)


def every_trial(task, split="search"):
    trials = []
    for choices in itertools.product(*[np.flatnonzero(row) for row in task.choosable]):
        trial = task.measure(task.allocation(choices))
        trials.append(type(trial)(trial.allocation, task.evaluator.evaluate(trial.allocation, split), trial.costs))
    return [trial for trial in trials if task.feasible(trial.costs)]


VARIANTS = [
    {},
    {"pins": {"first": 8, "layer2": 2}},
    {"bits": (2, 8)},
    {"bits": (4, 8), "pins": {"last": 2}},
    {"device": SharedBuffer()},
    {"device": "mpic"},
]


@pytest.mark.parametrize(
    "options", VARIANTS, ids=["plain", "pins", "two-widths", "another-width", "not-additive", "mpic"]
)
@pytest.mark.parametrize("budget", [None, {"latency": 0.7}, {"latency": 0.9, "memory": 0.6}])
@pytest.mark.parametrize("split", ["search", "test"])
def test_the_optimum_is_the_best_of_all(options, budget, split):
    for seed in range(3):
        problem = task(seed, **options).with_budget(budget)
        best = min(every_trial(problem, split), key=lambda t: (-t.quality.correct, t.quality.loss))
        found = optimum(problem, split=split)
        assert found.quality == best.quality and problem.feasible(found.costs)
        assert found.costs == problem.measure(found.allocation).costs
        assert optimum(task(seed, **options), budget or {}, split) == found


@pytest.mark.parametrize(
    "options", VARIANTS, ids=["plain", "pins", "two-widths", "another-width", "not-additive", "mpic"]
)
@pytest.mark.parametrize("metric", ["latency_ms", "weight_kib"])
def test_the_front_has_nothing_that_something_dominates(options, metric):
    for seed in range(3):
        problem = task(seed, **options)
        front, everything = pareto_front(problem, metric=metric), every_trial(problem)
        for trial in everything:
            best = max(f.quality.correct for f in front if f.costs[metric] <= trial.costs[metric] * (1 + 1e-9))
            assert best >= trial.quality.correct
        for cheaper, dearer in itertools.pairwise(front):
            assert cheaper.quality.correct < dearer.quality.correct and cheaper.costs[metric] < dearer.costs[metric]
        for trial in front:
            rivals = [t for t in everything if t.costs[metric] <= trial.costs[metric] * (1 + 1e-9)]
            assert max(t.quality.correct for t in rivals) == trial.quality.correct
        by_trials = front_of_trials(everything, metric)
        assert {t.quality.correct for t in front} == {t.quality.correct for t in by_trials}


def test_a_device_whose_costs_do_not_add_up_is_asked_for_every_allocation_once():
    class Counting(SharedBuffer):
        calls = 0

        def evaluate(self, workload, allocation):
            Counting.calls += 1
            return super().evaluate(workload, allocation)

    problem = task(device=Counting())
    Counting.calls = 0
    front = pareto_front(problem)
    assert Counting.calls <= 3**4 + len(front)
    Counting.calls = 0
    assert optimum(problem, {"latency": 0.7}) == optimum(task(device=SharedBuffer()), {"latency": 0.7})
    assert pareto_front(problem) == front and Counting.calls < 3**4 / 2
    pinned = task(device=problem.backend, pins={"last": 2})
    assert all(trial.allocation["layer3"].weight_bits == 2 for trial in pareto_front(pinned))


def test_rows_of_another_table_are_asked_anew(monkeypatch):
    device = SharedBuffer()
    assert len(all_costs(task(device=device, bits=(2, 8)), "latency_ms")) == 3**4
    monkeypatch.setattr(sys.modules[__name__], "BITS", (2, 8))
    smaller = task(device=device, bits=(2, 8))
    found = all_costs(smaller, "latency_ms")
    assert found.tolist() == [trial.costs["latency_ms"] for trial in every_trial(smaller, "search")]


def test_a_front_by_the_name_of_a_budget():
    assert pareto_front(task(), metric="latency") == pareto_front(task(), metric="latency_ms")


def test_the_front_within_budgets():
    front = pareto_front(task().with_budget({"memory": 0.5}), metric="latency_ms")
    assert front and all(trial.costs["weight_kib"] <= 0.5 * task().reference_cost["weight_kib"] for trial in front)


def test_one_table_serves_every_device():
    on_bops = amed_env.make_task("tabular/digits-cnn", device="bops", budget={"latency": 0.5})
    on_bitfusion = amed_env.make_task("tabular/digits-cnn", device="bitfusion", budget={"latency": 0.5})
    assert pareto_front(on_bops, "bitfusion") == pareto_front(on_bitfusion)
    assert pareto_front(on_bops, on_bitfusion.backend) == pareto_front(on_bitfusion) != pareto_front(on_bops)


@pytest.mark.parametrize("metric", ["latency_ms", "energy_uj", "weight_kib"])
def test_the_front_on_another_device_knows_the_layers_that_are_tied(metric):
    here, there = (amed_env.make_task("tabular/cifar10-resnet8", device=name) for name in ("bitfusion", "eyeriss-ws"))
    front = pareto_front(here, "eyeriss-ws", metric)
    assert front == pareto_front(there, metric=metric)
    ties = here.evaluator.table.ties
    full = evaluate_cost(load_device("eyeriss-ws"), ties.full, ties.expand(front[0].allocation))
    assert front[0].costs[metric] == pytest.approx(full.metrics[metric])


def test_a_number_is_another_value_of_the_first_budget():
    problem = task().with_budget({"latency": 0.6})
    assert (
        optimum(problem, np.float64(0.45))
        == optimum(problem, 0.45)
        == optimum(task(), {"latency": 0.45})
        == optimum(task(), ["latency=0.45"])
    )


def test_regret_is_looked_up():
    problem = task().with_budget({"latency": 0.6})
    best = optimum(problem)
    assert regret_of(problem, best.allocation) == 0
    other = problem.workload.uniform(2)
    lost = 100 * (best.quality.accuracy - problem.quality(other).accuracy)
    assert regret_of(problem, other) == pytest.approx(lost) and lost >= 0
    assert regret_of(problem, None) == regret_of(problem, problem.workload.uniform(8)) == 100 * best.quality.accuracy
    result = make_agent("random").search(problem, 12, seed=3)
    expected = 100 * (best.quality.accuracy - max(t.quality.accuracy for t in result.trials))
    assert regret(result) == pytest.approx(expected)
    result.best = None
    assert regret(result, "test") == 100 * optimum(problem, split="test").quality.accuracy


def test_a_search_over_everything_has_no_regret():
    problem = task().with_budget({"latency": 0.6})
    result = make_agent("random").search(problem, 81, seed=0)
    assert regret(result) == 0 and result.best.quality == optimum(problem).quality


def test_costs_of_rows_are_costs_of_their_allocations():
    problem = task(pins={"first": 8})
    costs = all_costs(problem, "latency_ms")
    assert np.isfinite(costs).sum() == 27
    for row in np.flatnonzero(np.isfinite(costs))[::5]:
        bits = [BITS[c] for c in np.unravel_index(row, (3,) * 4)]
        chosen = BitAllocation({n: (b, b) for n, b in zip(problem.workload.layer_names, bits, strict=True)})
        assert costs[row] == pytest.approx(problem.cost(chosen)["latency_ms"])


def test_what_cannot_be_answered_is_refused():
    with pytest.raises(InputError, match="has no table"):
        optimum(make_task("digits-cnn", recipe="nearest"))
    with pytest.raises(InputError, match="reports no energy_uj"):
        pareto_front(task(), metric="energy_uj")
    with pytest.raises(UnknownNameError, match="nowhere"):
        pareto_front(task(), "nowhere")
    with pytest.raises(InputError, match="is no task"):
        optimum("tabular/digits-cnn", {"latency": 0.5})
    with pytest.raises(InputError, match=r"no budget that 0\.5"):
        optimum(task(), 0.5)
    with pytest.raises(InputError, match="give a mapping"):
        optimum(task().with_budget({"latency": 0.6}), True)
    with pytest.raises(BudgetError, match="smallest reachable"):
        optimum(task(), {"latency": 0.01})
    with pytest.raises(BudgetError, match="no allocation meets"):
        optimum(task(device=SharedBuffer()), {"latency": 0.01})


@pytest.mark.parametrize("score", ["divergence", "loss"])
@pytest.mark.parametrize("split", ["search", "test"])
def test_optimum_front_and_regret_of_scores_of_which_less_is_better(score, split):
    rng = np.random.default_rng(1)
    plain = table()
    # Few different numbers, so that there are ties.
    divergence = {part: (rng.integers(1, 9, len(plain)) / 16).astype(np.float16) for part in ("search", "test")}
    evaluator = TableEvaluator(replace(plain, divergence=divergence), score=score)
    problem = Task("random", evaluator, load_device(BitProportional()), BITS).with_budget({"latency": 0.7})
    trials = every_trial(problem, split)
    best = min(trials, key=lambda trial: (trial.quality.score, trial.quality.loss))
    found = optimum(problem, split=split)
    assert found.quality == best.quality and not found.quality.scored_by.higher_is_better
    assert regret_of(problem, best.allocation, split) == 0
    worst = max(trials, key=lambda trial: trial.quality.score)
    assert regret_of(problem, worst.allocation, split) == worst.quality.score - best.quality.score
    assert regret_of(problem, None, split) >= regret_of(problem, worst.allocation, split)
    front = pareto_front(problem, split=split)
    expected = front_of_trials(trials, "latency_ms")
    assert [trial.quality.score for trial in front] == [trial.quality.score for trial in expected]
    assert all(later.quality.score < trial.quality.score for trial, later in itertools.pairwise(front))
