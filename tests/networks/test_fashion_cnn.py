from importlib.resources import files

import pytest
import torch
from accuracy import count_correct
from torch import nn

from amed_env.datasets.fashion_mnist import fashion_mnist_splits
from amed_env.networks import pretrained_fashion_cnn
from amed_env.networks.fashion_cnn import fashion_cnn

LAYERS = [
    "stem",
    "reduce",
    *(f"bottleneck{number}.{part}" for number in (1, 2) for part in ("expand", "depthwise", "project")),
    "head",
    "classifier",
]


def test_layers_and_weights():
    layers = {n: m for n, m in fashion_cnn().named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert list(layers) == LAYERS
    by_hand = 9 * 12 + 9 * 12 * 24 + (24 * 72 + 9 * 72 + 72 * 24) + (24 * 72 + 9 * 72 + 72 * 48) + 48 * 96 + 960
    assert sum(layer.weight.numel() for layer in layers.values()) == by_hand == 18_204


def test_linear_bottlenecks_are_signed():
    network = pretrained_fashion_cnn()
    seen = {}
    for name in ("bottleneck2.expand", "head"):
        network.get_submodule(name).register_forward_hook(
            lambda _, read, __, name=name: seen.__setitem__(name, read[0].min().item())
        )
    with torch.no_grad():
        network(torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    assert all(smallest < -0.1 for smallest in seen.values())


def test_weight_file_is_small():
    assert len((files("amed_env.networks") / "weights" / "fashion_cnn.safetensors").read_bytes()) < 100_000


@pytest.mark.data("fashion-cnn")
def test_trained_accuracy(amed_data_dir):
    network, splits = pretrained_fashion_cnn(), fashion_mnist_splits(amed_data_dir)
    for part, known in ((splits.search, 1806), (splits.test, 7319)):
        assert count_correct(network, part) == pytest.approx(known, abs=2)
