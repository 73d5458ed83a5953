"""`amed-released`: what was wrong with the released code, one switch at a time, while claims stay true."""

import math

import numpy as np
import pytest
from small_task import BitProportional, formula_task

from amed_env import Layer, Precision, Workload
from amed_env.agents import SearchSession, make_agent
from amed_env.agents.walks.amed_released import ReleasedOptions, ReleasedWalk, released_latency_ms
from amed_env.errors import AgentError, UnknownNameError

CORRECT = {
    "uncorrected_acceptance": False,
    "reference_in_milliseconds": False,
    "frozen_network": False,
    "filters_plus_one": False,
    "inflated_dram": False,
}


def walk(task, visits, **faults):
    """A walk that has learned from some allocations, with no fault but the given ones."""
    session = SearchSession(task, 50)
    options = ReleasedOptions(**{**CORRECT, "accuracy_threshold": None, "learning_rate": 0.5, **faults})
    released = ReleasedWalk(session, task, options)
    for choices in visits:
        released.choices = np.array(choices)
        released.learn(session.evaluate(task.allocation(choices)))
    return released


VISITS = [(2, 2, 2), (0, 2, 2), (2, 2, 2), (0, 2, 2)]
"""Layer 0 between 8 and 2 bits."""


def test_a_network_that_never_changes_hides_what_widths_do_to_it():
    task = formula_task(3, harms=[3.0, 0.0, 0.0])
    scores = {
        frozen: walk(task, VISITS, frozen_network=frozen, latency_weight=0.0).scores.values for frozen in (False, True)
    }
    assert scores[False][0, 0] < scores[False][0, 2] - 0.05
    assert scores[True] == pytest.approx(0.0, abs=1e-12)


def test_what_is_recorded_is_true_although_the_agent_believes_otherwise():
    task = formula_task(4, {"latency": 0.7})
    result = make_agent("amed-released").search(task, 25)
    assert len({trial.quality.loss for trial in result.trials}) > 5
    for trial in result.trials:
        assert trial.quality == task.quality(trial.allocation)
        assert dict(trial.costs) == dict(task.cost(trial.allocation).metrics)
    best = max(t.quality.accuracy for t in result.trials if task.feasible(t.costs))
    assert result.best.quality.accuracy == best


@pytest.mark.parametrize("factor", [2.0**-25, 2.0**10])
def test_a_reference_in_milliseconds_drowns_the_scores_in_a_constant(factor):
    class Slow(BitProportional):
        def layer_cost(self, layer, precision):
            return {"latency_ms": layer.macs * precision.weight_bits * factor}

    task = formula_task(3, device=Slow(), harms=[3.0, 0.0, 0.0])
    right = walk(task, VISITS, latency_weight=1.0).scores.values
    wrong = walk(task, VISITS, latency_weight=1.0, reference_in_milliseconds=True).scores.values
    macs = np.array([layer.macs for layer in task.workload])
    first = 0.1 + 3.0 / 256 + 1e-4
    constant = math.log10((first + float(macs.sum()) * 8 * factor) / (first + 1.0))
    sampled = [(0, 0), (0, 2), (1, 2), (2, 2)]
    # The first visit of a walk sees ζ_ref / ζ = 1 with one unit, and nothing but the ratio of the units with two.
    assert walk(task, VISITS[:1], latency_weight=1.0).scores.values == pytest.approx(0.0)
    once = walk(task, VISITS[:1], latency_weight=1.0, reference_in_milliseconds=True).scores.values
    assert once[0, 2] == pytest.approx(0.5 * constant)
    assert right[0, 0] < 0 <= right[0, 2]  # the harmful cell sinks, the harmless one does not
    assert all(np.sign(wrong[cell]) == np.sign(constant) for cell in sampled)  # all cells of a walk go one way
    assert all(abs(wrong[cell]) > 2 * abs(right[cell]) for cell in sampled)


def test_the_released_acceptance_squares_the_law_and_the_corrected_one_does_not():
    task = formula_task(1)
    visited = {}
    for wrong in (False, True):
        released = walk(task, [], uncorrected_acceptance=wrong, temperature=1.0)
        released.scores.values[0] = np.log([1.0, 2.0, 3.0])
        counts = np.zeros(3)
        for _ in range(6_000):
            released.move()
            counts[released.choices[0]] += 1
        visited[wrong] = counts / counts.sum()
    assert visited[False] == pytest.approx(np.array([1, 2, 3]) / 6, abs=0.03)
    assert visited[True] == pytest.approx(np.array([1, 4, 9]) / 14, abs=0.03)


def latency(filters, bits, plus_one, dram_factor=1e-6, **sizes):
    layer = Layer("conv", "conv", m=100, n=filters, k=64, **sizes)
    precisions = (Precision(bits, bits),)
    return released_latency_ms(
        Workload("one", (layer,)), precisions, filters_plus_one=plus_one, dram_factor=dram_factor
    )[0, 0]


def test_one_filter_too_many_leaves_64_filters_without_gain_at_4_bits():
    # Weight stationary, 32 x 32: 2 folds of K, and 2, 1 or 2 of N for 64, 32 or 33 filters; a fold takes 194 cycles.
    assert latency(64, 8, True) == latency(64, 8, False) == pytest.approx((4 * 194 - 1) / 200e3)
    assert latency(64, 4, False) == pytest.approx((2 * 194 - 1) / 200e3)
    assert latency(64, 4, True) == latency(64, 8, True)
    assert latency(60, 4, True) == latency(60, 4, False) < latency(60, 8, True)


def test_external_traffic_counts_64_fold():
    # 100 x 64 inputs, 64 x 64 weights and 100 x 64 outputs in bytes, 16 a cycle.
    cycles = (100 * 64 + 64 * 64 + 100 * 64) / 16
    assert latency(64, 8, False, 1.0) == pytest.approx(cycles / 200e3)
    assert latency(64, 8, False, 64.0) == pytest.approx(64 * cycles / 200e3)


def test_inflated_traffic_reaches_what_the_agent_believes_and_not_the_costs():
    task = formula_task(3)
    believed = [walk(task, VISITS[:1], inflated_dram=wrong) for wrong in (False, True)]
    trial = task.measure(task.allocation([2, 2, 2]))
    known, inflated = (w.believed_latency_ms(trial) for w in believed)
    assert known == (trial.costs["latency_ms"], task.reference_cost.metrics["latency_ms"])
    assert inflated[0] == inflated[1] != known[0]


def test_without_faults_it_walks_as_amed_does():
    def trials(name, **options):
        result = make_agent(name, **options).search(formula_task(4, {"latency": 0.6}), 25, 2)
        return [t.allocation.key() for t in result.trials]

    assert trials("amed-released", proposal="uniform", **CORRECT) == trials("amed")
    assert trials("amed-released") != trials("amed")


def test_switches_are_typed_and_unknown_ones_refused():
    with pytest.raises(UnknownNameError, match="frozen_network"):
        make_agent("amed-released", frozen_networks=True)
    with pytest.raises(AgentError, match="inflated_dram"):
        make_agent("amed-released", inflated_dram="very")
