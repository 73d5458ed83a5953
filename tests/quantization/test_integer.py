"""The integer engine computes what the fake-quantized float network computes.

Both agree to the last bit of the class scores, as both multiply the same integers, scale in the same order, and round
at the same place. What may differ is left to processors on which the kernels fuse other operations.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import SHAPES, Bottleneck, Concatenating, DeadChannel, LinearOnly, Residual, Twice, Unusual, make
from torch import nn
from traced import trace_equals_once as trace
from traced import traced_once

from amed_env import make_task
from amed_env.quantization import kernels
from amed_env.quantization.codes import Codes, Format, quantize
from amed_env.quantization.graph import find_graph
from amed_env.quantization.kernels import LayerKernel, Requantizer, integer_kernels_are_exact
from amed_env.quantization.layers import PreparedWidth, on_grid
from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.rounding import integer_range

exact_only = pytest.mark.skipif(not integer_kernels_are_exact(), reason="this machine has no exact integer kernels")


def random_allocation(workload, numbers, widths=(2, 3, 4, 5, 6, 7, 8)):
    drawn = numbers.choice(widths, (len(workload), 2))
    return workload.uniform(8).replace(
        {name: (int(w), int(a)) for name, (w, a) in zip(workload.layer_names, drawn, strict=True)}
    )


@exact_only
@pytest.mark.parametrize("kind", SHAPES)
def test_integers_equal_fake_quantization(kind):
    network, inputs = make(kind)
    traced = traced_once(kind, network, inputs)
    integers, floats = (QuantizedNetwork(traced, inputs, engine=engine) for engine in ("auto", "float"))
    numbers = np.random.default_rng(0)
    allocations = [traced.workload.uniform(bits) for bits in (2, 3, 4, 8)]
    total = differing = other_class = 0
    for allocation in [*allocations, *(random_allocation(traced.workload, numbers) for _ in range(25))]:
        integers.select(allocation)
        floats.select(allocation)
        assert integers.runs_on_integers and not floats.runs_on_integers
        one, two = integers(inputs), floats(inputs)
        total += len(inputs)
        differing += int((~torch.isclose(one, two, rtol=1e-6, atol=1e-6)).any(dim=1).sum())
        other_class += int((one.argmax(1) != two.argmax(1)).sum())
    assert differing <= 0.005 * total
    assert other_class <= 0.002 * total


@exact_only
def test_what_has_no_kernel_is_named():
    network, inputs = make(Unusual)
    quantized = QuantizedNetwork(traced_once(Unusual, network, inputs), inputs)
    quantized.select(quantized.workload.uniform(8))
    quantized(inputs)
    assert quantized.in_float == {"same": "padding 'same' that is not the same on both sides"}
    floats = QuantizedNetwork(traced_once(Unusual, network, inputs), inputs, engine="float")
    assert set(floats.in_float.values()) == {"float was asked for"}


@exact_only
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(32, 8), (8, 32), (16, 8), (4, 16)])
def test_wider_widths_run_in_float(weight_bits, activation_bits):
    network, inputs = make(Residual)
    quantized = QuantizedNetwork(traced_once(Residual, network, inputs), inputs)
    quantized.select(quantized.workload.uniform(8).replace({"b1": (weight_bits, activation_bits)}))
    assert not quantized.runs_on_integers
    assert torch.isfinite(quantized(inputs)).all()


def test_without_exact_kernels_everything_runs_in_float(monkeypatch):
    monkeypatch.setattr("amed_env.quantization.network.integer_kernels_are_exact", lambda: False)
    network, inputs = make(Residual)
    quantized = QuantizedNetwork(traced_once(Residual, network, inputs), inputs)
    quantized.select(quantized.workload.uniform(8))
    assert quantized.why_float == "this machine has no exact integer kernels"
    assert not quantized.runs_on_integers and torch.isfinite(quantized(inputs)).all()


def test_kernels_that_saturate_are_found_out(monkeypatch):
    def saturating(self, read, prepared, weight_bits, written, *rest):
        products = torch.nn.functional.conv2d(
            read.tensor.double() - read.format.zero_point, prepared.integers.double(), padding=1
        )
        return products.clamp(-(2**15), 2**15 - 1).float()

    monkeypatch.setattr(kernels.LayerKernel, "__call__", saturating)
    integer_kernels_are_exact.cache_clear()
    try:
        assert not integer_kernels_are_exact()
    finally:
        integer_kernels_are_exact.cache_clear()


def in_numpy(read, weight, bias, scales, written, low, high, addend, stride, padding, groups):
    """A convolution, its addition and its clamping by int64 and float64 alone."""
    values = read.tensor.numpy().astype(np.int64) - read.format.zero_point
    values = np.pad(values, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    out_channels, in_group, height, width = weight.shape
    rows = (values.shape[2] - height) // stride + 1
    columns = (values.shape[3] - width) // stride + 1
    total = np.zeros((len(values), out_channels, rows, columns), dtype=np.int64)
    for channel in range(out_channels):
        first = channel // (out_channels // groups) * in_group
        for source in range(in_group):
            for i in range(height):
                for j in range(width):
                    window = values[
                        :, first + source, i : i + stride * rows : stride, j : j + stride * columns : stride
                    ]
                    total[:, channel] += int(weight[channel, source, i, j]) * window[:, :rows, :columns]
    result = total * (read.format.scale * scales.numpy().astype(np.float64))[:, None, None]
    result += bias.numpy().astype(np.float64)[:, None, None]
    if addend is not None:
        result += (addend.tensor.numpy().astype(np.float64) - addend.format.zero_point) * addend.format.scale
    clamped = np.clip(result, low, high)
    return clamped, np.clip(np.rint(clamped / written.scale) + written.zero_point, written.low, written.high)


@exact_only
@pytest.mark.parametrize("unsigned_read", [False, True])
@pytest.mark.parametrize("unsigned_written", [False, True])
@pytest.mark.parametrize(("low", "high"), [(-np.inf, np.inf), (0.0, np.inf), (0.0, 6.0), (-1.0, 1.0)])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 2}, {"groups": 8}], ids=str)
def test_a_kernel_equals_arithmetic_in_numpy(unsigned_read, unsigned_written, low, high, adds, options):
    generator = torch.Generator().manual_seed(7)
    layer = nn.Conv2d(8, 8, 3, padding=1, **options)
    integers = torch.randint(-8, 8, layer.weight.shape, generator=generator).to(torch.int8)
    scales, bias = torch.rand(8, generator=generator) * 0.01 + 0.01, torch.randn(8, generator=generator)
    prepared = PreparedWidth(integers, scales, bias, 0.1)
    size = 9 if not options.get("stride") else 5

    def codes(scale, bits, unsigned, shape):
        form = Format.of(scale, bits, unsigned)
        return Codes(torch.randint(form.low, form.high + 1, shape, generator=generator).to(torch.uint8), form)

    read = codes(0.0371, 5, unsigned_read, (3, 8, 9, 9))
    addend = codes(0.0213, 8, not unsigned_read, (3, 8, size, size)) if adds else None
    written = Format.of(0.0997, 4, unsigned_written)
    found = LayerKernel(layer)(read, prepared, 4, written, low, high, addend)
    values, expected = in_numpy(
        read, integers, bias, scales, written, low, high, addend, layer.stride[0], 1, layer.groups
    )
    # Values in the middle between two codes may go to either; all others may not.
    between = np.abs(np.abs(values / written.scale % 1) - 0.5) < 1e-4
    assert (found.numpy() == expected)[~between].all()
    assert between.mean() < 0.01 or high == 1.0


@exact_only
@pytest.mark.parametrize("unsigned", [False, True])
def test_values_just_beside_the_middle_between_two_codes_are_rounded_alike(unsigned):
    """The zero point of signed codes is added before rounding, and costs the fraction a few bits."""
    written = Format.of(0.12426376342773438, 8, unsigned)
    generator = torch.Generator().manual_seed(3)
    middles = (torch.randint(0, 100, (4096,), generator=generator) + 0.5) * written.scale
    values = middles * (1 + torch.randint(-6, 7, (4096,), generator=generator) * 2.0**-24)
    layer = nn.Conv2d(1, 4096, 1)
    prepared = PreparedWidth(torch.zeros(4096, 1, 1, 1, dtype=torch.int8), torch.ones(4096), values, 1.0)
    read = Codes(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), Format.of(1.0, 8, True))
    found = LayerKernel(layer)(read, prepared, 8, written).int() - written.zero_point
    expected = on_grid(values, written.scale, *integer_range(8, unsigned)).int()
    assert torch.equal(found.flatten(), expected)
    assert torch.equal(quantize(values, written).tensor.int() - written.zero_point, expected)
    nearest = torch.round(values.double() / written.scale).int()
    assert unsigned == bool((nearest == expected).float().mean() > 0.9)  # it is not what exact arithmetic gives


@exact_only
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("ratio", [1.0, 2.0, 3.7, 0.5, 16.0])
def test_codes_are_rounded_again_as_floats_are(bits, unsigned, ratio):
    read, written = Format.of(0.03125, 8, unsigned), Format.of(0.03125 * ratio, bits, unsigned)
    codes = Codes(torch.arange(256, dtype=torch.uint8).reshape(1, 4, 8, 8), read)
    found = Requantizer()(codes, written)
    expected = np.rint((np.arange(256) - read.zero_point) / ratio) + written.zero_point
    assert found.format == written
    np.testing.assert_array_equal(found.tensor.numpy().ravel(), np.clip(expected, written.low, written.high))


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_format_has_the_codes_of_its_width(bits, unsigned):
    form = Format.of(0.5, bits, unsigned)
    assert form.high - form.low == 2**bits - 1
    values = torch.linspace(-300, 300, 4001)
    codes = quantize(values, form)
    assert int(codes.tensor.min()) == form.low and int(codes.tensor.max()) == form.high
    inside = (values >= codes.values().min()) & (values <= codes.values().max())
    assert float((codes.values() - values)[inside].abs().max()) <= 0.25 + 1e-6


def groups_of(kind):
    network, inputs = make(kind)
    traced = trace(network, inputs[:1])
    layers = {name: traced.module.get_submodule(name) for name in traced.workload.layer_names}
    return find_graph(traced.module, layers, inputs[:2])


def stored_after(graph):
    return {
        group.layer
        for group in graph.groups.values()
        if any("stored" in str(user.target) for user in group.output.users)
    }


def test_groups_of_a_residual_network():
    graph = groups_of(Residual)
    groups = {group.layer: group for group in graph.groups.values()}
    assert [name for name, group in groups.items() if group.addition is not None] == ["a2", "projection", "c1"]
    assert all(group.low == 0 and group.high == np.inf for name, group in groups.items() if name not in ("head", "b2"))
    # Kept at 8 bits: what enters blocks, and what is added to another layer's sums.
    assert stored_after(graph) == {"stem", "a2", "b2", "projection"}


def test_a_result_with_one_reader_is_not_stored():
    assert stored_after(groups_of(Bottleneck)) == {"stem"}
    assert stored_after(groups_of(Concatenating)) == {"grouped"}
    assert stored_after(groups_of(LinearOnly)) == {"first"}
    groups = {group.layer: group for group in groups_of(Bottleneck).groups.values()}
    assert (groups["depthwise"].low, groups["depthwise"].high) == (0.0, 6.0)


def test_a_layer_that_is_called_twice_has_two_groups():
    graph = groups_of(Twice)
    assert [group.layer for group in graph.groups.values()] == ["conv", "conv", "head"]


def test_the_graph_computes_what_the_network_does():
    for kind in SHAPES:
        network, inputs = make(kind)
        expected = network(inputs).detach()
        graph = groups_of(kind)
        torch.testing.assert_close(graph.module(inputs).detach(), expected, rtol=1e-4, atol=1e-5)


class AddsInPlaceToWhatIsReadLater(nn.Module):
    """The tensor that is read later has changed in the meantime, through another name."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        y = self.first(x)
        z = y.add_(x)
        return self.second(y) + z[:, :3] * 0


class AsksWhatItIsGiven(nn.Module):
    """What it is given decides about what it computes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        scores = self.layer(x)
        return scores * 2 if isinstance(scores, torch.Tensor) else scores


@exact_only
@pytest.mark.parametrize("kind", [AddsInPlaceToWhatIsReadLater, AsksWhatItIsGiven])
def test_what_runs_is_what_counts(kind):
    torch.manual_seed(0)
    inputs = torch.randn(16, 4)
    network = kind().eval()
    expected = network(inputs).detach()
    quantized = QuantizedNetwork(trace(network, inputs[:1]), inputs)
    assert quantized.why_float is None
    quantized.select(quantized.workload.uniform(8))
    torch.testing.assert_close(quantized(inputs), expected, rtol=0, atol=0.1)


def test_dead_channels_make_no_nan():
    network, inputs = make(DeadChannel)
    quantized = QuantizedNetwork(traced_once(DeadChannel, network, inputs), inputs)
    for bits in (2, 8, 16):
        quantized.select(quantized.workload.uniform(bits))
        assert torch.isfinite(quantized(inputs)).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integer_biases_count_in_both_scales(bits):
    """Against a task whose float biases were rounded beforehand, by numpy, to what 32-bit integers can say."""
    plain, whole = (make_task("digits-cnn", recipe="nearest", threads=1, bias=bias) for bias in ("float", "int32"))
    allocation = plain.uniform(bits)
    network = plain.evaluator.network
    network.prepare_all(allocation)
    moved = 0.0
    for name, layer in network.weighted.items():
        prepared = layer.prepared[bits]
        units = prepared.scales.numpy().astype(np.float64) * prepared.activation_scale
        rounded = np.rint(prepared.bias.numpy() / units) * units
        moved = max(moved, float(np.abs(rounded - prepared.bias.numpy()).max()))
        network.use(name, bits, replace(prepared, bias=torch.from_numpy(rounded.astype(np.float32))))
    assert moved > 0
    inputs = plain.evaluator.samples("search").inputs[:50]
    for one in (network, whole.evaluator.network):
        one.select(allocation)
    np.testing.assert_array_equal(network(inputs).numpy(), whole.evaluator.network(inputs).numpy())
    np.testing.assert_array_equal(network.run_in_float(inputs), whole.evaluator.network.run_in_float(inputs))
    together = whole.evaluator.network.run_together([allocation], inputs)[0]
    np.testing.assert_allclose(together.numpy(), network.run_in_float(inputs).numpy(), rtol=1e-5, atol=1e-5)
    assert whole.evaluator.fingerprint != make_task("digits-cnn", recipe="nearest").evaluator.fingerprint
