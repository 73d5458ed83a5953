import pytest
import torch
from accuracy import count_correct
from torch import nn
from torch.nn import functional as F

from amed_env.datasets.cifar10 import cifar10_test_file
from amed_env.datasets.keywords import keyword_samples
from amed_env.errors import NetworkError
from amed_env.networks import TinyDsCNN, TinyResNet8, ds_cnn, pretrained_ds_cnn, pretrained_resnet8, resnet8
from amed_env.networks.mlperf_tiny import DS_CNN_NAMES, RESNET8_NAMES, same_padding


def quantizable(network):
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


# TensorFlow's documentation: out = ceil(in / stride), and the odd zero goes behind.
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (32, 3, 1, (1, 1)),
        (32, 3, 2, (0, 1)),
        (33, 3, 2, (1, 1)),
        (49, 10, 2, (4, 5)),
        (10, 4, 2, (1, 1)),
        (8, 1, 2, (0, 0)),
    ],
)
def test_same_padding(size, kernel, stride, expected):
    assert same_padding(size, kernel, stride) == expected
    assert (size + sum(expected) - kernel) // stride + 1 == -(-size // stride)


@pytest.mark.parametrize(
    ("network", "names", "weights"),
    [
        # 3 x 3: 3 -> 16 -> 16 -> 16 -> 32 -> 32 -> 64 -> 64; 1 x 1: 16 -> 32, 32 -> 64; 64 -> 10.
        (resnet8(), RESNET8_NAMES, 9 * (48 + 256 + 256 + 512 + 1024 + 2048 + 4096) + 512 + 2048 + 640),
        # 10 x 4: 1 -> 64; four times 3 x 3 on 64 channels and 64 -> 64; 64 -> 12.
        (ds_cnn(), DS_CNN_NAMES, 40 * 64 + 4 * (9 * 64 + 64 * 64) + 12 * 64),
    ],
    ids=["resnet8", "ds-cnn"],
)
def test_layers_and_weights(network, names, weights):
    layers = quantizable(network)
    assert tuple(layers) == names
    assert sum(layer.weight.numel() for layer in layers.values()) == weights


def test_the_stride_takes_the_pixels_that_tensorflow_takes():
    """With zeros only behind, output (i, j) of a 3 x 3 filter of stride 2 begins at pixel (2i, 2j)."""
    block = TinyResNet8().block2
    inputs = torch.rand(1, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = block.conv1(block.pad(inputs))
        for row, column in ((0, 0), (7, 3), (14, 14)):
            window = inputs[0, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected = (block.conv1.weight * window).sum(dim=(1, 2, 3)) + block.conv1.bias
            torch.testing.assert_close(found[0, :, row, column], expected)
        edge = F.pad(inputs, (0, 1, 0, 1))[0, :, 30:33, 30:33]
        expected = (block.conv1.weight * edge).sum(dim=(1, 2, 3)) + block.conv1.bias
        torch.testing.assert_close(found[0, :, 15, 15], expected)


def test_shapes():
    with torch.no_grad():
        assert TinyResNet8()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        network = TinyDsCNN()
        assert network.stem(network.pad(torch.zeros(2, 1, 49, 10))).shape == (2, 64, 25, 5)
        assert network(torch.zeros(2, 1, 49, 10)).shape == (2, 12)


@pytest.mark.parametrize(("load", "task"), [(pretrained_resnet8, "cifar10-resnet8"), (pretrained_ds_cnn, "kws-dscnn")])
def test_missing_weights_say_how_to_get_them(tmp_path, load, task):
    with pytest.raises(NetworkError, match=f"amed fetch {task}"):
        load(tmp_path)


@pytest.mark.data("cifar10-resnet8")
@pytest.mark.slow
def test_accuracy_of_resnet8(amed_data_dir):
    """It gets 8,721 of all 10,000 right, as published; every fifth image is enough to see a change."""
    samples = cifar10_test_file(amed_data_dir, raw=True).subset(range(0, 10_000, 5))
    assert count_correct(pretrained_resnet8(amed_data_dir), samples) == pytest.approx(1742, abs=2)


@pytest.mark.data("kws-dscnn")
def test_accuracy_of_ds_cnn_on_the_official_samples(amed_data_dir):
    assert count_correct(pretrained_ds_cnn(amed_data_dir), keyword_samples(amed_data_dir)) == pytest.approx(913, abs=1)
