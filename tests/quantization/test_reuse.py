"""Reused outputs change nothing, to the last bit, and stay within their memory."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.reuse import PrefixReuse
from amed_env.tracing import trace


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


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("limit_mib", [1, 64])
def test_outputs_are_the_same_with_and_without_reuse(in_place, limit_mib):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 2, 12, 12, generator=generator) for _ in range(6)]
    traced = trace(Residual(in_place), batches[0][:1])
    plain, reusing = (QuantizedNetwork(traced, batches[0], reuse_mib=limit) for limit in (0, limit_mib))
    numbers = np.random.default_rng(0)
    layers = traced.workload.layer_names
    allocations = [
        traced.workload.uniform(4).replace(
            {name: (int(numbers.choice([2, 4, 8, 32])),) * 2 for name in layers if numbers.random() < 0.5}
        )
        for _ in range(25)
    ]
    expected = outputs(plain, batches, allocations)
    for found, wanted in zip(outputs(reusing, batches, allocations), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert plain.reuse.hits == 0 and reusing.reuse.hits > 0


def test_only_what_changed_is_computed():
    batch = torch.randn(4, 2, 8, 8)
    traced = trace(Residual(False), batch)
    network = QuantizedNetwork(traced, batch, reuse_mib=16)
    allocation = traced.workload.uniform(8)
    for changes, hits, misses in [({}, 0, 4), ({}, 4, 0), ({"last": (2, 2)}, 3, 1), ({"first": (2, 2)}, 0, 4)]:
        network.reuse.hits = network.reuse.misses = 0
        network.select(allocation.replace(changes))
        network(batch, "batch")
        assert (network.reuse.hits, network.reuse.misses) == (hits, misses)


def test_memory_is_bounded_and_the_oldest_goes_first():
    reuse = PrefixReuse(1)
    output = torch.zeros(2**16)  # a quarter of a MiB
    for number in range(10):
        reuse.start_pass()
        reuse.start_batch("batch")
        assert reuse.find((f"layer{number}", 8, 8)) is None
        reuse.keep(output)
        reuse.end_batch()
        assert reuse._bytes <= 2**20
    reuse.start_batch("batch")
    assert reuse.find(("layer9", 8, 8)) is output
    reuse.start_batch("batch")
    assert reuse.find(("layer0", 8, 8)) is None


def test_kept_outputs_are_not_copied_or_pickled_with_the_network():
    batch = torch.randn(4, 2, 8, 8)
    network = QuantizedNetwork(trace(Residual(False), batch), batch, reuse_mib=16)
    network.select(network.workload.uniform(4))
    before = network(batch, 0)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert twin.reuse._bytes == 0 and twin.reuse.limit_mib == 16
        assert all(layer.reuse is twin.reuse for layer in twin._layers.values())
        assert torch.equal(twin(batch, 0), before)
