"""Infinity between layers is an error at every width and in every engine, and the layer that meets it is named."""

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from traced import traced_once

from amed_env.errors import NonFiniteError
from amed_env.quantization.finiteness import check_finite
from amed_env.quantization.network import QuantizedNetwork


class Divides(nn.Module):
    """What the second layer reads is divided by a pixel, and so is what is added to the third."""

    def __init__(self, where):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(3, 4)
        self.where = where

    def forward(self, x):
        y = self.first(x)
        y = y / x[:, :1, :1, :1] if self.where == "read" else y
        y = F.relu(self.second(y))
        z = self.third(y)
        z = z + y / x[:, :1, :1, :1] if self.where == "added" else z + y
        return self.head(self.third(F.relu(z)).mean((2, 3)) + z.mean((2, 3)))


def made(where, engine):
    torch.manual_seed(0)
    inputs = torch.rand(30, 3, 6, 6, generator=torch.Generator().manual_seed(1)) + 0.5
    traced = traced_once(("divides", where), Divides(where).eval(), inputs)
    network = QuantizedNetwork(traced, inputs, engine=engine, reuse_mib=8)
    infinite = inputs.clone()
    infinite[7, 0, 0, 0] = 0.0
    return network, inputs, infinite


@pytest.mark.parametrize("engine", ["auto", "float"])
@pytest.mark.parametrize(("where", "named"), [("read", "second"), ("added", "third")])
@pytest.mark.parametrize("precision", [(8, 8), (2, 3), (32, 8), (8, 16)])
def test_the_layer_that_meets_infinity_is_named(engine, where, named, precision):
    network, inputs, infinite = made(where, engine)
    network.select(network.workload.uniform(*precision))
    assert torch.isfinite(network(inputs, 0)).all()
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=f"layer '{named}' meets activations that are NaN or infinite") as info:
            network(infinite, 1)
        assert pickle.loads(pickle.dumps(info.value)).layer == named


@pytest.mark.parametrize(("where", "named"), [("read", "second"), ("added", "third")])
def test_several_allocations_in_one_pass_meet_it_too(where, named):
    network, inputs, infinite = made(where, "float")
    allocations = [network.workload.uniform(bits) for bits in (8, 4)]
    expected = network.run_together(allocations, inputs)
    with pytest.raises(NonFiniteError, match=f"layer '{named}' meets"):
        network.run_together(allocations, infinite)
    assert torch.equal(network.run_together(allocations, inputs), expected)  # nothing of it stays behind
    network.select(allocations[0])
    torch.testing.assert_close(network.run_in_float(inputs), expected[0], rtol=1e-6, atol=1e-6)


def test_large_values_whose_sum_overflows_are_fine():
    check_finite(torch.full((3,), 3e38), "layer")
    for wrong in (float("inf"), float("-inf"), float("nan")):
        with pytest.raises(NonFiniteError, match="'layer'"):
            check_finite(torch.tensor([1.0, wrong, -wrong]), "layer")
