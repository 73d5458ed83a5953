"""The whole way of a device whose layers depend on their neighbours: bound, mask, repair, budgets."""

import logging

import numpy as np
import pytest
from small_task import FormulaEvaluator, SharedBuffer, all_choices

from amed_env import BitAllocation, Layer, Task, Workload
from amed_env.envs import LayerWiseEnv, OneShotEnv
from amed_env.errors import BudgetError
from amed_env.hardware import check_hardware, evaluate_cost, load_device
from amed_env.problem.objective import parse_budgets

# 16 feature maps of 32 x 32 have 16,384 elements: 8 KiB at 4 bits, which is just what the device keeps, 16 KiB at 8.
CHAIN = Workload(
    "chain",
    (
        Layer("first", "conv", m=1024, n=16, k=27, input_elements=3072, kernel=(3, 3)),
        Layer("second", "conv", m=1024, n=16, k=144, input_elements=16384, kernel=(3, 3)),
        Layer("third", "conv", m=1024, n=16, k=16, input_elements=16384),
    ),
)


def chain_task(budget=None, bits=(2, 4, 8), device="bitfusion-chained"):
    evaluator = FormulaEvaluator(3)
    evaluator.workload = CHAIN
    return Task("chain", evaluator, load_device(device), bits, budgets=parse_budgets(budget))


def true_costs(task):
    return {tuple(c): task.cost(task.allocation(c)).metrics for c in all_choices(task)}


def test_traffic_by_hand():
    device = load_device("bitfusion-chained")
    allocation = BitAllocation({"first": (4, 8), "second": (4, 4), "third": (8, 8)})
    cost = evaluate_cost(device, CHAIN, allocation)
    bits = [
        3072 * 8 + 432 * 4 + 0,  # what it writes is read at 4 bits, 65,536 bits in all, and stays
        0 + 2304 * 4 + 16384 * 8,  # what it writes is read at 8 bits, which does not fit
        16384 * 8 + 256 * 8 + 16384 * 8,  # the last one writes at its own width
    ]
    assert [layer.metrics["memory_cycles"] for layer in cost.layers] == [b / 32 for b in bits]
    base = evaluate_cost(load_device("bitfusion"), CHAIN, allocation)
    computes = [[layer.metrics["compute_cycles"] for layer in c.layers] for c in (cost, base)]
    assert computes[0] == computes[1]
    base_bits = [3072 * 8 + 432 * 4 + 16384 * 8, 16384 * 4 + 2304 * 4 + 16384 * 4, bits[2]]
    saved = (sum(base_bits) - sum(bits)) * 8e-6  # 8 pJ a bit
    assert cost["energy_uj"] == pytest.approx(base["energy_uj"] - saved)


def test_a_layer_depends_on_its_neighbour():
    device = load_device("bitfusion-chained")
    narrow, wide = (
        evaluate_cost(device, CHAIN, BitAllocation({"first": (4, 4), "second": p, "third": (4, 4)})).layers[0]
        for p in ((4, 4), (4, 8))
    )
    assert narrow.metrics["latency_ms"] < wide.metrics["latency_ms"]
    assert not device.capabilities().additive


@pytest.mark.parametrize("network", [None, CHAIN], ids=["sample", "chain"])
def test_it_conforms(network):
    check_hardware(load_device("bitfusion-chained"), network)


def test_the_bound_is_below_every_allocation_and_met_by_some():
    task = chain_task()
    bounds = task.device_costs.least_table
    assert set(task.costs) == {"weight_kib", "bops", "flash_kib"} < set(bounds)
    gaps = [
        metrics["latency_ms"] - sum(bounds["latency_ms"][row, c] for row, c in enumerate(choices))
        for choices, metrics in true_costs(task).items()
    ]
    assert min(gaps) == pytest.approx(0) and max(gaps) > 0


@pytest.mark.parametrize("metric", ["latency", "energy"])
def test_masks_forbid_nothing_that_fits(metric):
    task = chain_task()
    name = {"latency": "latency_ms", "energy": "energy_uj"}[metric]
    costs = true_costs(task)
    for limit in sorted({c[name] / task.reference_cost[name] * (1 + 1e-9) for c in costs.values()})[::4]:
        env = LayerWiseEnv(task.with_budget({metric: limit}))
        one_shot = OneShotEnv(env.task)
        one_shot.reset()
        bound = env.task.limits[name] * (1 + 1e-9)
        grid = one_shot.action_masks().reshape(3, 3)
        forbidden = 0
        for choices in costs:
            env.reset()
            allowed = []
            for choice in choices:
                allowed.append(bool(env.action_masks()[choice]))
                env.step(choice)
            if costs[choices][name] <= bound:
                assert all(allowed) and all(grid[row, c] for row, c in enumerate(choices))
            forbidden += not all(allowed)
        assert forbidden or limit > 0.9


def test_what_the_mask_cannot_see_is_repaired_in_the_end():
    # The bound takes the third layer to read at 2 bits; at 8 bits the second one writes more than it promised.
    task = chain_task()
    costs = true_costs(task)
    bounds = task.device_costs.least_table["latency_ms"]
    tight = next(
        (c, m["latency_ms"])
        for c, m in costs.items()
        if m["latency_ms"] > sum(bounds[row, i] for row, i in enumerate(c)) * 1.02
    )
    limit = tight[1] * 0.99 / task.reference_cost["latency_ms"]
    env = LayerWiseEnv(task.with_budget({"latency": limit}))
    env.reset()
    for choice in tight[0]:
        assert env.action_masks()[choice]
        _, _, terminated, _, info = env.step(choice)
    assert terminated and info["repaired"] and info["feasible"]
    assert info["costs"]["latency_ms"] <= env.task.limits["latency_ms"]
    assert sum(a != b for a, b in zip(info["choices"], tight[0], strict=True)) == 1


@pytest.mark.parametrize("budget", [0.3, 0.45, 0.6, 0.8])
def test_random_episodes_end_within_the_budget(budget):
    task = chain_task({"latency": budget})
    env, rng = LayerWiseEnv(task), np.random.default_rng(0)
    for _ in range(30):
        env.reset()
        terminated = False
        while not terminated:
            choice = rng.choice(np.flatnonzero(env.action_masks()))
            _, _, terminated, truncated, info = env.step(choice)
            assert not truncated
        assert info["feasible"]


def test_budgets_below_the_bound_are_refused_and_unknown_ones_get_a_warning(caplog):
    task = chain_task()
    least = sum(task.device_costs.least_table["latency_ms"].min(axis=1)) / task.reference_cost["latency_ms"]
    with pytest.raises(BudgetError, match=r"smallest reachable latency_ms is at least"):
        task.with_budget({"latency": least * 0.99})
    uniform = min(task.cost(task.workload.uniform(b))["latency_ms"] for b in task.bits)
    task.with_budget({"latency": uniform / task.reference_cost["latency_ms"] * 1.001})
    assert not caplog.records
    shared = chain_task(device=SharedBuffer())
    with caplog.at_level(logging.WARNING):
        shared.with_budget({"latency": 0.1})
    assert "no uniform width meets latency=0.1" in caplog.text and "do not add up" in caplog.text


def test_drawn_budgets_are_within_reach():
    task = chain_task()
    env = LayerWiseEnv(task)
    reachable = min(c["latency_ms"] for c in true_costs(task).values())
    for seed in range(40):
        _, info = env.reset(seed=seed)
        assert info["limits"]["latency_ms"] >= reachable * (1 - 1e-9)
