"""Figures of the default recipe on the pretrained networks, and the two engines on them."""

import numpy as np
import pytest
import torch

from amed_env import BitAllocation, make_task
from amed_env.quantization.kernels import integer_kernels_are_exact
from amed_env.quantization.learned_rounding import RoundingLearner

pytestmark = [pytest.mark.data, pytest.mark.slow]


# Before the fixture below is made: with its task in memory as well, a worker would need more than 2 GiB.
@pytest.mark.skipif(not integer_kernels_are_exact(), reason="this machine has no exact integer kernels")
@pytest.mark.parametrize("name", ["cifar10-resnet20", "cifar10-resnet8", "kws-dscnn", "fashion-cnn"])
def test_integers_and_fake_quantization_agree(amed_data_dir, name):
    """A hundred allocations of each network: benchmarks/engine_agreement.py."""
    evaluators = [make_task(name, recipe="nearest", engine=engine).evaluator for engine in ("auto", "float")]
    engines = [evaluator.network for evaluator in evaluators]
    inputs = evaluators[0].samples("search").inputs[:250]
    layers, numbers = engines[0].workload.layer_names, np.random.default_rng(1)
    same = total = 0
    for _ in range(5):
        drawn = numbers.choice((2, 3, 4, 6, 8), (len(layers), 2))
        allocation = BitAllocation({layer: (int(w), int(a)) for layer, (w, a) in zip(layers, drawn, strict=True)})
        classes = []
        for engine in engines:
            engine.select(allocation)
            classes.append(torch.cat([engine(batch) for batch in inputs.split(125)]).argmax(dim=1))
        assert engines[0].runs_on_integers and not engines[1].runs_on_integers
        same += int((classes[0] == classes[1]).sum())
        total += len(inputs)
    assert same >= 0.998 * total


@pytest.fixture(scope="module")
def resnet20(amed_data_dir):
    return make_task("cifar10-resnet20").evaluator


def test_the_shipped_preparation_of_resnet20_fits(resnet20, monkeypatch):
    monkeypatch.setattr(RoundingLearner, "run", lambda *_: pytest.fail("it is learned anew"))
    resnet20.prepare()


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "percent"),
    [
        (8, 32, 91.6),
        (6, 32, 91.6),
        (5, 32, 91.4),
        (4, 32, 91.4),
        (3, 32, 90.0),
        (2, 32, 87.0),
        (8, 8, 91.2),
        (3, 3, 85.0),
    ],
)
def test_uniform_widths_of_resnet20_on_2000_images(resnet20, weight_bits, activation_bits, percent):
    quality = resnet20.evaluate(resnet20.workload.uniform(weight_bits, activation_bits), "search")
    assert quality.samples == 2_000
    assert 100 * quality.accuracy >= percent


def test_4_bits_of_resnet20_on_all_test_images(resnet20):
    allocation = resnet20.workload.uniform(4, 4)
    both = resnet20.evaluate(allocation, "search") + resnet20.evaluate(allocation, "test")
    assert both.samples == 10_000
    assert both.accuracy >= 0.895
