"""A small residual network for 8 x 8 digits, with every kind of layer that a quantizer must handle.

Its weights are committed; `benchmarks/train_digits_cnn.py` made them.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from amed_env.networks.weights import load_shipped

WEIGHTS_FILE = "digits_cnn.safetensors"


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around which the input is added back.

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, channels, H, W) to the same shape."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + x)


class DigitsCNN(nn.Module):
    """Eight quantizable layers: stem, residual block, depthwise-separable step, residual block, classifier.

    | layer | shape of its output |
    |---|---|
    | `stem` 3 x 3 | (width, 8, 8) |
    | `block1.conv1`, `block1.conv2` 3 x 3 | (width, 8, 8) |
    | `depthwise` 3 x 3, stride 2 | (width, 4, 4) |
    | `pointwise` 1 x 1 | (2 width, 4, 4) |
    | `block2.conv1`, `block2.conv2` 3 x 3 | (2 width, 4, 4) |
    | `classifier` | (10,) |

    Args:
        width: Channels of the first half.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.block1 = ResidualBlock(width)
        self.depthwise = nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.pointwise_bn = nn.BatchNorm2d(2 * width)
        self.block2 = ResidualBlock(2 * width)
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 1, 8, 8) float32 in 0..1 to logits (N, 10)."""
        out = F.relu(self.stem_bn(self.stem(x)))
        out = self.block1(out)
        out = F.relu(self.depthwise_bn(self.depthwise(out)))
        out = F.relu(self.pointwise_bn(self.pointwise(out)))
        out = self.block2(out)
        out = F.adaptive_avg_pool2d(out, 1).flatten(1)
        return self.classifier(out)  # type: ignore[no-any-return]


def pretrained_digits_cnn() -> DigitsCNN:
    """The trained network, in eval mode.

    Raises:
        NetworkError: If the weight file of the package is missing or damaged.
    """
    return load_shipped(DigitsCNN(), WEIGHTS_FILE)
