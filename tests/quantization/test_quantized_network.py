import numpy as np
import pytest
import torch
from torch import nn
from traced import traced_once

from amed_env import BitAllocation, trace
from amed_env.errors import AllocationError, DataError, NonFiniteError, UnsupportedPrecisionError
from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.rounding import SUPPORTED_BITS, integer_range


class TwoLayers(nn.Module):
    """A convolution, optionally depthwise, whose output may stay signed, and class scores."""

    def __init__(self, groups=1, relu=True, **options):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, groups=groups, padding=1, **options)
        self.activation = nn.ReLU() if relu else nn.Identity()
        self.head = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.head(self.activation(self.conv(inputs)).mean(dim=(2, 3)))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(network=None, inputs=None, **options):
    torch.manual_seed(0)
    inputs = normal(16, 4, 6, 6) if inputs is None else inputs
    if network is None:
        network = TwoLayers(**options).eval()
        traced = traced_once(("two layers", *sorted(options.items())), network, inputs)
    else:
        traced = trace(network.eval(), inputs[:1])
    return network, QuantizedNetwork(traced, inputs), inputs


def layer_calls(quantized, inputs, allocation):
    """What every layer reads and writes in one pass."""
    seen = {}
    handles = [
        quantized.module.get_submodule(name).register_forward_hook(
            lambda _, read, written, name=name: seen.__setitem__(name, (read[0].clone(), written.clone()))
        )
        for name in allocation
    ]
    quantized.select(allocation)
    quantized(inputs)
    for handle in handles:
        handle.remove()
    return seen


def integers_and_scale(values, limits):
    """Undo quantization: the scale is found from the distinct values alone."""
    distinct = np.unique(np.abs(values[values != 0]))
    for steps in range(1, max(map(abs, limits)) + 1):
        scale = distinct.min() / steps
        if np.allclose(distinct / scale, np.rint(distinct / scale), rtol=0, atol=2e-3):
            return np.rint(values / scale).astype(np.int64), scale
    raise AssertionError("these values lie on no grid")


@pytest.mark.parametrize("options", [{}, {"groups": 4}, {"groups": 2, "bias": False}, {"padding_mode": "reflect"}])
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(2, 8), (3, 3), (4, 2), (8, 8)])
def test_a_convolution_equals_integer_arithmetic(options, weight_bits, activation_bits):
    """Integers are multiplied and added in int64; only then scales and bias follow, in float64."""
    network, quantized, inputs = make(**options)
    allocation = BitAllocation({"conv": (weight_bits, activation_bits), "head": (32, 32)})
    read, written = layer_calls(quantized, inputs, allocation)["conv"]

    statistics = quantized.module.conv.statistics
    low, high = integer_range(activation_bits, unsigned=False)
    scale = statistics.scale(activation_bits)
    activations = np.clip(np.rint(read.numpy() / np.float32(scale)), low, high).astype(np.int64)

    weight = quantized.module.conv.prepared[weight_bits].weight.double().numpy()
    limits = integer_range(weight_bits, unsigned=False)
    parts = [integers_and_scale(channel, limits) for channel in weight]
    weights = np.stack([part[0] for part in parts])
    assert np.abs(weights).max() <= -limits[0]

    # Padding other than with zeros is an operation of its own, before the layer.
    reads_padded = "padding_mode" in options
    padded = activations if reads_padded else np.pad(activations, ((0, 0), (0, 0), (1, 1), (1, 1)))
    groups = options.get("groups", 1)
    size = 4 // groups
    expected = np.empty(written.shape)
    for channel in range(4):
        first = channel // size * size
        total = np.zeros((len(inputs), 6, 6), dtype=np.int64)
        for source in range(size):
            for row in range(3):
                for column in range(3):
                    window = padded[:, first + source, row : row + 6, column : column + 6]
                    total += weights[channel, source, row, column] * window
        expected[:, channel] = total * parts[channel][1] * scale
        if network.conv.bias is not None:
            expected[:, channel] += network.conv.bias[channel].item()
    np.testing.assert_allclose(written.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_32_bits_are_the_float_network():
    network, quantized, inputs = make()
    quantized.select(BitAllocation.uniform(["conv", "head"], 4))
    quantized.select(BitAllocation.uniform(["conv", "head"], 32))
    with torch.no_grad():
        torch.testing.assert_close(quantized(inputs), network(inputs), rtol=1e-5, atol=1e-5)


def test_16_bits_are_close_to_float_and_two_bits_are_not():
    network, quantized, inputs = make()
    with torch.no_grad():
        exact = network(inputs)
    distance = {}
    for bits in (16, 8, 4, 2):
        quantized.select(BitAllocation.uniform(["conv", "head"], bits))
        distance[bits] = float((quantized(inputs) - exact).abs().max())
    assert distance[16] < 1e-3 < distance[8] < distance[4] < distance[2]


@pytest.mark.parametrize("bits", [bits for bits in SUPPORTED_BITS if bits < 32])
def test_every_width_uses_at_most_its_levels(bits):
    _, quantized, inputs = make()
    quantized.select(BitAllocation.uniform(["conv", "head"], bits))
    weight = quantized.module.conv.prepared[bits].weight
    assert torch.isfinite(quantized(inputs)).all()
    assert all(len(channel.unique()) <= 2**bits for channel in weight)


@pytest.mark.parametrize("relu", [True, False])
def test_signed_where_negative_values_were_seen(relu):
    _, quantized, _ = make(relu=relu)
    assert not quantized.module.conv.statistics.unsigned  # the input is signed
    assert quantized.module.head.statistics.unsigned is relu


class Reader(nn.Module):
    """Shows what its layer makes of the input: the weights are the identity."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8, bias=False)
        self.fc.weight.data = torch.eye(8)

    def forward(self, inputs):
        return self.fc(inputs)


def test_signed_inputs_are_not_clipped_at_zero():
    inputs = normal(64, 8)
    _, quantized, _ = make(Reader(), inputs)
    quantized.select(BitAllocation({"fc": (32, 4)}))
    assert quantized(torch.full((1, 8), -1.0)).max() < -0.7
    assert len(quantized(inputs).unique()) <= 16


def test_inputs_that_are_never_negative_use_all_levels():
    inputs = normal(512, 8).abs()
    _, quantized, _ = make(Reader(), inputs)
    quantized.select(BitAllocation({"fc": (32, 2)}))
    found = quantized(inputs).unique()
    assert len(found) == 4
    assert found.min() == 0


def test_ranges_come_from_the_calibration_samples_alone():
    inputs = normal(64, 8)
    _, quantized, _ = make(Reader(), inputs)
    quantized.select(BitAllocation({"fc": (32, 8)}))
    largest = inputs.abs().max()
    assert quantized(torch.full((1, 8), 1000.0)).max() <= largest * 1.05


def test_activations_that_are_all_zero():
    _, quantized, _ = make(Reader(), torch.zeros(4, 8))
    for bits in (2, 8, 16):
        quantized.select(BitAllocation.uniform(["fc"], bits))
        assert not quantized(torch.zeros(1, 8)).any()


def test_order_of_selection_changes_nothing():
    _, first, inputs = make()
    _, second, _ = make()
    two, eight = (BitAllocation.uniform(["conv", "head"], bits) for bits in (2, 8))
    first.prepare([8, 2])
    first.select(two)
    second.select(eight)
    second.select(two)
    assert torch.equal(first(inputs), second(inputs))


def test_the_callers_network_is_not_changed():
    network, quantized, inputs = make()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    quantized.select(BitAllocation.uniform(["conv", "head"], 2))
    quantized(inputs)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert type(network.conv) is nn.Conv2d


class SharedUnderTwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, inputs):
        return self.second(input=torch.relu(self.first(inputs)))


def test_a_layer_with_two_names_is_quantized_in_both_places():
    network = SharedUnderTwoNames()
    _, quantized, inputs = make(network, normal(8, 4))
    (name,) = quantized.workload.layer_names
    quantized.select(BitAllocation({name: (2, 32)}))
    weight, bias = quantized.layers[name].prepared[2].weight, network.first.bias
    hidden = torch.relu(nn.functional.linear(inputs, weight, bias))
    expected = nn.functional.linear(hidden, weight, bias).detach()
    torch.testing.assert_close(quantized(inputs), expected, rtol=1e-5, atol=1e-6)


def test_conv1d_and_a_single_layer():
    network = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    _, quantized, inputs = make(network, normal(8, 2, 6))
    quantized.select(quantized.workload.uniform(8))
    torch.testing.assert_close(quantized(inputs), network(inputs).detach(), rtol=0, atol=0.1)
    _, quantized, inputs = make(nn.Linear(4, 2), normal(8, 4))
    quantized.select(quantized.workload.uniform(8))
    assert quantized(inputs).shape == (8, 2)


def test_what_does_not_fit_is_named():
    _, quantized, _ = make()
    with pytest.raises(AllocationError, match=r"it lacks 'head' and it has the unknown 'fc'"):
        quantized.select(BitAllocation.uniform(["conv", "fc"], 8))
    with pytest.raises(UnsupportedPrecisionError, match="layer 'conv': cannot quantize to 1 bits"):
        quantized.select(BitAllocation.uniform(["conv", "head"], 1))


def test_calibration_needs_samples_and_numbers():
    network = TwoLayers().eval()
    traced = trace(network, torch.zeros(1, 4, 6, 6))
    with pytest.raises(DataError, match="at least one sample"):
        QuantizedNetwork(traced, torch.zeros(0, 4, 6, 6))
    with pytest.raises(NonFiniteError, match="layer 'conv' reads NaN"):
        QuantizedNetwork(traced, torch.full((2, 4, 6, 6), float("nan")))
    traced.module.conv.weight.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match="layer 'conv' has NaN or infinite weights"):
        QuantizedNetwork(traced, torch.zeros(2, 4, 6, 6))
