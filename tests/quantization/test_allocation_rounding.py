"""Rounding solved for one allocation: nearer to the float network at that allocation, and only there."""

import pytest
import torch
from networks import LinearOnly, Residual, Twice, Unusual, make
from torch import nn
from torch.nn import functional as F
from traced import trace_equals_once as trace
from traced import traced_once

from amed_env.datasets.digits import digits_splits
from amed_env.networks import pretrained_digits_cnn
from amed_env.problem.allocation import BitAllocation
from amed_env.quantization import allocation_rounding
from amed_env.quantization.allocation_rounding import solved_for
from amed_env.quantization.layerwise import solved_widths
from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.recipe import LEARNED_WIDTHS
from amed_env.quantization.rounding import integer_range


@pytest.fixture(scope="module")
def digits():
    splits = digits_splits()
    network = QuantizedNetwork(
        traced_once("digits", pretrained_digits_cnn(), splits.search.inputs[:2]), splits.calibration.inputs
    )
    return network, splits


def divergence(network, allocation, inputs):
    outputs = []
    for chosen in (network.workload.uniform(32), allocation):
        network.select(chosen)
        outputs.append(F.log_softmax(network(inputs), dim=1))
    exact, found = outputs
    return float(F.kl_div(found, exact, log_target=True, reduction="batchmean"))


def mixed(workload, widths=(2, 3, 4, 8)):
    return BitAllocation({name: (widths[i % len(widths)],) * 2 for i, name in enumerate(workload.layer_names)})


def with_widths(network, widths, allocation, inputs):
    with network.restored():
        for (name, bits), width in widths.items():
            network.use(name, bits, width)
        return divergence(network, allocation, inputs)


@pytest.mark.parametrize("kind", ["2", "3", "mixed"])
def test_it_is_nearer_to_the_float_network_on_new_images(digits, kind):
    network, splits = digits
    allocation = mixed(network.workload) if kind == "mixed" else network.workload.uniform(int(kind))
    calibration, new = splits.calibration.inputs, splits.search.inputs
    one_by_one = with_widths(network, solved_widths(network, calibration), allocation, new)
    for_it = with_widths(network, solved_for(network, allocation, calibration), allocation, new)
    assert for_it < 0.7 * one_by_one


def test_it_is_for_that_allocation_only(digits):
    network, splits = digits
    calibration, new = splits.calibration.inputs, splits.search.inputs
    narrow = network.workload.uniform(2)
    # The same widths of weights, but what the layers before lost by 2-bit activations is not lost here.
    other = BitAllocation(dict.fromkeys(network.workload.layer_names, (2, 8)))
    for_narrow = solved_for(network, narrow, calibration)
    for_other = solved_for(network, other, calibration)
    assert with_widths(network, for_narrow, other, new) > 1.5 * with_widths(network, for_other, other, new)
    assert with_widths(network, for_other, narrow, new) > 1.1 * with_widths(network, for_narrow, narrow, new)


def test_inputs_of_another_kind_do_not_help(digits):
    network, splits = digits
    allocation = network.workload.uniform(2)
    calibration, new = splits.calibration.inputs, splits.search.inputs
    noise = torch.rand(calibration.shape, generator=torch.Generator().manual_seed(0))
    right = with_widths(network, solved_for(network, allocation, calibration), allocation, new)
    assert with_widths(network, solved_for(network, allocation, noise), allocation, new) > 2 * right


@pytest.mark.parametrize("bits", [(2, 2), (3, 8), (4, 32)])
@pytest.mark.parametrize("layer", [nn.Linear(12, 5), nn.Linear(12, 5, bias=False)])
def test_means_of_outputs_are_those_of_the_float_layer(bits, layer):
    inputs = torch.randn(400, 12, generator=torch.Generator().manual_seed(1)) + 0.5
    network = QuantizedNetwork(trace(nn.Sequential(layer), inputs[:2], "one"), inputs)
    (name,) = network.workload.layer_names
    allocation = BitAllocation({name: bits})
    inputs = inputs[: allocation_rounding.MOMENT_SAMPLES]
    for (_, width), found in solved_for(network, allocation, inputs).items():
        network.use(name, width, found)
    network.select(allocation)
    torch.testing.assert_close(network(inputs).mean(dim=0), layer(inputs).mean(dim=0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [Residual, Unusual, Twice, LinearOnly])
def test_networks_of_all_kinds_are_solved_and_left_as_they_were(kind):
    module, inputs = make(kind, 64)
    network = QuantizedNetwork(traced_once(kind, module, inputs), inputs)
    allocation = mixed(network.workload)
    network.select(allocation)
    before, settings = network(inputs), {name: dict(layer.prepared) for name, layer in network.weighted.items()}
    widths = solved_for(network, allocation, inputs)
    assert {name: dict(layer.prepared) for name, layer in network.weighted.items()} == settings
    network.select(allocation)
    assert torch.equal(network(inputs), before)
    for (name, bits), prepared in widths.items():
        low, _ = integer_range(bits, unsigned=False)
        assert bits == allocation[name].weight_bits and bits in LEARNED_WIDTHS
        assert prepared.integers.shape == network.weighted[name].layer.weight.shape
        rows = prepared.integers.flatten(1).int()
        assert int(rows.min()) >= low and int(rows.max()) <= -low
        assert prepared.activation_scale == network.weighted[name].prepared[bits].activation_scale


def test_layers_that_are_called_twice_stay_as_they_are():
    module, inputs = make(Twice, 64)
    network = QuantizedNetwork(traced_once(Twice, module, inputs), inputs)
    calls = [node.target for node in network.module.graph.nodes if node.op == "call_module"]
    twice = {name for name in network.workload.layer_names if calls.count(name) > 1}
    solved = {name for name, _ in solved_for(network, network.workload.uniform(3), inputs)}
    assert twice and not solved & twice


def test_large_networks_take_fewer_samples(monkeypatch, digits):
    network, splits = digits
    monkeypatch.setattr(allocation_rounding, "_MOST_BYTES", 0)
    widths = solved_for(network, network.workload.uniform(2), splits.calibration.inputs)
    assert all(bool(prepared.scales.isfinite().all()) for prepared in widths.values())
