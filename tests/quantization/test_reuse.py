"""Reused results change nothing, to the last bit, and stay within their memory."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from traced import trace_equals_once as trace

from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.reuse import ResultMemory


class Residual(nn.Module):
    """A residual network that changes outputs of its layers in place, and calls one layer twice."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Linear(6, 3)
        self.relu = nn.ReLU(inplace=in_place)
        self.in_place = in_place

    def forward(self, x):
        x = self.relu(self.first(x))
        for _ in range(2):
            y = self.twice(x)
            if self.in_place:
                y += x
            else:
                y = y + x
            x = self.relu(y)
        return self.last(x.mean((2, 3)))


def outputs(network, batches, allocations):
    results = []
    for allocation in allocations:
        network.select(allocation)
        results.append([network(batch, number) for number, batch in enumerate(batches)])
    return results


def random_allocations(workload, count, widths):
    numbers = np.random.default_rng(0)
    return [
        workload.uniform(4).replace(
            {name: (int(numbers.choice(widths)),) * 2 for name in workload.layer_names if numbers.random() < 0.5}
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("engine", ["auto", "float"])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("widths", [[2, 4, 8, 32], [2, 3, 8]], ids=["mixed", "integers"])
@pytest.mark.parametrize("limit_mib", [1, 64])
def test_outputs_are_the_same_with_and_without_reuse(in_place, engine, widths, limit_mib):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 2, 12, 12, generator=generator) for _ in range(4)]
    traced = trace(Residual(in_place), batches[0][:1])
    plain, reusing = (QuantizedNetwork(traced, batches[0], reuse_mib=limit, engine=engine) for limit in (0, limit_mib))
    allocations = random_allocations(traced.workload, 12, widths)
    expected = outputs(plain, batches, allocations)
    for found, wanted in zip(outputs(reusing, batches, allocations), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert plain.memory.hits == 0 and reusing.memory.hits > 0


@pytest.mark.parametrize("engine", ["auto", "float"])
def test_a_sweep_gives_what_single_runs_give(engine):
    batches = [torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    traced = trace(Residual(False), batches[0][:1])
    network = QuantizedNetwork(traced, batches[0], engine=engine)
    allocations = random_allocations(traced.workload, 12, [2, 3, 8, 32])
    expected = outputs(network, batches, allocations)
    found = {(number, position): scores for number, position, scores in network.sweep(allocations, batches)}
    assert len(found) == len(batches) * len(allocations)
    for (number, position), scores in found.items():
        assert torch.equal(scores, expected[position][number])


@pytest.mark.parametrize("engine", ["auto", "float"])
def test_only_what_changed_is_computed(engine):
    """Known results are found once where they are needed; what led to them is not even looked for."""
    batch = torch.randn(4, 2, 8, 8)
    traced = trace(Residual(False), batch)
    network = QuantizedNetwork(traced, batch, reuse_mib=16, engine=engine)
    allocation = traced.workload.uniform(8)
    for changes, misses in [({}, 4), ({}, 0), ({"last": (2, 2)}, 1), ({"first": (2, 2)}, 4)]:
        network.memory.misses = 0
        network.select(allocation.replace(changes))
        network(batch, "batch")
        assert network.memory.misses == misses


def test_memory_is_bounded_and_the_oldest_goes_first():
    memory = ResultMemory(1)
    result = torch.zeros(2**16)  # a quarter of a MiB
    for number in range(10):
        memory.start_pass()
        assert memory.find(number, "batch") is None
        assert memory.keep(number, "batch", 1, result)
        assert memory._bytes <= 2**20
    assert memory.find(9, "batch") is result
    assert memory.find(0, "batch") is None


def test_of_one_pass_the_deepest_goes_first_and_never_what_is_in_use():
    memory = ResultMemory(1)
    result = torch.zeros(2**16)
    memory.start_pass()
    for depth in (3, 1, 2, 0):
        assert memory.keep(depth, "batch", depth, result)
    assert not memory.keep("more", "batch", 9, result)
    memory.start_pass()
    assert memory.keep("more", "batch", 9, result)
    assert [memory.find(depth, "batch") is None for depth in (0, 1, 2, 3)] == [False, False, False, True]


@pytest.mark.parametrize("engine", ["auto", "float"])
def test_copies_compute_the_same_and_carry_no_results(engine):
    batch = torch.randn(4, 2, 8, 8)
    network = QuantizedNetwork(trace(Residual(False), batch), batch, reuse_mib=16, engine=engine)
    allocation = network.workload.uniform(4)
    network.select(allocation)
    before = network(batch, 0)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert twin.memory._bytes == 0 and twin.memory.limit_mib == 16
        twin.select(allocation)
        assert torch.equal(twin(batch, 0), before)
        assert twin.memory._bytes > 0 and twin.memory is not network.memory
