"""Small networks with whatever makes an integer engine stumble, each with its input shape."""

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """A residual block, a projection shortcut, and a subsampled and padded one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.projection = nn.Conv2d(8, 16, 1, stride=2)
        self.c1 = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.a2(F.relu(self.a1(x))) + x)
        x = F.relu(self.b2(F.relu(self.b1(x))) + self.projection(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = F.relu(self.c1(x) + shortcut)
        return self.head(x.mean((2, 3)))


class Bottleneck(nn.Module):
    """Inverted residuals: ReLU6, depthwise layers, and linear bottlenecks whose outputs are signed."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.expand = nn.Conv2d(8, 24, 1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.project = nn.Conv2d(24, 8, 1)
        self.expand2 = nn.Conv2d(8, 24, 1)
        self.head = nn.Linear(24, 5)
        self.relu6 = nn.ReLU6(inplace=True)

    def forward(self, x):
        x = self.stem(x)
        y = self.relu6(self.expand(x))
        y = self.project(self.relu6(self.depthwise(y)))
        x = x + y
        return self.head(F.adaptive_avg_pool2d(self.relu6(self.expand2(x)), 1).flatten(1))


class Concatenating(nn.Module):
    """Branches that are concatenated, with max pooling, and a grouped convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 5, padding=2)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.c = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(24 * 16, 5)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x):
        x = torch.cat([F.relu(self.a(x)), self.b(x)], 1)
        x = F.max_pool2d(x, 2)
        y = F.relu(self.grouped(x))
        x = self.pool(torch.cat([y, F.relu(self.c(y))], 1))
        return self.head(x.reshape(x.size(0), -1))


class LinearOnly(nn.Module):
    """Layers on vectors, with a shortcut."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 4, bias=False)

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.third(torch.relu(self.second(x) + x))


class Unusual(nn.Module):
    """What has no integer kernel: other paddings, hard swish, a kept batch norm, a layer on three axes."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_mean.uniform_(-1, 1)
        self.conv = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(8, 8, 4, padding="same")
        self.dilated = nn.Conv2d(8, 8, 3, padding="same", dilation=2)
        self.over_time = nn.Linear(64, 12)
        self.head = nn.Linear(96, 3)

    def forward(self, x):
        x = F.hardswish(self.conv(self.norm(x)))
        x = F.relu(self.same(x))
        x = F.relu(self.dilated(x))
        x = torch.sigmoid(self.over_time(x.flatten(2)))
        return self.head(x.flatten(1))


class Twice(nn.Module):
    """One layer, called twice; the results are added."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        x = F.relu(self.conv(x))
        x += self.conv(x)
        return self.head(F.relu_(x).mean((2, 3)))


class OneDimensional(nn.Module):
    """Convolutions over time."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(4, 8, 5, stride=2, padding=2), nn.Conv1d(8, 8, 3, padding=2, dilation=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.head((F.relu(self.b(x)) + x).mean(2))


class Mixer(nn.Module):
    """Layers over channels and over places, which a transposed view (an attribute, as the shape is) brings together."""

    def __init__(self):
        super().__init__()
        self.embed, self.places, self.channels = nn.Linear(8, 8), nn.Linear(6, 6), nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.embed(x))
        x = self.channels(x) + self.places(x.mT).mT
        return self.head(x.mean(1))


class DeadChannel(LinearOnly):
    """A channel whose weights are all zero, and one that no input reaches."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.first.weight[3] = 0
            self.second.weight[:, 5] = 0


SHAPES = {
    Residual: (3, 12, 12),
    Bottleneck: (3, 12, 12),
    Concatenating: (3, 16, 16),
    LinearOnly: (12,),
    Unusual: (3, 8, 8),
    Twice: (3, 9, 9),
    OneDimensional: (4, 21),
    Mixer: (6, 8),
    DeadChannel: (12,),
}


def make(kind, samples=48, seed=0):
    """The network in eval mode, and inputs for it."""
    torch.manual_seed(seed)
    network = kind().eval()
    return network, torch.randn(samples, *SHAPES[kind], generator=torch.Generator().manual_seed(seed + 1))
