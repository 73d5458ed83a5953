"""`amed`: the quality score, the budgets, learning with a negative control, faults, options."""

import math
from dataclasses import replace

import numpy as np
import pytest
from small_task import BitProportional, SharedBuffer, formula_task

import amed_env
from amed_env import Task, optimum
from amed_env.agents import SearchSession, make_agent
from amed_env.agents.walks.amed import AmedAgent
from amed_env.agents.walks.options import AmedOptions
from amed_env.agents.walks.walk import AllocationWalk
from amed_env.bench.run_statistics import interquartile_mean
from amed_env.errors import AgentError, BudgetError, UnknownNameError
from amed_env.evaluation.table import TableEvaluator
from amed_env.problem.quality_score import QualityScore, gain, latency_ratio


def test_the_quality_score_worked_out_by_hand():
    score = QualityScore(loss_weight=2.0, latency_weight=0.5, accuracy_threshold=0.9, accuracy_penalty=10.0)
    assert score.zeta(0.95, 0.3, 0.4) == pytest.approx(2 * 0.3 + 0.5 * 0.4 + 1e-4)
    assert score.zeta(0.80, 0.3, 0.4) == pytest.approx((2 * 0.3 + 0.5 * 0.4 + 1e-4) * 2)
    assert gain(0.5, 0.05) == pytest.approx(1.0) and gain(0.05, 0.5) == pytest.approx(-1.0)
    assert latency_ratio({"latency_ms": 3.0, "bops": 1.0}, {"latency_ms": 6.0, "bops": 1.0}) == 0.5
    assert latency_ratio({"weight_kib": 1.0}, {"weight_kib": 4.0}) == 0.25 and latency_ratio({}, {}) == 1.0


def test_the_unit_of_the_latency_does_not_matter():
    def visited(factor):
        task = formula_task(4, {"latency": 0.7}, device=Scaled(factor))
        return [t.allocation.key() for t in make_agent("amed").search(task, 25, 1).trials]

    assert visited(1.0) == visited(1024.0)


def test_starts_at_uniform_eight_bit():
    result = make_agent("amed").search(formula_task(4), 10)
    assert result.trials[0].allocation.key() == "8/8 8/8 8/8 8/8"
    widest = make_agent("amed").search(formula_task(4, bits=(2, 4)), 5)
    assert widest.trials[0].allocation.key() == "4/4 4/4 4/4 4/4"


@pytest.mark.parametrize("device", [None, SharedBuffer()])
def test_filtered_budgets_are_never_exceeded_and_nothing_is_asked_on_the_way_in(device):
    task = formula_task(5, {"latency": 0.5}, device=device)
    result = make_agent("amed").search(task, 30)
    assert result.evaluations > 0 and all(task.feasible(t.costs) for t in result.trials)
    asked = [a for a, _ in task.evaluator.asked if next(iter(a.values())).weight_bits != 32]
    assert len(asked) == result.evaluations


def test_penalised_budgets_may_be_exceeded_but_not_that_of_memory():
    task = formula_task(5, {"latency": 0.5, "memory": 0.8})
    result = make_agent("amed", budgets="penalty").search(task, 60)
    memory, latency = (
        [t.costs[metric] <= task.limits[metric] * (1 + 1e-9) for t in result.trials]
        for metric in ("weight_kib", "latency_ms")
    )
    assert all(memory) and not all(latency) and any(latency)
    assert task.feasible(result.best.costs)


def test_scores_of_a_walk_are_those_of_the_formula():
    task = formula_task(3)
    session = SearchSession(task, 5)
    options = AmedOptions(learning_rate=0.5, reference_rate=0.2, accuracy_threshold=None)
    walk = AllocationWalk(session, task, options)
    macs = np.array([layer.macs for layer in task.workload])
    expected, reference = np.zeros((3, 3)), None
    for choices, bits in (([2, 2, 2], [8, 8, 8]), ([0, 2, 1], [2, 8, 4]), ([1, 2, 1], [4, 8, 4])):
        trial = session.evaluate(task.allocation(choices))
        zeta = trial.quality.loss + 0.1 * float((macs * bits).sum() / (macs * 8).sum()) + 1e-4
        reference = zeta if reference is None else reference
        for layer, choice in enumerate(choices):
            expected[layer, choice] = 0.5 * expected[layer, choice] + 0.5 * math.log10(reference / zeta)
        reference = 0.8 * reference + 0.2 * zeta
        walk.choices = np.array(choices)
        walk.learn(trial)
    assert walk.scores.values == pytest.approx(expected, abs=1e-9)
    assert walk.reference == pytest.approx(reference)


def test_harmful_cells_get_lower_scores():
    task = formula_task(4, harms=[3.0, 0.0, 0.0, 0.0])
    agent = AmedAgent(latency_weight=0.0)
    agent.search(task, 60, 0)
    assert agent.scores.values[0, 0] < agent.scores.values[0, 1] < agent.scores.values[0, 2]


DEVICES = (("bitfusion", 0.45), ("bit-serial", 0.35), ("mpic", 0.5))


def regrets(agent, evaluator=None, seeds=4, evaluations=100):
    """(R, T) regrets in points, each against the optimum of its own table."""
    columns = []
    for device, latency in DEVICES:
        task = amed_env.make_task("tabular/digits-cnn", device=device, budget={"latency": latency}, score="metric")
        if evaluator is not None:
            task = Task(task.network, evaluator, task.backend, budgets=task.budgets)
        best = optimum(task).quality.accuracy
        results = [make_agent(agent).search(task, evaluations, seed) for seed in range(seeds)]
        columns.append([100 * (best - result.best.quality.accuracy) for result in results])
    return np.array(columns).T


def shuffled_table():
    """The shipped table with its qualities dealt out anew: the same numbers, and nothing to learn from them."""
    task = amed_env.make_task("tabular/digits-cnn")
    table = task.evaluator.table
    order = np.random.default_rng(0).permutation(len(table))
    return TableEvaluator(
        replace(
            table,
            correct={split: values[order] for split, values in table.correct.items()},
            loss={split: values[order] for split, values in table.loss.items()},
        ),
        score="metric",
    )


@pytest.mark.slow
def test_it_learns_more_than_random_and_the_released_code_and_nothing_from_shuffled_rewards():
    amed, random, released = (float(interquartile_mean(regrets(a))) for a in ("amed", "random", "amed-released"))
    assert amed < random - 0.05 and amed < released
    table = shuffled_table()
    amed, random = (float(interquartile_mean(regrets(a, table))) for a in ("amed", "random"))
    assert amed > random - 0.05


def test_faults_are_survived_and_not_asked_for_again():
    task = formula_task(3)
    task.evaluator.fail_on = {task.allocation([a, b, 2]) for a in range(3) for b in (0, 1)}
    result = make_agent("amed").search(task, 20)
    assert 0 < len(result.faults) <= 6 and len(result.trials) > 5 and not result.gave_up
    asked = [allocation for allocation, _ in task.evaluator.asked]
    assert len(asked) == len(set(asked))


def test_ends_can_be_pinned_to_eight_bits():
    result = make_agent("amed", pin_ends=True).search(formula_task(4, {"latency": 0.8}), 20)
    assert len(result.trials) > 3
    for trial in result.trials:
        widths = [p.weight_bits for p in trial.allocation.values()]
        assert widths[0] == widths[-1] == 8
    with pytest.raises(BudgetError, match="pinned"):
        make_agent("amed", pin_ends=True).search(formula_task(2, {"latency": 0.5}), 5)
    with pytest.raises(AgentError, match="pin_ends"):
        make_agent("amed", pin_ends=True).search(formula_task(3, bits=(2, 4)), 5)


def test_options_are_typed_and_unknown_ones_refused():
    with pytest.raises(UnknownNameError, match="'temperature'"):
        make_agent("amed", temperatur=0.1)
    with pytest.raises(UnknownNameError, match="frozen_network"):
        make_agent("amed", frozen_network=True)
    for option, value in (
        ("temperature", 0.0),
        ("temperature", "warm"),
        ("learning_rate", 1.5),
        ("moves", 2.5),
        ("proposal", "gibbs"),
        ("accuracy_threshold", 97),
        ("budgets", "ignore"),
    ):
        with pytest.raises(AgentError, match=option):
            make_agent("amed", **{option: value})


class Scaled(BitProportional):
    """Its latency in another unit; a power of two, so that sums are rounded alike."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def layer_cost(self, layer, precision):
        return {"latency_ms": self.factor * super().layer_cost(layer, precision)["latency_ms"]}
