"""What a goal-conditioned policy is asked: layers, what each choice costs of each budget, and how much it hurts.

Nothing names network, device, or layer: costs are shares of the budget, sizes and losses logarithms, so that one policy
can be asked about any.
Shapes: L layers, P precisions, M limited metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amed_env.errors import BudgetError
from amed_env.problem.workload import BASIC_KINDS, Layer
from amed_env.tasks.task import Task

FloatArray = npt.NDArray[np.float32]

_KINDS = tuple(dict.fromkeys(BASIC_KINDS.values()))
LAYER_FEATURES = len(_KINDS) + 8
CHOICE_FEATURES = 7
SENSITIVITIES, CONDITIONS = [1, 2, 3], [4, 5, 6]
"""Positions of what depends on predicted losses, and on device and budget."""
_SIZES = ("weight_elements", "macs", "in_channels", "out_channels")


@dataclass(frozen=True)
class Problem:
    """A task as a policy sees it.

    Attributes:
        layers: float32 (L, LAYER_FEATURES): what the layers are.
        choices: float32 (L, P, CHOICE_FEATURES): widths, predicted losses, and shares of the budgets.
        costs: float32 (M, L, P): cost of every choice over the limit of its metric; the sum may be 1 at the most.
        choosable: bool (L, P): what each layer may choose at all.
    """

    layers: FloatArray
    choices: FloatArray
    costs: FloatArray
    choosable: npt.NDArray[np.bool_]


def problem_of(task: Task) -> Problem:
    """The problem of a task with budgets.

    Costs that do not add up are replaced by the device's lower bounds, where it knows any; what comes out of them
    may exceed the budget and need a repair.

    Raises:
        BudgetError: If the task has no budget.
    """
    if not task.limits:
        raise BudgetError("a goal-conditioned policy is asked for a budget; the task has none.")
    costs, limits = task.device_costs.bounded_limits(task.limits)
    shares = costs / limits[:, None, None] if len(limits) else np.zeros((1, *task.choosable.shape))
    return make_problem(layers_of(task), sensitivities_of(task), shares)


@dataclass(frozen=True)
class Sensitivities:
    """How much each choice hurts, whatever the device.

    Attributes:
        widths: float64 (P,): bits of weights plus bits of activations.
        predicted: float64 (L, P): predicted loss in nats.
        choosable: bool (L, P).
    """

    widths: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.float64]
    choosable: npt.NDArray[np.bool_]


def sensitivities_of(task: Task) -> Sensitivities:
    """How much each choice of a task hurts."""
    widths = np.asarray([p.weight_bits + p.activation_bits for p in task.precisions], dtype=np.float64)
    return Sensitivities(widths, task.predicted_loss, task.choosable)


def layers_of(task: Task) -> FloatArray:
    """float32 (L, LAYER_FEATURES): what the layers of a task are, whatever the device."""
    return layer_features(task.workload.layers, task.evaluator.weight_statistics())


def layer_features(layers: Sequence[Layer], statistics: npt.NDArray[np.float64]) -> FloatArray:
    """float32 (L, LAYER_FEATURES) of layers and their largest weights, each over the layer's deviation (L,)."""
    kinds = np.asarray([[BASIC_KINDS[layer.kind] == kind for kind in _KINDS] for layer in layers], dtype=float)
    sizes = np.log1p(np.asarray([[getattr(layer, size) for size in _SIZES] for layer in layers], dtype=float))
    shape = np.asarray([[max(layer.kernel) / 7.0, max(layer.stride) / 4.0] for layer in layers])
    depth = np.linspace(0.0, 1.0, len(layers))[:, None]
    return np.hstack([kinds, sizes / 16.0, shape, statistics[:, None] / 16.0, depth]).astype(np.float32)


def make_problem(layers: FloatArray, sensitivities: Sensitivities, costs: npt.NDArray[np.float64]) -> Problem:
    """A problem of costs (M, L, P) over their limits."""
    predicted, choosable = sensitivities.predicted, sensitivities.choosable
    relative = predicted / max(float(np.where(choosable, predicted, 0.0).max()), 1e-12)
    within = predicted / np.maximum(predicted.max(axis=1, keepdims=True), 1e-12)
    tightest = costs.max(axis=0)
    shape = predicted.shape
    features = np.stack(
        [
            np.broadcast_to(sensitivities.widths / 16.0, shape),
            np.log1p(predicted),
            np.log(relative + 1e-4) / 10.0,
            within,
            tightest,
            costs.mean(axis=0),
            tightest / np.maximum(tightest.max(axis=1, keepdims=True), 1e-12),
        ],
        axis=2,
    )
    return Problem(layers, features.astype(np.float32), costs.astype(np.float32), choosable)
