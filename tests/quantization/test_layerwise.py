"""Rounding solved layer by layer, against the least squares that define it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import LinearOnly, Residual, Twice, Unusual, make
from torch import nn
from torch.nn import functional as F
from traced import trace_equals_once as trace
from traced import traced_once

from amed_env.datasets.digits import digits_splits
from amed_env.networks import pretrained_digits_cnn
from amed_env.quantization import layerwise
from amed_env.quantization.layerwise import DAMPING, input_moments, solved_positions, solved_widths
from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.ranges import quantize_weight
from amed_env.quantization.recipe import LEARNED_WIDTHS, RECIPES, Recipe
from amed_env.quantization.rounding import integer_range


def network_of(layer, inputs):
    """A network of one layer that is quantized."""
    module = nn.Sequential(layer)
    return QuantizedNetwork(trace(module, inputs[:1], "one"), inputs)


def only_layer(network):
    (layer,) = network.weighted.values()
    return layer


def positions_by_least_squares(weight, moments, scales, bits):
    """Each weight in turn, in the order of the largest moments: the best value given all that were rounded before."""
    low, high = integer_range(bits, unsigned=False)
    moments = moments + DAMPING * np.diag(moments).mean() * np.eye(len(moments))
    order = np.argsort(-np.diag(moments), kind="stable")
    positions = np.zeros_like(weight)
    for row in range(len(weight)):
        error = np.zeros(weight.shape[1])  # of what is rounded
        for place, column in enumerate(order):
            done, rest = order[:place], order[place:]
            shift = -np.linalg.solve(moments[np.ix_(rest, rest)], moments[np.ix_(rest, done)] @ error[done])
            position = (weight[row, column] + shift[0]) / scales[row]
            positions[row, column] = position
            error[column] = np.clip(np.round(position), low, high) * scales[row] - weight[row, column]
    return positions


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 7), st.sampled_from([(3, 5), (2, 9), (4, 1)]))
def test_positions_are_those_of_least_squares(seed, bits, shape):
    generator = torch.Generator().manual_seed(seed)
    rows, length = shape
    mixing = torch.randn(length, length, generator=generator)
    inputs = torch.randn(64, length, generator=generator) @ mixing
    layer = nn.Linear(length, rows)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(rows, length, generator=generator))
    moments = (inputs.T @ inputs)[None]
    found = solved_positions(layer.weight.detach(), moments, (bits,))[bits]
    _, scales = quantize_weight(layer.weight.detach(), bits)
    expected = positions_by_least_squares(
        layer.weight.detach().double().numpy(), moments[0].double().numpy(), scales.double().flatten().numpy(), bits
    )
    assert found.numpy() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_inputs_that_have_nothing_in_common_leave_weights_where_they_are():
    layer = nn.Conv2d(3, 4, 3)
    found = solved_positions(layer.weight.detach(), torch.diag(torch.linspace(1, 5, 27))[None], LEARNED_WIDTHS)
    for bits in LEARNED_WIDTHS:
        _, scales = quantize_weight(layer.weight.detach(), bits)
        torch.testing.assert_close(found[bits], layer.weight.detach() / scales)


LAYERS = {
    "linear": (lambda: nn.Linear(6, 3), (10, 6)),
    "linear on tokens": (lambda: nn.Linear(6, 3), (10, 4, 6)),
    "padded": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2), (10, 4, 7, 7)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, padding=(0, 2), groups=2, dilation=2), (10, 4, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (10, 4, 7, 7)),
    "same": (lambda: nn.Conv2d(4, 6, (2, 3), padding="same"), (10, 4, 7, 7)),
    "one dimension": (lambda: nn.Conv1d(4, 6, 3, padding=2, stride=2, dilation=2), (10, 4, 9)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_moments_give_the_squares_of_the_layers_outputs(monkeypatch, kind):
    """For any weights v of a row, v' M v is the sum of the squares of what the layer would return with them."""
    monkeypatch.setattr(layerwise, "POSITIONS_PER_WEIGHT", 10_000)
    make_layer, shape = LAYERS[kind]
    layer, inputs = make_layer(), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    network = network_of(layer, inputs)
    (moments,) = input_moments(network, inputs).values()
    quantized = only_layer(network)
    weight = quantized.layer.weight.detach()
    outputs = quantized.compute(inputs, weight, None)
    channel = outputs.dim() - 1 if isinstance(layer, nn.Linear) else 1
    squares = outputs.square().sum(dim=[axis for axis in range(outputs.dim()) if axis != channel])
    rows = weight.reshape(len(moments), -1, moments.shape[1])
    found = torch.einsum("gok,gkl,gol->go", rows, moments, rows).flatten()
    torch.testing.assert_close(found, squares, rtol=1e-4, atol=1e-4)


def test_moments_of_some_positions_are_those_of_all_but_for_their_number():
    inputs = torch.randn(64, 4, 24, 24, generator=torch.Generator().manual_seed(2))
    network = network_of(nn.Conv2d(4, 6, 3), inputs)
    (some,) = input_moments(network, inputs).values()
    patches = F.unfold(inputs, 3).transpose(0, 1).reshape(36, -1)
    share = float(some[0].trace() / patches.square().sum())
    assert 0.01 < share < 0.2
    torch.testing.assert_close(some[0] / share, patches @ patches.T, rtol=0, atol=0.25 * patches.shape[1])


@pytest.mark.parametrize("kind", [Residual, Unusual, Twice, LinearOnly])
def test_networks_of_all_kinds_are_solved(kind):
    network, inputs = make(kind, 64)
    quantized = QuantizedNetwork(traced_once(kind, network, inputs), inputs)
    widths = solved_widths(quantized, inputs)
    assert widths
    for (name, bits), prepared in widths.items():
        low, high = integer_range(bits, unsigned=False)
        rows = prepared.integers.flatten(1).int()
        assert prepared.integers.shape == quantized.weighted[name].layer.weight.shape
        # A row may have its one step more on either side, not on both.
        assert int(rows.min()) >= low and int(rows.max()) <= -low
        assert (rows.amax(dim=1) - rows.amin(dim=1)).max() <= high - low


def test_inputs_that_are_always_zero_do_no_harm():
    inputs = torch.randn(64, 8)
    inputs[:, 2:5] = 0
    layer = nn.Linear(8, 3)
    widths = solved_widths(network_of(layer, inputs), inputs)
    for (_, bits), prepared in widths.items():
        nearest, scales = quantize_weight(layer.weight.detach(), bits)
        assert torch.equal(prepared.integers[:, 2:5].float(), (nearest * scales.sign())[:, 2:5])


@pytest.fixture(scope="module")
def digits():
    return trace(pretrained_digits_cnn(), torch.zeros(1, 1, 8, 8), "digits"), digits_splits()


def divergences(traced, splits, calibration):
    """Of uniform allocations from the float network on images that were not used: nearest, then solved."""
    network = QuantizedNetwork(traced, splits.calibration.inputs)
    with torch.no_grad():
        exact = F.log_softmax(traced.module(splits.search.inputs), 1)

    def of(bits):
        network.select(network.workload.uniform(bits))
        found = F.log_softmax(network(splits.search.inputs), 1)
        return float(F.kl_div(found, exact, log_target=True, reduction="batchmean"))

    before = [of(bits) for bits in LEARNED_WIDTHS]
    for (name, bits), width in solved_widths(network, calibration).items():
        network.use(name, bits, width)
    return before, [of(bits) for bits in LEARNED_WIDTHS]


def test_a_solved_network_is_nearer_to_the_float_one_on_new_images(digits):
    traced, splits = digits
    before, after = divergences(traced, splits, splits.calibration.inputs)
    assert all(solved < 0.8 * nearest for solved, nearest in zip(after, before, strict=True))


def test_inputs_of_another_kind_do_not_help(digits):
    """The negative control: what is won comes from what the layers read."""
    traced, splits = digits
    noise = torch.rand(splits.calibration.inputs.shape, generator=torch.Generator().manual_seed(0))
    _, of_noise = divergences(traced, splits, 10 * (noise > 0.95).float())
    _, of_images = divergences(traced, splits, splits.calibration.inputs)
    assert sum(of_images) < 0.8 * sum(of_noise)


def test_recipes_of_earlier_versions_keep_their_names():
    assert RECIPES["network"].fingerprint() == (
        "recipe/2 [('batch_size', 64), ('bias_correction', False), ('equalize', False), ('learn_scales', True), "
        "('learning_rate', 0.03), ('rounding', 'network'), ('steps', 3000)] (2, 3, 4)"
    )
    assert RECIPES["nearest"].fingerprint() == (
        "recipe/2 [('bias_correction', False), ('equalize', False), ('rounding', 'nearest')] "
    )
    assert Recipe(rounding="nearest", start="solved").fingerprint() != RECIPES["nearest"].fingerprint()
    assert Recipe(scale_rate=1e-2).fingerprint() != RECIPES["network"].fingerprint()
