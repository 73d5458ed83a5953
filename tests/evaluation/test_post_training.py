import math

import numpy as np
import pytest
import torch
from torch import nn

from amed_env import BitAllocation, Precision, Quality, trace
from amed_env.datasets import Samples, Splits
from amed_env.errors import AllocationError, DataError, InputError, NonFiniteError, UnsupportedPrecisionError
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.quantization.ranges import quantize_weight
from amed_env.quantization.statistics import ActivationStatistics


class Tiny(nn.Module):
    """Two linear layers whose weights are drawn once."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def forward(self, inputs):
        return self.second(torch.relu(self.first(inputs)))


def part(count, seed, classes=3, name="part", **changes):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=generator)
    labels = torch.arange(count) % classes
    return Samples(changes.get("inputs", inputs), changes.get("labels", labels), name)


def splits(**changes):
    parts = {"calibration": part(40, 1), "search": part(61, 2), "test": part(50, 3), **changes}
    return Splits(**parts)


def evaluator_of(network=None, batch_size=16, **changes):
    network = Tiny() if network is None else network
    found = splits(**changes)
    return PostTrainingEvaluator(
        trace(network, found.calibration.inputs[:1], "tiny"), found, "nearest", batch_size=batch_size
    )


@pytest.fixture(scope="module")
def evaluator():
    return evaluator_of()


UNIFORM = {bits: BitAllocation.uniform(["first", "second"], bits) for bits in (2, 3, 4, 8, 16, 32)}


@pytest.mark.parametrize("split", ["search", "test"])
def test_at_32_bits_it_is_plain_torch(evaluator, split):
    samples = getattr(splits(), split)
    with torch.no_grad():
        scores = Tiny()(samples.inputs)
    expected = nn.functional.cross_entropy(scores, samples.labels).item()
    found = evaluator.evaluate(UNIFORM[32], split)
    assert found.correct == int((scores.argmax(1) == samples.labels).sum())
    assert found.samples == len(samples)
    assert found.accuracy == found.correct / len(samples)
    assert found.loss == pytest.approx(expected, rel=1e-5)


def test_search_is_the_default_split(evaluator):
    assert evaluator.evaluate(UNIFORM[4]) == evaluator.evaluate(UNIFORM[4], "search")
    assert evaluator.evaluate(UNIFORM[4]).samples == 61


def test_evaluations_leave_no_trace(evaluator):
    mixed = BitAllocation({"first": (2, 8), "second": (8, 2)})
    first = evaluator.evaluate(UNIFORM[3])
    second = evaluator.evaluate(mixed)
    evaluator.predicted_loss([Precision(2, 2)])
    assert evaluator.evaluate(UNIFORM[3]) == first
    assert evaluator.evaluate(mixed, "test") is not None
    assert evaluator.evaluate(mixed) == second
    assert evaluator_of().evaluate(mixed) == second
    assert first != second


@pytest.mark.parametrize("batch_size", [1, 7, 61, 1000])
def test_the_batch_size_changes_no_answer(evaluator, batch_size):
    other = evaluator_of(batch_size=batch_size)
    found, expected = other.evaluate(UNIFORM[32]), evaluator.evaluate(UNIFORM[32])
    assert found.correct == expected.correct
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


def test_layers_in_another_order_are_the_same_allocation(evaluator):
    backward = BitAllocation({"second": (4, 4), "first": (2, 2)})
    forward = BitAllocation({"first": (2, 2), "second": (4, 4)})
    assert evaluator.evaluate(backward) == evaluator.evaluate(forward)


def by_numpy(inputs, calibration, precisions):
    """Log-probabilities of the tiny network; scales are taken from the library, all the rest is worked out here."""
    network = Tiny()

    def layer(linear, values, calibrated, precision):
        weight = linear.weight.detach()
        if precision.weight_bits < 32:
            integers, scales = quantize_weight(weight, precision.weight_bits)
            weight = integers * scales
        weight, bias = weight.double().numpy(), linear.bias.detach().double().numpy()
        if precision.activation_bits < 32:
            statistics = ActivationStatistics()
            statistics.update(torch.tensor(calibrated, dtype=torch.float32), 1.0)
            scale = statistics.scale(precision.activation_bits)
            top = 2**precision.activation_bits
            low, high = (0, top - 1) if calibrated.min() >= 0 else (-top // 2, top // 2 - 1)
            values = np.clip(np.rint(values / scale), low, high) * scale
        return values @ weight.T + bias

    exact = Precision(32, 32)
    hidden = np.maximum(layer(network.first, calibration, calibration, exact), 0)
    found = np.maximum(layer(network.first, inputs, calibration, precisions[0]), 0)
    scores = layer(network.second, found, hidden, precisions[1])
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def test_predicted_loss_is_the_divergence_of_one_layer_alone(evaluator):
    precisions = [
        Precision(2, 2),
        Precision(3, 8),
        Precision(8, 3),
        Precision(8, 8),
        Precision(32, 4),
        Precision(32, 32),
    ]
    found = evaluator.predicted_loss(precisions)
    assert found.shape == (2, len(precisions))
    inputs = splits().calibration.inputs.double().numpy()
    eight = Precision(8, 8)  # of the layers that are not looked at
    reference = by_numpy(inputs, inputs, [eight, eight])
    for row in range(2):
        for column, precision in enumerate(precisions):
            chosen = [eight, eight]
            chosen[row] = precision
            quantized = by_numpy(inputs, inputs, chosen)
            expected = (np.exp(reference) * (reference - quantized)).sum(axis=1).mean()
            assert found[row, column] == pytest.approx(expected, rel=5e-3, abs=2e-6)
    assert (found[:, 3] == 0).all()
    assert (found[:, 0] > found[:, 3]).all()


def test_predicted_loss_reports_its_progress_and_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("AMED_CACHE_DIR", str(tmp_path))
    seen = []
    precisions = [Precision(2, 2), Precision(8, 8)]
    evaluator = evaluator_of()
    evaluator.on_sensitivities = lambda done, total: seen.append((done, total))
    first = evaluator.predicted_loss(precisions)
    assert seen == [(done, 12) for done in range(1, 13)]  # four evaluations of three batches
    again = evaluator.predicted_loss(precisions)
    assert seen[-1] == (12, 12)
    np.testing.assert_array_equal(first, again)


def test_the_fingerprint_changes_with_whatever_changes_a_result(evaluator):
    other_weights = Tiny()
    other_weights.second.bias.data[0] += 1e-3
    prints = {
        evaluator.fingerprint,
        evaluator_of(other_weights).fingerprint,
        evaluator_of(calibration=part(39, 1)).fingerprint,
        evaluator_of(search=part(60, 2)).fingerprint,
        evaluator_of(test=part(49, 3)).fingerprint,
    }
    assert len(prints) == 5
    assert evaluator_of().fingerprint == evaluator.fingerprint


def test_weight_statistics_by_hand(evaluator):
    weights = [Tiny().first.weight.detach().numpy(), Tiny().second.weight.detach().numpy()]
    expected = [np.abs(weight).max() / weight.std() for weight in weights]
    np.testing.assert_allclose(evaluator.weight_statistics(), expected, rtol=1e-5)


class Fragile(Tiny):
    """Divides by zero for inputs that calibration never saw."""

    def forward(self, inputs):
        scores = super().forward(inputs)
        return scores / (inputs[:, :1] < 50)


def test_a_network_that_returns_nan_is_named():
    inputs = part(61, 2).inputs.clone()
    inputs[5] = 100
    broken = evaluator_of(Fragile(), search=part(61, 2, inputs=inputs))
    with pytest.raises(NonFiniteError, match=r"search split under '4/4 4/4': 'forward' \(div\) does first"):
        broken.evaluate(UNIFORM[4])
    assert math.isfinite(broken.evaluate(UNIFORM[4], "test").loss)


class Root(nn.Module):
    """The square root of what calibration always saw positive."""

    def forward(self, inputs):
        return torch.sqrt(inputs.amax(dim=1, keepdim=True) + 50) + inputs


def test_the_layer_that_returns_nan_is_named():
    inputs = part(61, 2).inputs.clone()
    inputs[60] = -100
    network = nn.Sequential(Root(), Tiny())
    broken = evaluator_of(network, search=part(61, 2, inputs=inputs))
    for bits in (8, 32):
        allocation = broken.workload.uniform(bits)
        with pytest.raises(NonFiniteError, match=rf"search split under '{bits}/.*: '0' \(sqrt\) does first"):
            broken.evaluate(allocation)
        with pytest.raises(NonFiniteError, match=rf"search split under '{bits}/.*: '0' \(sqrt\) does first"):
            broken.evaluate_many([allocation])


class Inverse(Tiny):
    """Divides by what calibration never saw at zero, between its layers."""

    def forward(self, inputs):
        return self.second(torch.relu(self.first(inputs)) / (inputs[:, :1] + 50))


@pytest.mark.parametrize("engine", ["auto", "float"])
def test_the_layer_that_reads_infinity_is_named(engine):
    inputs = part(61, 2).inputs.clone()
    inputs[60, 0] = -50
    found = splits(search=part(61, 2, inputs=inputs))
    network = trace(Inverse(), found.calibration.inputs[:1], "inverse")
    broken = PostTrainingEvaluator(network, found, "nearest", batch_size=16, engine=engine)
    message = r"under '4/4 4/4': 'forward' \(div\) does first, and layer 'second' meets it"
    with pytest.raises(NonFiniteError, match=message):
        broken.evaluate(UNIFORM[4])
    with pytest.raises(NonFiniteError, match=message):
        broken.evaluate_many([UNIFORM[4]])
    with pytest.raises(NonFiniteError, match=r"'forward' \(div\) does first"):
        broken.evaluate(UNIFORM[32])
    assert math.isfinite(broken.evaluate(UNIFORM[4], "test").loss)


@pytest.mark.parametrize("name", ["search", "test"])
def test_labels_that_mean_nothing(name):
    with pytest.raises(DataError, match=rf"{name} split has label 3, but the network tells only 3 classes"):
        evaluator_of(**{name: part(20, 5, classes=4)})
    with pytest.raises(DataError, match=rf"all 20 samples of the {name} split have label 2"):
        evaluator_of(**{name: part(20, 5, labels=torch.full((20,), 2))})


def test_calibration_needs_no_meaningful_labels():
    evaluator_of(calibration=part(20, 5, labels=torch.full((20,), 99)))


def test_what_does_not_fit_is_named(evaluator):
    with pytest.raises(AllocationError, match="'second'"):
        evaluator.evaluate(BitAllocation.uniform(["first"], 8))
    with pytest.raises(UnsupportedPrecisionError, match="9 bits"):
        evaluator.evaluate(BitAllocation.uniform(["first", "second"], 9))
    with pytest.raises(InputError, match="unknown split 'train'; use one of search, test"):
        evaluator.evaluate(UNIFORM[8], "train")


def test_qualities_of_disjoint_sets_add_up():
    both = Quality(8, 10, 0.5) + Quality(3, 30, 1.5)
    assert (both.correct, both.samples) == (11, 40)
    assert both.loss == pytest.approx((0.5 * 10 + 1.5 * 30) / 40)
    assert both.accuracy == 11 / 40
    assert both.to_json() == {
        "score": 11 / 40,
        "score_name": "top-1",
        "higher_is_better": True,
        "accuracy": 11 / 40,
        "correct": 11,
        "samples": 40,
        "loss": both.loss,
        "standard_error": pytest.approx((11 / 40 * 29 / 40 / 39) ** 0.5),
        "metrics": {"top-1": 11 / 40},
    }
