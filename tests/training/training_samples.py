"""A small network with signed activations and a residual sum, and images that it can learn."""

from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F
from traced import trace_equals_once as trace

from amed_env import Task
from amed_env.datasets import Samples, Splits
from amed_env.datasets.training import TrainingData
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.hardware import load_device
from amed_env.problem.objective import parse_budgets
from amed_env.training.settings import TrainingSettings

CLASSES = 3
LAYERS = ("stem", "expand", "depthwise", "project", "head")


class Bottleneck(nn.Module):
    """`expand` reads the stored sum of the stem and a linear bottleneck, which is signed."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.expand, self.depthwise = nn.Conv2d(6, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.project = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        y = F.relu(self.expand(x))
        y = self.project(F.relu(self.norm(self.depthwise(y))))
        return self.head(F.relu(x + y).mean((2, 3)))


def images(count, seed):
    """Noise with a bright row, column or corner; labels take turns."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = 0.5 * torch.randn(count, 2, 6, 6, generator=generator), torch.arange(count) % CLASSES
    inputs[labels == 0, 0, 2, :] += 1.5
    inputs[labels == 1, 1, :, 3] += 1.5
    inputs[labels == 2, :, :3, :3] -= 1.5
    return inputs, labels


def samples(count, seed, name):
    return Samples(*images(count, seed), name)


@lru_cache
def float_network():
    """Trained for a moment."""
    torch.manual_seed(0)
    network = Bottleneck()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    inputs, labels = images(96, 4)
    for _ in range(40):
        loss = F.cross_entropy(network(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def make_evaluator(recipe="nearest", **options):
    network = float_network()
    splits = Splits(samples(48, 1, "calibration"), samples(60, 2, "search"), samples(60, 3, "test"))
    traced = trace(network, splits.calibration.example(), "bottleneck")
    return PostTrainingEvaluator(traced, splits, recipe, threads=1, **options)


def make_data(count=96):
    return TrainingData(*images(count, 4), samples(60, 5, "validation"), shift=1)


def make_task(budget, **options):
    return Task("bottleneck", make_evaluator(), load_device("bitfusion"), budgets=parse_budgets(budget), **options)


def settings(**changes):
    return TrainingSettings.of({"epochs": 3, "batch_size": 32, "learning_rate": 0.05, **changes})
