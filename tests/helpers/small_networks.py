"""Networks of kinds that users bring, small enough for a test each."""

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Two residual blocks, the second with a projection."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.shortcut = nn.Conv2d(8, 16, 1, stride=2)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.stem_bn(self.stem(x)))
        x = F.relu(x + self.bn1(self.conv1(x)))
        x = F.relu(self.shortcut(x) + self.bn2(self.conv2(x)))
        return self.head(x.mean(dim=(2, 3)))


class Concatenating(nn.Module):
    """Every layer reads what all layers before it wrote."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(7, 4, 3, padding=1)
        self.third = nn.Conv2d(11, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.cat([x, F.relu(self.first(x))], dim=1)
        x = torch.cat([x, F.relu(self.second(x))], dim=1)
        return self.head(F.relu(self.third(x)).amax(dim=(2, 3)))


class Grouped(nn.Module):
    """Depthwise, grouped with a shuffle of channels, and depthwise with a multiplier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.multiplied = nn.Conv2d(12, 24, 3, groups=12)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        x = F.relu(self.depthwise(F.relu(self.stem(x))))
        x = x.view(-1, 2, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        x = F.relu(self.multiplied(F.relu(self.grouped(x))))
        return self.head(x.mean(dim=(2, 3)))


def linear_only():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 4)
    )


def without_norms():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)
    )


class PreActivation(nn.Module):
    """Batch norm and ReLU come before each convolution, so no norm can be folded."""

    def __init__(self):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.bn3, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.conv1(F.relu(self.bn1(x)))
        x = x + self.conv2(F.relu(self.bn2(x)))
        return self.head(F.relu(self.bn3(x)).mean(dim=(2, 3)))


def activated_by(activation):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        activation(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        activation(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


class LinearBottleneck(nn.Module):
    """What `project` returns is read as it is, negative values included."""

    def __init__(self):
        super().__init__()
        self.expand = nn.Conv2d(3, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 4, 1)
        self.head = nn.Conv2d(4, 16, 1)
        self.classifier = nn.Linear(16, 4)
        self.clipped = False

    def forward(self, x):
        x = self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        if self.clipped:
            x = F.relu(x)
        return self.classifier(F.relu(self.head(x)).mean(dim=(2, 3)))


class SqueezeExcitation(nn.Module):
    """Activations are multiplied by each other."""

    def __init__(self):
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(4, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.conv(x))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3))))))
        return self.head((x * gate[:, :, None, None]).mean(dim=(2, 3)))


class CalledTwice(nn.Module):
    """One convolution at two scales."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.shared(F.relu(self.stem(x))))
        x = F.relu(self.shared(F.avg_pool2d(x, 2)))
        return self.head(x.mean(dim=(2, 3)))


class TwoInputs(nn.Module):
    """An image and a few numbers."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.numbers = nn.Linear(5, 8)
        self.head = nn.Linear(16, 4)

    def forward(self, image, numbers):
        seen = F.relu(self.norm(self.conv(image))).mean(dim=(2, 3))
        return self.head(torch.cat([seen, self.numbers(numbers)], dim=1))


class InPlace(nn.Module):
    """Changes what layers returned."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(8, 4)

    def forward(self, x):
        x = self.act(self.conv1(x))
        y = self.conv2(x)
        y += x
        return self.head(self.act(y).mean(dim=(2, 3)))


class OneBatchSize(nn.Module):
    """Takes 8 samples at once, and no other number."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x).reshape(8, 3)


def shaken(network, seed=0):
    """Weights and statistics as of a trained network, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(std=(2 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(std=0.1, generator=generator)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(std=0.2, generator=generator)
            module.running_mean.normal_(std=0.2, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return network.eval()


class Head(nn.Module):
    """A feature extractor, then class scores by averaging over all positions."""

    def __init__(self, *features):
        super().__init__()
        self.body = nn.Sequential(*features)

    def forward(self, inputs):
        return self.body(inputs).flatten(2).mean(dim=2)


def shake(network, seed=0):
    """Weights and statistics as if it were trained."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                if tensor is not None:
                    tensor.data.normal_(generator=generator)
            if module.running_var is not None:
                module.running_var.uniform_(0.2, 3, generator=generator)
    return network.eval()


def norms(traced):
    """The batch norms that a traced network still has."""
    return [module for module in traced.module.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
