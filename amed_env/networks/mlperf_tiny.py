"""The image-classification and keyword-spotting networks of MLPerf Tiny, with batch norms folded as they are deployed.

They were trained in TensorFlow, whose "same" padding is asymmetric where a stride leaves an odd rest: one row more
below than above. The odd row is written out as a layer of its own.
Source of architectures and weights: C. Banbury et al., MLPerf Tiny Benchmark, NeurIPS Datasets and Benchmarks 2021;
https://github.com/mlcommons/tiny (Apache-2.0).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from amed_env.networks.weights import load_fetched
from amed_env.support.data_files import DS_CNN_WEIGHTS, RESNET8_WEIGHTS

RESNET8_NAMES = (
    "stem",
    "block1.conv1",
    "block1.conv2",
    "block2.conv1",
    "block2.conv2",
    "block2.shortcut",
    "block3.conv1",
    "block3.conv2",
    "block3.shortcut",
    "classifier",
)
DS_CNN_NAMES = (
    "stem",
    *(f"block{number}.{part}" for number in range(1, 5) for part in ("depthwise", "pointwise")),
    "classifier",
)
"""The layers in the order of the files, which call them `conv0` to `conv8` and `fc9`."""


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis in TensorFlow's "same" convolution, which gives ceil(size / stride) outputs."""
    outputs = -(-size // stride)
    total = max(0, (outputs - 1) * stride + kernel - size)
    # The odd row goes below and to the right, as TensorFlow pads.
    return total // 2, total - total // 2


def _padding(size: tuple[int, int], kernel: tuple[int, int], stride: int) -> tuple[nn.Module, tuple[int, int]]:
    """The "same" padding of a convolution: a layer for what is asymmetric, and what the convolution adds itself."""
    rows, columns = (same_padding(s, k, stride) for s, k in zip(size, kernel, strict=True))
    odd = (0, columns[1] - columns[0], 0, rows[1] - rows[0])
    return nn.ZeroPad2d(odd) if any(odd) else nn.Identity(), (rows[0], columns[0])


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, which is a 1 x 1 convolution where the shape changes.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        size: Height and width of the input.
        stride: 1, or 2 to halve height and width.
    """

    def __init__(self, in_channels: int, channels: int, size: int, stride: int) -> None:
        super().__init__()
        self.pad, padding = _padding((size, size), (3, 3), stride)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(in_channels, channels, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, size, size) to (N, channels, size / stride, size / stride)."""
        out = self.conv2(F.relu(self.conv1(self.pad(x))))
        return F.relu(out + self.shortcut(x))


class TinyResNet8(nn.Module):
    """The ResNet of the image-classification benchmark: ten quantizable layers with 77,360 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block1 = ResidualBlock(16, 16, 32, stride=1)
        self.block2 = ResidualBlock(16, 32, 32, stride=2)
        self.block3 = ResidualBlock(32, 64, 16, stride=2)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 3, 32, 32) float32, raw RGB from 0 to 255, to logits (N, 10)."""
        out = self.block3(self.block2(self.block1(F.relu(self.stem(x)))))
        return self.classifier(F.adaptive_avg_pool2d(out, 1).flatten(1))  # type: ignore[no-any-return]


class SeparableBlock(nn.Module):
    """A 3 x 3 convolution of each channel by itself, and a 1 x 1 convolution across channels.

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, channels, H, W) to the same shape."""
        return F.relu(self.pointwise(F.relu(self.depthwise(x))))


class TinyDsCNN(nn.Module):
    """The depthwise-separable network of the keyword benchmark: ten quantizable layers with 22,016 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.pad, padding = _padding((49, 10), (10, 4), 2)
        self.stem = nn.Conv2d(1, 64, (10, 4), 2, padding)
        self.block1 = SeparableBlock(64)
        self.block2 = SeparableBlock(64)
        self.block3 = SeparableBlock(64)
        self.block4 = SeparableBlock(64)
        self.classifier = nn.Linear(64, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map MFCC features (N, 1, 49, 10) float32 to logits (N, 12)."""
        out = F.relu(self.stem(self.pad(x)))
        out = self.block4(self.block3(self.block2(self.block1(out))))
        return self.classifier(F.adaptive_avg_pool2d(out, 1).flatten(1))  # type: ignore[no-any-return]


def resnet8() -> TinyResNet8:
    """The image network with random weights, in eval mode."""
    return TinyResNet8().eval()


def ds_cnn() -> TinyDsCNN:
    """The keyword network with random weights, in eval mode."""
    return TinyDsCNN().eval()


def pretrained_resnet8(folder: Path | None = None) -> TinyResNet8:
    """The trained image network, 87.21 % on the 10,000 test images of CIFAR-10; in eval mode.

    Args:
        folder: The data folder; by default `data_dir()`.

    Raises:
        NetworkError: If the weights are missing or damaged.
    """
    return load_fetched(TinyResNet8(), RESNET8_WEIGHTS, "cifar10-resnet8", folder, _layers_in_file(RESNET8_NAMES))


def pretrained_ds_cnn(folder: Path | None = None) -> TinyDsCNN:
    """The trained keyword network, 91.3 % on the 1,000 official samples; in eval mode.

    Args:
        folder: The data folder; by default `data_dir()`.

    Raises:
        NetworkError: If the weights are missing or damaged.
    """
    return load_fetched(TinyDsCNN(), DS_CNN_WEIGHTS, "kws-dscnn", folder, _layers_in_file(DS_CNN_NAMES))


def _layers_in_file(names: tuple[str, ...]) -> dict[str, str]:
    """Layer in the file to layer of the network: convolutions and the last, fully connected one are numbered."""
    last = len(names) - 1
    in_file = [f"conv{number}" for number in range(last)] + [f"fc{last}"]
    return dict(zip(in_file, names, strict=True))
