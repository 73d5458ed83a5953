"""Budgets on RAM and flash, against all allocations of a small network."""

import itertools
import logging

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amed_env import make_task
from amed_env.errors import BudgetError
from amed_env.hardware import Capabilities, HardwareBackend
from amed_env.problem.constraints import cheapest_choices
from amed_env.problem.objective import fits
from amed_env.tasks.repair import repair


class Network(nn.Module):
    """A shortcut, and two wide results in a row before it."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 12, 1)
        self.narrow, self.head = nn.Conv2d(12, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.narrow(F.relu(self.wide(x))) + x)
        return self.head(x.mean((2, 3)))


class Board(HardwareBackend):
    """A device that has little memory."""

    name = "board"
    bits = (2, 3, 4, 8)

    def capabilities(self):
        return Capabilities.same_for_all_kinds(self.bits, self.metrics, limits={"ram_kib": 1.0})

    def layer_cost(self, layer, precision):
        return {"latency_ms": layer.macs * precision.weight_bits / 1e6}


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    calibration = torch.randn(40, 2, 8, 8)
    return make_task(
        network=Network().eval(),
        recipe="nearest",
        threads=1,
        calibration=calibration,
        score="squared-error",
    )


def all_choices(task):
    return [
        np.asarray(choices) for choices in itertools.product(range(len(task.precisions)), repeat=len(task.workload))
    ]


def within(task, limits):
    """Choices within limits, by the memory of each allocation itself."""
    found = []
    for choices in all_choices(task):
        allocation = task.allocation(choices)
        costs = {"ram_kib": task.workload.memory.bytes(allocation) / 1024, **task.device_costs.sums(allocation)}
        if all(costs[metric] <= limit for metric, limit in limits.items()):
            found.append(choices)
    return found


@pytest.mark.parametrize("further", [{}, {"flash": 0.6}, {"latency": 0.6}])
def test_the_solver_finds_the_best_of_all_that_fit(task, further):
    sizes = sorted({task.workload.memory.bytes(task.allocation(choices)) for choices in all_choices(task)})
    random = np.random.default_rng(0)
    for size in sizes[:: max(1, len(sizes) // 6)]:
        limited = task.with_budget({"ram": f"{size}B", **further})
        fitting = within(limited, limited.limits)
        objective = random.random(task.predicted_loss.shape)
        best = cheapest_choices(*limited.device_costs.bounded_limits(limited.limits), objective, limited.choosable)
        assert fitting and best is not None
        rows = np.arange(len(best))
        least = min(objective[rows, choices].sum() for choices in fitting)
        # Here places are never wasted, so that the bounds are exact.
        assert objective[rows, best].sum() == pytest.approx(least)


def test_a_limit_that_nothing_meets_is_refused(task):
    least = min(task.workload.memory.bytes(task.allocation(choices)) for choices in all_choices(task))
    task.with_budget({"ram": f"{least}B"})
    with pytest.raises(BudgetError, match=r"smallest reachable ram_kib is (at least )?0\.\d+ \(ram="):
        task.with_budget({"ram": f"{least - 1}B"})


@pytest.mark.parametrize("environment", ["AMED/LayerWise-v0", "AMED/OneShot-v0"])
def test_episodes_end_within_the_memory(task, environment):
    limited = task.with_budget({"ram": 0.8})
    env = gym.make(environment, task=limited).unwrapped
    for seed in range(3):
        env.action_space.seed(seed)
        _, info = env.reset(seed=seed)
        ended = False
        while not ended:
            _, _, ended, _, info = env.step(env.action_space.sample())
        assert info["feasible"] and info["costs"]["ram_kib"] <= limited.limits["ram_kib"]


def test_masks_forbid_just_what_no_later_choice_can_make_up_for(task):
    limited = task.with_budget({"ram": 0.8})
    fitting = {tuple(choices.tolist()) for choices in within(limited, limited.limits)}
    env = gym.make("AMED/LayerWise-v0", task=limited).unwrapped

    def walk(prefix):
        env.reset(seed=0)
        for choice in prefix:
            env.step(choice)
        expected = [
            any(choices[: len(prefix) + 1] == (*prefix, choice) for choices in fitting)
            for choice in range(len(task.precisions))
        ]
        assert env.action_masks().tolist() == expected
        if len(prefix) < len(task.workload) - 1:
            for choice in np.flatnonzero(expected)[:2]:
                walk((*prefix, int(choice)))

    walk(())


def test_what_exceeds_the_memory_is_repaired(task):
    limited = task.with_budget({"ram": 0.8})
    widest = np.full(len(task.workload), len(task.precisions) - 1)
    repaired = repair(limited, widest, limited.limits)
    assert fits(task.cost(task.allocation(repaired)).metrics, limited.limits)
    changes = [int((choices != widest).sum()) for choices in within(limited, limited.limits)]
    assert int((repaired != widest).sum()) == min(changes)


def test_what_a_device_has_is_a_budget_of_every_search(task):
    on_board = task.with_device(Board())
    assert on_board.limits == {"ram_kib": 1.0}
    assert on_board.with_budget({"latency": 0.8}).limits.keys() == {"latency_ms", "ram_kib"}
    assert on_board.with_budget({"ram": "2KiB"}).limits == {"ram_kib": 2.0}
    assert not on_board.feasible(task.cost(task.uniform(8)).metrics)


def test_flash_has_weights_scales_and_biases(task):
    layers = {"stem": (4, 18), "wide": (12, 4), "narrow": (4, 108), "head": (3, 4)}
    for bits in (3, 8):
        expected = sum(-(-outputs * weights * bits // 8) + 8 * outputs for outputs, weights in layers.values())
        assert task.cost(task.uniform(bits))["flash_kib"] * 1024 == pytest.approx(expected)


def test_memory_that_is_not_known_is_not_limited(caplog):
    with caplog.at_level(logging.WARNING):
        task = make_task("tabular/digits-cnn", device=Board())
    assert task.limits == {} and "is not known; it is not limited" in caplog.text
    with pytest.raises(BudgetError, match=r"no ram_kib.*not of tables"):
        task.with_budget({"ram": 0.5})
