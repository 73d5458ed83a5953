"""Several allocations in one pass give what one after the other gives."""

import numpy as np
import pytest
import torch
from networks import SHAPES, LinearOnly, make
from traced import trace_equals_once as trace
from traced import traced_once

from amed_env.quantization.network import QuantizedNetwork


def drawn_allocations(workload, count, seed=0):
    numbers = np.random.default_rng(seed)
    names = workload.layer_names
    return [
        workload.uniform(8).replace(
            {n: (int(w), int(a)) for n, (w, a) in zip(names, numbers.integers(2, 9, (len(names), 2)), strict=True)}
        )
        for _ in range(count)
    ]


def one_by_one(network, allocations, inputs):
    scores = []
    for allocation in allocations:
        network.select(allocation)
        scores.append(network.run_in_float(inputs))
    return torch.stack(scores)


@pytest.mark.parametrize("kind", SHAPES)
def test_together_equals_one_by_one(kind):
    network, inputs = make(kind)
    quantized = QuantizedNetwork(traced_once(kind, network, inputs), inputs, engine="float")
    allocations = drawn_allocations(quantized.workload, 5)
    expected = one_by_one(quantized, allocations, inputs)
    found = quantized.run_together(allocations, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found[0], found[1])
    assert torch.equal(one_by_one(quantized, allocations, inputs), expected)  # nothing of it stays behind


def test_a_network_that_cannot_be_batched_runs_one_by_one(monkeypatch):
    def refuses(*arguments):
        raise RuntimeError("vmap: an operation has no batching rule")

    monkeypatch.setattr("amed_env.quantization.network.run_together", refuses)
    network, inputs = make(LinearOnly)
    quantized = QuantizedNetwork(trace(network, inputs[:1]), inputs, engine="float")
    allocations = drawn_allocations(quantized.workload, 3)
    expected = one_by_one(quantized, allocations, inputs)
    assert torch.equal(quantized.run_together(allocations, inputs), expected)
