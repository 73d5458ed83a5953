"""Learned rounding and proxies for outputs that are no class scores, or have their classes elsewhere."""

import numpy as np
import pytest
import torch
from small_networks import OneBatchSize
from torch import nn

from amed_env import Precision, trace
from amed_env.datasets import Samples
from amed_env.evaluation.sensitivities import measure_sensitivity
from amed_env.quantization.learned_rounding import RoundingLearner
from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.recipe import Recipe

PRECISIONS = [Precision(3, 32), Precision(4, 32)]  # of weights alone: what they change is known exactly


def quantized(*layers, inputs):
    torch.manual_seed(0)
    network = nn.Sequential(*layers).eval()
    return QuantizedNetwork(trace(network, inputs[:2]), inputs, engine="float")


def outputs_at(network, bits, inputs):
    """With weights of this width and float activations, whose rounding cannot be learned away."""
    network.select(network.workload.uniform(bits, 32))
    return network(inputs)


def test_fisher_of_values_is_half_the_squared_error_over_their_variance():
    inputs = torch.randn(2_000, 12)
    network = quantized(nn.Linear(12, 5), inputs=inputs)
    found = measure_sensitivity(network, Samples(inputs, None), PRECISIONS, "fisher", 500, None)[0]
    exact = outputs_at(network, 32, inputs)
    for sensitivity, (bits, _) in zip(found, PRECISIONS, strict=True):
        rounded = inputs @ network.weighted["0"].prepared[bits].weight.t() + network.weighted["0"].layer.bias.detach()
        expected = 0.5 * float((rounded - exact).square().mean() / exact.var())
        assert sensitivity == pytest.approx(expected, rel=0.15)  # of 2,000 samples that are drawn


def test_fisher_of_tokens_is_their_mean_divergence():
    inputs = torch.randn(500, 6, 12)
    network = quantized(nn.Linear(12, 4), inputs=inputs)
    found = measure_sensitivity(network, Samples(inputs, None), PRECISIONS, "fisher", 500, 2)[0]
    exact = outputs_at(network, 32, inputs).log_softmax(2)
    for sensitivity, (bits, _) in zip(found, PRECISIONS, strict=True):
        rounded = inputs @ network.weighted["0"].prepared[bits].weight.t() + network.weighted["0"].layer.bias.detach()
        divergence = (exact.exp() * (exact - rounded.log_softmax(2))).sum(2).mean()
        assert sensitivity == pytest.approx(float(divergence), rel=0.25)  # its second-order term, estimated


@pytest.mark.parametrize(("axis", "classes", "part"), [(None, 2, 0.5), (2, 4, 0.95)])
def test_rounding_is_learned_from_values_and_from_tokens(axis, classes, part):
    generator = torch.Generator().manual_seed(1)
    calibration, fresh = (torch.randn(256, 5, 8, generator=generator) for _ in range(2))
    torch.manual_seed(0)
    layers = (nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, classes))
    with torch.no_grad():
        layers[-1].weight.mul_(8)  # classes that are told apart: random ones all are equally likely

    def error(network):
        exact, found = outputs_at(network, 32, fresh), outputs_at(network, 3, fresh)
        if axis is None:
            return float((found - exact).square().mean() / exact.var())
        exact = exact.log_softmax(axis)
        return float((exact.exp() * (exact - found.log_softmax(axis))).sum(axis).mean())

    nearest, learned = quantized(*layers, inputs=calibration), quantized(*layers, inputs=calibration)
    learner = RoundingLearner(learned, Recipe(steps=300, batch_size=32), calibration, class_axis=axis)
    learner.run()
    for name in learned.weighted:
        for bits, width in learner.results(name).items():
            learned.use(name, bits, width)
    assert error(learned) < part * error(nearest)


def test_calibration_of_a_network_of_one_batch_size_counts_no_copies():
    inputs = torch.randn(21, 4)
    network = QuantizedNetwork(trace(OneBatchSize(), inputs[:8]), inputs)
    assert network.fixed_batch == 8
    assert np.isclose(network.weighted["layer"].statistics.maximum, float(inputs[:16].max()))
    assert network(inputs[:5]).shape == (5, 3)
