"""Where the problems come from that a policy is trained on: tables of real networks, and imagined networks.

A table knows the truth, so a policy can learn where the additive proxy is wrong. There are few tables, and a policy
that sees only those learns their layers by heart. Imagined networks have no truth, but any number of layers and
widths; there the policy learns what the exact solver of the proxy does, for whatever network it is asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from amed_env.agents.policy.problem import (
    Problem,
    Sensitivities,
    layer_features,
    layers_of,
    make_problem,
    sensitivities_of,
)
from amed_env.errors import AgentError
from amed_env.problem.best_choices import best_choices
from amed_env.problem.objective import BUDGET_METRICS
from amed_env.problem.workload import Layer
from amed_env.tasks.make import make_task
from amed_env.tasks.task import Task

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class ProblemSource(Protocol):
    """Draws problems with what is best in them.

    Attributes:
        name: For messages.
    """

    name: str

    def draw(self, rng: np.random.Generator, count: int, truth: bool) -> tuple[list[Problem], IntArray]:
        """Problems of equal shapes, and the best choices within their budgets.

        Args:
            rng: Where random numbers come from.
            count: B problems.
            truth: Best by the true accuracy, where it is known, or by the proxy.

        Returns:
            B problems, and int64 (B, L).
        """

    def accuracy(self, choices: IntArray) -> FloatArray | None:
        """True accuracy in % of choices (…, L), or None if nothing is known."""


class TableSource:
    """Problems of one tabular task.

    Args:
        task: Name of a tabular task.
        devices: Devices whose cost tables are used.
        metrics: Budgets by name (`latency`, `energy`); those that a device lacks are left out.
        random_devices: Share of problems on random devices.
    """

    def __init__(self, task: str, devices: Sequence[str], metrics: Sequence[str], random_devices: float = 0.5) -> None:
        self.name, self._random_devices = task, random_devices
        self.tables: list[FloatArray] = []
        for device in devices:
            on_device = make_task(task, device=device)
            for metric in (BUDGET_METRICS[name] for name in metrics):
                if on_device.capabilities.additive and metric in on_device.costs:
                    costs = on_device.costs[metric]
                    if np.ptp(costs.sum(axis=0)) > 0:  # a device on which no width is cheaper teaches nothing
                        self.tables.append(costs / costs[:, -1].sum())
        self.task: Task = make_task(task, device="bops")
        table = self.task.evaluator.complete_table()
        if table is None:
            raise AgentError(f"task {task!r} has no table of all allocations; a policy is trained on tabular tasks.")
        self._strides = np.asarray(table.strides, dtype=np.int64)
        self._correct = table.correct["search"].astype(np.float64)
        self._samples = table.float_quality["search"].samples
        loss = table.loss["search"].astype(np.float64)
        # Rows from the best to the worst, by what is true and by what the proxy says.
        self._by_truth = np.lexsort((loss, -self._correct))
        self._by_proxy = np.argsort(_sums(self.task.predicted_loss), kind="stable")
        self._layers, self._sensitivities = layers_of(self.task), sensitivities_of(self.task)
        self._shares = _shares(self.task.workload.layers)

    def accuracy(self, choices: IntArray) -> FloatArray:
        """See `ProblemSource.accuracy`."""
        return np.asarray(100.0 * self._correct[choices @ self._strides] / self._samples)

    def draw(self, rng: np.random.Generator, count: int, truth: bool) -> tuple[list[Problem], IntArray]:
        """See `ProblemSource.draw`."""
        problems = [self._problem(rng) for _ in range(count)]
        return problems, np.stack([self.solved(problem, truth) for problem in problems])

    def _problem(self, rng: np.random.Generator) -> Problem:
        if not self.tables or rng.random() < self._random_devices:
            costs = random_costs(rng, self._shares, self._sensitivities.widths)
        else:
            costs = self.tables[rng.integers(len(self.tables))]
        return make_problem(self._layers, self._sensitivities, within_random_budget(rng, costs)[None])

    def solved(self, problem: Problem, truth: bool) -> IntArray:
        """The best choices within the budget, by the true accuracy or by the proxy: int64 (L,)."""
        order = self._by_truth if truth else self._by_proxy
        fitting = _sums(problem.costs[0].astype(np.float64))[order] <= 1.0
        row = order[int(fitting.argmax())]
        return np.asarray(row // self._strides % len(self.task.precisions), dtype=np.int64)


class ImaginedSource:
    """Problems of convolutional networks that do not exist, with made-up sensitivities, on made-up devices.

    Shapes follow the usual: channels grow while the resolution falls, plain or separable, residual or not, a classifier
    at the end. Predicted losses fall by a factor of 1.5 to 5 with each bit, and differ between layers by a
    log-normal factor; first layers hurt most. These laws are after what the tasks of this package measure.

    Args:
        layers: The least and the largest number of layers.
    """

    name = "imagined networks"
    _WIDTHS: tuple[tuple[int, ...], ...] = (
        (2, 3, 4, 8),
        (2, 4, 8),
        (2, 3, 4, 5, 6, 8),
        (4, 8),
        (2, 4, 6, 8),
        (3, 4, 8),
    )

    def __init__(self, layers: tuple[int, int] = (5, 24)) -> None:
        self._least, self._most = layers

    def accuracy(self, choices: IntArray) -> None:
        """Nothing is known: None."""

    def draw(self, rng: np.random.Generator, count: int, truth: bool) -> tuple[list[Problem], IntArray]:
        """See `ProblemSource.draw`; the best are always those of the proxy."""
        number = int(rng.integers(self._least, self._most + 1))
        widths = np.asarray(self._WIDTHS[rng.integers(len(self._WIDTHS))], dtype=np.float64)
        problems, best = [], []
        for _ in range(count):
            layers = imagined_layers(rng, number)
            sensitivities = imagined_sensitivities(rng, number, widths)
            costs = within_random_budget(rng, random_costs(rng, _shares(layers), sensitivities.widths))
            features = layer_features(layers, rng.uniform(2.5, 12.0, number))
            problems.append(make_problem(features, sensitivities, costs[None]))
            solution = best_choices(costs[None], np.ones(1), sensitivities.predicted)
            best.append(solution.choices[0])
        return problems, np.stack(best)


def imagined_layers(rng: np.random.Generator, number: int) -> list[Layer]:
    """Layers of a convolutional network with a classifier at its end."""
    size, channels, read = int(rng.choice([16, 28, 32, 48])), int(rng.choice([8, 16, 32, 64])), int(rng.choice([1, 3]))
    separable, growth = rng.random() < 0.4, int(rng.choice([1, 2]))
    halvings = set(
        rng.choice(np.arange(1, max(number - 1, 2)), size=min(3, max(number - 2, 1)), replace=False).tolist()
    )
    layers = []
    for i in range(number - 1):
        stride = 2 if i in halvings and size >= 6 else 1
        size = -(-size // stride)
        wider = channels * growth if stride == 2 else channels
        if separable and i % 2 == 1:
            layers.append(_depthwise(f"layer{i}", size, read, stride))
            continue
        kernel = 1 if separable and i else 3
        layers.append(
            Layer(f"layer{i}", "conv", size * size, wider, read * kernel**2, kernel=(kernel,) * 2, stride=(stride,) * 2)
        )
        read = channels = wider
    return [*layers, Layer("classifier", "linear", 1, 10, read)]


def _depthwise(name: str, size: int, channels: int, stride: int) -> Layer:
    return Layer(name, "depthwise", size * size, 1, 9, groups=channels, kernel=(3, 3), stride=(stride, stride))


def imagined_sensitivities(rng: np.random.Generator, number: int, widths: FloatArray) -> Sensitivities:
    """Predicted losses (L, P) in nats for weights and activations of the same widths (P,)."""
    scale = 10 ** rng.uniform(-3.5, 0.0)
    base = np.exp(rng.normal(0.0, rng.uniform(0.3, 1.2), number))
    base[0] *= 10 ** rng.uniform(0.0, 2.0)
    steps = rng.uniform(1.5, 5.0) * np.exp(rng.normal(0.0, 0.15, (number, len(widths))))
    predicted = scale * base[:, None] * steps ** (widths[0] - widths) * np.exp(rng.normal(0.0, 0.2, steps.shape))
    predicted = np.maximum(predicted - predicted[:, -1:], 0.0)  # against the widest, as it is measured
    return Sensitivities(2 * widths, predicted, np.ones_like(predicted, dtype=bool))


def random_costs(rng: np.random.Generator, shares: FloatArray, widths: FloatArray) -> FloatArray:
    """Costs (L, P) of a device that does not exist: shares of compute and traffic, and a law of the width.

    Args:
        rng: Where random numbers come from.
        shares: (L, 2): each layer's share of weights and of multiplications.
        widths: (P,): bits of weights plus bits of activations.
    """
    mix = rng.random()
    share = shares @ np.array([mix, 1 - mix]) ** rng.uniform(0.5, 1.5)
    share = share * np.exp(rng.normal(0, 0.5, len(share)))
    power, floor = rng.uniform(0.5, 2.0), rng.uniform(0.0, 0.3) * rng.integers(2)
    law = floor + (1 - floor) * (widths / 16.0) ** power
    steps = np.maximum.accumulate(law * np.exp(rng.normal(0, 0.1, (len(share), len(law)))), axis=1)
    table = share[:, None] * steps / steps[:, -1:]
    return np.asarray(table / table[:, -1].sum())


def within_random_budget(rng: np.random.Generator, costs: FloatArray) -> FloatArray:
    """Costs (L, P) over a random limit that can be met, rather a tight one."""
    least, most = float(costs.min(axis=1).sum()), float(costs.max(axis=1).sum())
    return np.asarray(costs / (least * (1 + 1e-6) + (most - least) * rng.random() ** 1.5))


def _shares(layers: Sequence[Layer]) -> FloatArray:
    """Each layer's share of weights and of multiplications: (L, 2)."""
    sizes = np.asarray([[layer.weight_elements, layer.macs] for layer in layers], dtype=np.float64)
    return np.asarray(sizes / sizes.sum(axis=0))


def _sums(values: FloatArray) -> FloatArray:
    """Sums of one value a layer for every row of a table: (P^L,)."""
    sums = np.zeros(1)
    for row in values:
        sums = np.add.outer(sums, row).reshape(-1)
    return sums
