"""Exact sums on processors that add products of 8 bits in 16 bits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from amed_env.quantization import kernels
from amed_env.quantization.codes import Codes, Format
from amed_env.quantization.kernels import LayerKernel, integer_kernels_are_exact
from amed_env.quantization.layers import PreparedWidth
from amed_env.quantization.saturation import (
    above_limit,
    halves,
    pair_limit,
    pairs_apart,
    sums_saturate,
    twice,
    two_products_fit,
)

exact_only = pytest.mark.skipif(not integer_kernels_are_exact(), reason="this machine has no exact integer kernels")


def saturating_sum(codes, integers):
    """What VPMADDUBSW and an addition in 32 bits make of a sum of products."""
    products = codes.astype(np.int64) * integers.astype(np.int64)
    pairs = np.append(products, 0)[: len(products) // 2 * 2 + 2 * (len(products) % 2)].reshape(-1, 2).sum(axis=1)
    return int(np.clip(pairs, -(2**15), 2**15 - 1).sum())


numbers = st.integers(0, 255), st.integers(-128, 127)


@given(st.lists(st.tuples(*numbers), min_size=1, max_size=40))
def test_halves_never_saturate(pairs):
    codes, integers = np.asarray(pairs).T
    both = halves(torch.from_numpy(integers).to(torch.int8)[None])[0].numpy()
    assert saturating_sum(np.tile(codes, 2), both) == int(codes @ integers)


@given(st.lists(st.tuples(*numbers), min_size=1, max_size=40))
def test_what_is_said_to_fit_does(pairs):
    codes, integers = np.asarray(pairs).T
    if two_products_fit(int(codes.max()), torch.from_numpy(integers).to(torch.int8)):
        assert saturating_sum(codes, integers) == int(codes @ integers)


@pytest.mark.parametrize(("code", "integer", "fits"), [(255, 64, True), (255, -65, False), (15, -128, True)])
def test_the_border_of_what_fits(code, integer, fits):
    assert two_products_fit(code, torch.tensor([0, integer], dtype=torch.int8)) is fits
    assert (saturating_sum(np.full(2, code), np.full(2, integer)) == 2 * code * integer) is fits


@given(st.tuples(*[st.integers(-128, 127)] * 2), st.integers(0, 255), st.integers(15, 255))
def test_pairs_within_the_limit_do_not_saturate(integers, first, largest):
    limit = pair_limit(largest, torch.tensor([integers], dtype=torch.int8))
    assert largest <= limit <= 2 * largest
    first = min(first, largest)
    second = max(0, min(largest, limit - first))
    codes = np.asarray([first, second])
    assert saturating_sum(codes, np.asarray(integers)) == int(codes @ integers)


@given(st.tuples(*[st.integers(-128, 127)] * 2))
def test_the_limit_of_pairs_is_no_lower_than_it_must_be(integers):
    limit = pair_limit(255, torch.tensor([integers], dtype=torch.int8))
    if limit < 510:
        worst = (255, limit + 1 - 255) if abs(integers[0]) > abs(integers[1]) else (limit + 1 - 255, 255)
        product = worst[0] * integers[0] + worst[1] * integers[1]
        # Sums below zero have room for one more.
        assert saturating_sum(np.asarray(worst), np.asarray(integers)) != product or product == -(2**15)


@given(st.integers(0, 2**32), st.integers(0, 510), st.sampled_from([(4, 6), (5, 2, 3, 3), (3, 4, 1, 1), (2, 8, 2, 2)]))
def test_samples_above_a_limit(seed, limit, shape):
    read = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    numbers = read.numpy().astype(int)
    expected = (numbers[:, 0::2] + numbers[:, 1::2]).reshape(len(numbers), -1).max(axis=1) > limit
    read = read.contiguous(memory_format=torch.channels_last) if read.dim() == 4 else read
    assert above_limit(read, limit).tolist() == expected.tolist()


def test_samples_above_a_limit_in_a_part_of_a_tensor():
    read = torch.tensor([9, 200, 100, 1, 2, 3, 4], dtype=torch.uint8)[1:].reshape(2, 3)[:, :2]
    assert above_limit(read, 299).tolist() == [True, False]
    assert above_limit(read, 300).tolist() == [False, False]


class SimulatedKernel:
    """A linear kernel that adds the products of certain pairs of channels in 16 bits."""

    def __init__(self, order):
        self.order, self.read_twice, self.rows = order, [], []

    def __call__(self, codes, scale, zero_point, packed, scales, zeros, bias, *tail):
        order = self.order(codes.shape[1])
        self.read_twice.append(codes.shape[1] > 8)
        self.rows.append(len(codes))
        products = codes[:, order].long()[:, None] * packed[:, order].long()[None]
        return products.unflatten(2, (-1, 2)).sum(3).clamp(-(2**15), 2**15 - 1).sum(2).float()


ORDERS = {
    "neighbours": lambda channels: list(range(channels)),
    "one apart": lambda channels: [*range(1, channels), 0],
    "half the layer apart": lambda channels: [c for k in range(channels // 2) for c in (k, k + channels // 2)],
}


@pytest.mark.parametrize("rare", [True, False])
@pytest.mark.parametrize("kind", ORDERS)
def test_whatever_a_processor_adds_sums_are_exact(monkeypatch, kind, rare):
    """One whose pairs are not neighbours is noticed, and what may saturate is computed again."""
    simulated = SimulatedKernel(ORDERS[kind])
    monkeypatch.setattr(kernels, "sums_saturate", lambda depthwise: True)
    monkeypatch.setattr(torch.ops.onednn, "qlinear_prepack", lambda integers, shape: integers, raising=False)
    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", simulated, raising=False)
    generator = torch.Generator().manual_seed(3)
    integers = torch.randint(100, 128, (6, 8), generator=generator).to(torch.int8)
    read = torch.randint(0, 120, (64, 8), generator=generator).to(torch.uint8)
    read[5 if rare else slice(None), 2:6] = 255
    prepared = PreparedWidth(integers, torch.ones(6), None, 1.0)
    kernel, codes = LayerKernel(nn.Linear(8, 6, bias=False)), Codes(read, Format(1.0, 0, 0, 255))
    assert torch.equal(kernel(codes, prepared, 8, None), (read.long() @ integers.long().T).float())
    simulated.read_twice, simulated.rows = [], []
    assert torch.equal(kernel(codes, prepared, 8, None), (read.long() @ integers.long().T).float())
    watched = kind == "neighbours" and rare
    assert (simulated.read_twice, simulated.rows) == (([False, True], [64, 1]) if watched else ([True], [64]))


def test_pairs_apart_are_apart():
    read = pairs_apart(8, 5, 5)
    assert (read[:, 0::2].int() + read[:, 1::2].int() == 255).all()
    assert 0.3 < (read == 255)[:, 0].float().mean() < 0.7


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_a_layer_that_reads_twice_returns_the_same(groups):
    generator = torch.Generator().manual_seed(groups)
    weight = torch.randint(-128, 128, (8, 8 // groups, 3, 3), generator=generator).to(torch.int8)
    read = torch.randint(0, 256, (2, 8, 5, 5), generator=generator)
    found = F.conv2d(twice(read, 1, groups).double(), halves(weight).double(), groups=groups)
    assert torch.equal(found, F.conv2d(read.double(), weight.double(), groups=groups))


LAYERS = {
    "dense": lambda: nn.Conv2d(16, 8, 3, padding=1),
    "two groups": lambda: nn.Conv2d(16, 8, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16),
    "one dimension": lambda: nn.Conv1d(16, 8, 3, padding=1, stride=2),
    "linear": lambda: nn.Linear(48, 8),
}
SHAPES = {"one dimension": (3, 16, 9), "linear": (3, 48)}


@exact_only
@pytest.mark.parametrize("saturates", [None, True])
@pytest.mark.parametrize("zero_point", [0, 128])
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_sums_are_exact(monkeypatch, kind, extreme, zero_point, saturates):
    """On this processor as it is (None), and with the halves that a processor without VNNI needs."""
    if saturates is not None:
        monkeypatch.setattr(kernels, "sums_saturate", lambda depthwise: saturates)
    layer, generator = LAYERS[kind](), torch.Generator().manual_seed(5)
    shape = SHAPES.get(kind, (3, 16, 6, 6))
    read = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    integers = torch.randint(-128, 128, layer.weight.shape, generator=generator).to(torch.int8)
    if extreme:
        read.fill_(255)
        integers.fill_(-128)
    prepared = PreparedWidth(integers, torch.ones(integers.shape[0]), None, 1.0)
    found = LayerKernel(layer)(Codes(read, Format(1.0, zero_point, 0, 255)), prepared, 8, None)
    layer.double().weight.data = integers.double()
    layer.bias.data.zero_()
    assert torch.equal(found.double(), layer(read.double() - zero_point))


@exact_only
def test_the_probe_finds_saturation(monkeypatch):
    def saturating(read, scale, zero_point, packed, *rest):
        return torch.full((1, 32, 5, 5), 1.0)

    monkeypatch.setattr(torch.ops.onednn, "qconv2d_pointwise", saturating)
    sums_saturate.cache_clear()
    try:
        assert sums_saturate(False) and sums_saturate(True)
    finally:
        sums_saturate.cache_clear()
