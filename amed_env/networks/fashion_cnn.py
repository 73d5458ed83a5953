"""A small network for Fashion-MNIST with inverted residual blocks, whose linear bottlenecks carry signed activations.

Its weights are committed; `benchmarks/train_fashion_cnn.py` made them.
Source of the block: M. Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from amed_env.networks.weights import load_shipped

WEIGHTS_FILE = "fashion_cnn.safetensors"


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, and project without an activation; the input is added where it fits.

    Args:
        in_channels: Channels of the input.
        expanded: Channels of the depthwise convolution.
        channels: Channels of the output.
        stride: 1, or 2 to halve height and width.
    """

    def __init__(self, in_channels: int, expanded: int, channels: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(in_channels, expanded, 1, bias=False)
        self.expand_bn = nn.BatchNorm2d(expanded)
        self.depthwise = nn.Conv2d(expanded, expanded, 3, stride, 1, groups=expanded, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(expanded)
        self.project = nn.Conv2d(expanded, channels, 1, bias=False)
        self.project_bn = nn.BatchNorm2d(channels)
        self.adds_input = stride == 1 and in_channels == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out: torch.Tensor = F.relu6(self.expand_bn(self.expand(x)))
        out = F.relu6(self.depthwise_bn(self.depthwise(out)))
        out = self.project_bn(self.project(out))
        return out + x if self.adds_input else out


class FashionCNN(nn.Module):
    """Ten quantizable layers with 18,204 weights.

    | layer | shape of its output |
    |---|---|
    | `stem` 3 x 3 | (12, 28, 28) |
    | `reduce` 3 x 3, stride 2 | (24, 14, 14) |
    | `bottleneck1.expand`, `.depthwise` 3 x 3 | (72, 14, 14) |
    | `bottleneck1.project`, signed | (24, 14, 14) |
    | `bottleneck2.expand`, `.depthwise` 3 x 3, stride 2 | (72, 14, 14), (72, 7, 7) |
    | `bottleneck2.project`, signed | (48, 7, 7) |
    | `head` 1 x 1 | (96, 7, 7) |
    | `classifier` | (10,) |
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(12)
        self.reduce = nn.Conv2d(12, 24, 3, stride=2, padding=1, bias=False)
        self.reduce_bn = nn.BatchNorm2d(24)
        self.bottleneck1 = InvertedResidual(24, 72, 24, stride=1)
        self.bottleneck2 = InvertedResidual(24, 72, 48, stride=2)
        self.head = nn.Conv2d(48, 96, 1, bias=False)
        self.head_bn = nn.BatchNorm2d(96)
        self.classifier = nn.Linear(96, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 1, 28, 28) float32 in 0..1 to logits (N, 10)."""
        out = F.relu(self.stem_bn(self.stem(x)))
        out = F.relu(self.reduce_bn(self.reduce(out)))
        out = self.bottleneck2(self.bottleneck1(out))
        out = F.relu(self.head_bn(self.head(out)))
        out = F.adaptive_avg_pool2d(out, 1).flatten(1)
        return self.classifier(out)  # type: ignore[no-any-return]


def fashion_cnn() -> FashionCNN:
    """The network with random weights, in eval mode."""
    return FashionCNN().eval()


def pretrained_fashion_cnn() -> FashionCNN:
    """The trained network, in eval mode.

    Raises:
        NetworkError: If the weight file of the package is missing or damaged.
    """
    return load_shipped(FashionCNN(), WEIGHTS_FILE)
