"""Weights and activations at the ends of what floats and 32-bit integers hold, against plain torch in float64."""

import copy

import pytest
import torch
from torch import nn

from amed_env import trace
from amed_env.quantization.network import QuantizedNetwork


def errors(network, inputs, widths=(32, 8)):
    """Relative errors of the outputs at uniform widths."""
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(inputs.double())
    quantized = QuantizedNetwork(trace(network, inputs), inputs)
    found = {}
    for bits in widths:
        quantized.select(quantized.workload.uniform(bits))
        found[bits] = float((quantized(inputs).double() - exact).norm() / exact.norm())
    return found


def small(norm=False, bias=True):
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(8)] if norm else []
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=bias), *norms, nn.ReLU(), nn.Conv2d(8, 8, 3, bias=bias), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)),
    ).eval()


def images():
    return torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_degenerate_channels():
    network = small(norm=True)
    first, norm, second = network[0], network[1], network[3]
    first.weight[0], first.bias[0] = 0, 0
    norm.running_var[1], norm.weight[2], norm.weight[3], norm.running_var[4] = 0, 0, -1, 1e12
    second.weight[:, 0], second.weight[1], second.weight[2] = 1e-30, 1e-38, 0.3
    found = errors(network, images())
    assert found[32] < 1e-5 and found[8] < 0.06


@torch.no_grad()
@pytest.mark.parametrize("factor", [1e-20, 1e-30, 1e20, 1e30])
def test_tiny_and_huge_activations(factor):
    network = small(bias=False)
    network[0].weight *= factor
    network[2].weight /= factor
    found = errors(network, images())
    assert found[32] < 1e-5 and found[8] < 0.06


@torch.no_grad()
def test_all_activations_are_zero():
    network = small()
    network[0].bias.fill_(-100)
    found = errors(network, images())
    assert found[32] < 1e-5 and found[8] < 0.06


@torch.no_grad()
@pytest.mark.parametrize("count", [65_536, 70_000])  # 65,536 · 255 · 127 still fits into 32 bits, 70,000 do not
def test_sums_of_very_many_products_do_not_wrap_around(count):
    network = nn.Sequential(nn.Linear(count, 4)).eval()
    network[0].weight.fill_(1 / count)
    network[0].weight[1] *= -1
    network[0].weight[2] *= 0.5
    network[0].bias.zero_()
    inputs = 0.9 + 0.1 * torch.rand(8, count, generator=torch.Generator().manual_seed(0))
    assert errors(network, inputs)[8] < 1e-3
