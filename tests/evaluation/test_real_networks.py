"""Figures of the default recipe on the pretrained networks, and the two engines on them."""

import numpy as np
import pytest
import torch

from amed_env import BitAllocation, make_task
from amed_env.quantization.kernels import integer_kernels_are_exact
from amed_env.quantization.learned_rounding import RoundingLearner

pytestmark = [pytest.mark.data, pytest.mark.slow]


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
        (5, 32, 91.1),
        (4, 32, 91.0),
        (3, 32, 89.0),
        (2, 32, 70.0),
        (8, 8, 91.6),
        (4, 4, 89.5),
        (3, 3, 85.0),
    ],
)
def test_uniform_widths_of_resnet20_on_all_test_images(resnet20, weight_bits, activation_bits, percent):
    allocation = resnet20.workload.uniform(weight_bits, activation_bits)
    both = resnet20.evaluate(allocation, "search") + resnet20.evaluate(allocation, "test")
    assert both.samples == 10_000
    assert 100 * both.accuracy >= percent


@pytest.mark.skipif(not integer_kernels_are_exact(), reason="this machine has no exact integer kernels")
@pytest.mark.parametrize("name", ["cifar10-resnet20", "cifar10-resnet8", "kws-dscnn", "fashion-cnn"])
def test_integers_and_fake_quantization_agree(amed_data_dir, name):
    """A hundred allocations of each network: benchmarks/engine_agreement.py."""
    engines = [make_task(name, recipe="nearest", engine=engine).evaluator.network for engine in ("auto", "float")]
    inputs = make_task(name, recipe="nearest").evaluator.samples("search").inputs[:250]
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
