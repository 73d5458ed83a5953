"""ResNets for CIFAR-10, with the state-dict names of the pretrained ones.

Source of the architecture: K. He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section
4.2; of the names and weights: Y. Idelbayev, https://github.com/akamaster/pytorch_resnet_cifar10 (BSD-2).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from amed_env.errors import NetworkError
from amed_env.networks.weights import load_fetched, load_weights
from amed_env.support.data_files import RESNET20_WEIGHTS, RESNET56_WEIGHTS

DIGESTS = {
    RESNET20_WEIGHTS: "dd23b404be3e7a2813b9ac3b09106e7055253826842257381b35302ed256f995",
    RESNET56_WEIGHTS: "d74b94a30c0f0bd9c1a559845f94e895233f8e30aa9ed4e3a0812f8694af5a1f",
}
"""`weights_digest` of the published weights, whatever file their tensors lie in."""

_WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without weights.

    Where the shape changes, the shortcut takes every second pixel and pads the new channels with zeros, half
    of them before and half after (option A of He et al.).

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: 1, or 2 to halve height and width.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padding = (channels - in_channels) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x
        if self.stride != 1:
            shortcut = shortcut[:, :, :: self.stride, :: self.stride]
        # Option A of He et al., as published: the shortcut has no weights, so there is no layer to quantize.
        if self.padding:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + shortcut)


class CifarResNet(nn.Module):
    """A residual network of three stages with 16, 32 and 64 channels.

    Args:
        depth: Layers with weights, 6 n + 2: 20, 32, 44, 56 or 110 were published.
        classes: Number of classes.

    Raises:
        NetworkError: If the depth is not 6 n + 2 for some n >= 1.
    """

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise NetworkError(f"a CIFAR ResNet has depth 6 n + 2 (8, 14, 20, ..., 56, ...), not {depth}.")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.layer1 = _stage(_WIDTHS[0], _WIDTHS[0], blocks, stride=1)
        self.layer2 = _stage(_WIDTHS[0], _WIDTHS[1], blocks, stride=2)
        self.layer3 = _stage(_WIDTHS[1], _WIDTHS[2], blocks, stride=2)
        self.linear = nn.Linear(_WIDTHS[2], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised images (N, 3, 32, 32) float32 to logits (N, classes)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.adaptive_avg_pool2d(out, 1).flatten(1)
        return self.linear(out)  # type: ignore[no-any-return]


def resnet20(weights: str | Path | None = None) -> CifarResNet:
    """ResNet-20 for CIFAR-10: 20 quantizable layers with 268,336 weights; in eval mode.

    Args:
        weights: A safetensors file to load; None leaves the random initialisation.

    Raises:
        NetworkError: If the weights cannot be loaded.
    """
    return _resnet(20, weights)


def resnet56(weights: str | Path | None = None) -> CifarResNet:
    """ResNet-56 for CIFAR-10: 56 quantizable layers with 848,944 weights; in eval mode.

    Args:
        weights: A safetensors file to load; None leaves the random initialisation.

    Raises:
        NetworkError: If the weights cannot be loaded.
    """
    return _resnet(56, weights)


def pretrained_resnet20(folder: Path | None = None) -> CifarResNet:
    """The pretrained ResNet-20, 91.73 % on the 10,000 test images; in eval mode.

    Args:
        folder: The data folder; by default `data_dir()`.

    Raises:
        NetworkError: If the weights are missing or damaged.
    """
    return load_fetched(CifarResNet(20), RESNET20_WEIGHTS, "cifar10-resnet20", folder, digest=DIGESTS[RESNET20_WEIGHTS])


def pretrained_resnet56(folder: Path | None = None) -> CifarResNet:
    """The pretrained ResNet-56, 93.39 % on the 10,000 test images; in eval mode.

    Args:
        folder: The data folder; by default `data_dir()`.

    Raises:
        NetworkError: If the weights are missing or damaged.
    """
    return load_fetched(CifarResNet(56), RESNET56_WEIGHTS, "cifar10-resnet56", folder, digest=DIGESTS[RESNET56_WEIGHTS])


def _resnet(depth: int, weights: str | Path | None) -> CifarResNet:
    network = CifarResNet(depth).eval()
    return network if weights is None else load_weights(network, weights)


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))
