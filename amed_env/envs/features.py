"""What an agent sees: the observation of `AMED/LayerWise-v0`, float32 in [0, 1].

Everything is relative to the network or to its uniform 8-bit cost, so that one policy can serve many networks and
devices; nothing tells a layer's number alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amed_env.problem.objective import BUDGET_METRICS
from amed_env.problem.workload import BASIC_KINDS
from amed_env.tasks.task import Task

METRICS = tuple(BUDGET_METRICS.values())
"""Metrics in every observation, in this order; one that a device lacks is all zero. Those of further budgets follow."""

FloatArray = npt.NDArray[np.float64]
_KINDS = tuple(dict.fromkeys(BASIC_KINDS.values()))
_SIZES = ("weight_elements", "macs", "in_channels", "out_channels")
# What common networks have at the most; beyond, features are clipped at 1. The spread is in standard deviations.
_LARGEST_KERNEL, _LARGEST_STRIDE, _LARGEST_SPREAD = 7.0, 4.0, 16.0


@dataclass
class EpisodeState:
    """Where an episode stands.

    Attributes:
        step: Layers that have been decided.
        choices: Their precisions, by number.
        used: (M,) cost so far, by metric in the order of the environment's `metrics`.
        limits: (M,) limits; infinity where there is none.
        predicted_loss: Sum of the predicted losses of the choices, in nats.
        of_limits: What an `Observer` made of the limits at its first observation of the episode.
    """

    step: int
    choices: list[int]
    used: FloatArray
    limits: FloatArray
    predicted_loss: float = 0.0
    of_limits: tuple[FloatArray, FloatArray] | None = None


@dataclass
class BatchState:
    """Where N episodes stand that are all at the same layer.

    Attributes:
        step: Layers that have been decided.
        choices: int64 (N, L): their precisions, by number; the columns from `step` on mean nothing.
        used: (N, M) cost so far.
        limits: (N, M) limits; infinity where there is none.
        predicted_loss: (N,) sums of the predicted losses of the choices, in nats.
    """

    step: int
    choices: npt.NDArray[np.int64]
    used: FloatArray
    limits: FloatArray
    predicted_loss: FloatArray


class Observer:
    """Turns the state of an episode into an observation.

    Args:
        task: The task.
        costs: (M, L, P) costs by metric in the order of the environment's `metrics`.
        rest: (M, L + 1) the least that the layers from t on can cost.
        reference: (M,) cost of the uniform 8-bit network; where there is none, of the dearest allocation, or 1.
    """

    def __init__(self, task: Task, costs: FloatArray, rest: FloatArray, reference: FloatArray) -> None:
        self._layers, self._choices = len(task.workload), len(task.precisions)
        self._rest, self._reference = rest, reference
        self._most_rest = np.zeros_like(rest)
        most = np.where(task.choosable, costs, 0.0).max(axis=2)
        self._most_rest[:, : self._layers] = np.cumsum(most[:, ::-1], axis=1)[:, ::-1]
        self._widths = np.asarray([(p.weight_bits + p.activation_bits) / 2 for p in task.precisions])
        self._widths = self._widths / self._widths.max()
        self._loss_scale = np.log1p(max(float(task.predicted_loss.max(axis=1).sum()), 1e-6))
        self._static = self._static_features(task, costs)
        self._static_or_over = np.vstack([self._static, np.zeros(self._static.shape[1])])
        room = (self._most_rest - rest).T
        self._has_room, self._room = room > 0, np.where(room > 0, room, 1.0)
        self._one_hot, self._no_choice = np.eye(self._choices), np.zeros(self._choices)
        self.size = len(self.observe(self._empty(), np.ones(self._choices, dtype=bool)))

    @property
    def mask_columns(self) -> slice:
        """Where an observation has what may be chosen: P columns of 0 and 1."""
        return slice(self.size - 3 - self._choices, self.size - 3)

    def _empty(self) -> EpisodeState:
        metrics = len(self._reference)
        return EpisodeState(0, [], np.zeros(metrics), np.full(metrics, np.inf))

    def _static_features(self, task: Task, costs: FloatArray) -> FloatArray:
        """(L, F) what does not change during an episode."""
        layers = task.workload.layers
        kinds = np.asarray([[BASIC_KINDS[layer.kind] == kind for kind in _KINDS] for layer in layers], dtype=float)
        sizes = np.column_stack([_relative_log([getattr(layer, size) for layer in layers]) for size in _SIZES])
        shares = np.column_stack(
            [_share([layer.macs for layer in layers]), _share([layer.weight_elements for layer in layers])]
        )
        shape = np.asarray(
            [[max(layer.kernel) / _LARGEST_KERNEL, max(layer.stride) / _LARGEST_STRIDE] for layer in layers]
        )
        spread = task.evaluator.weight_statistics()[:, None] / _LARGEST_SPREAD
        predicted = task.predicted_loss
        sensitivity = np.log1p(predicted) / self._loss_scale
        # Within a layer: how much better the wider choices are, whatever the layer's own level.
        relative = predicted / np.maximum(predicted.max(axis=1, keepdims=True), 1e-12)
        widest = costs.max(axis=2, keepdims=True)
        ratios = (costs / np.where(widest > 0, widest, 1.0)).transpose(1, 0, 2).reshape(self._layers, -1)
        cost_shares = _share(costs.max(axis=2).T)
        return np.hstack([kinds, sizes, shares, shape, spread, sensitivity, relative, ratios, cost_shares])

    def observe(self, state: EpisodeState, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """The observation of a state: float32 of shape (size,), all values in [0, 1].

        Args:
            state: The state; after the last layer, the layer's own features are zero.
            allowed: (P,) what may be chosen now.
        """
        if state.of_limits is None:
            state.of_limits = self._of_limits(state.limits)
        limits, limit_features = state.of_limits
        step = state.step
        left = limits - state.used - self._rest[:, step]
        last, mean_width = self._no_choice, 0.0
        if state.choices:
            last = self._one_hot[state.choices[-1]]
            mean_width = np.add.reduce(self._widths[state.choices]) / len(state.choices)
        values = np.concatenate(
            [
                self._static_or_over[step],
                limit_features,
                state.used / self._reference,
                left / self._reference,
                # 0: everything that is left must be the cheapest; 1: everything may be the most expensive.
                np.where(self._has_room[step], left / self._room[step], 1.0),
                last,
                allowed,
                (step / self._layers, mean_width, np.log1p(state.predicted_loss) / self._loss_scale),
            ]
        )
        np.minimum(values, 1.0, out=values)
        np.maximum(values, 0.0, out=values)
        return np.asarray(values, dtype=np.float32)

    def _of_limits(self, limits: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Limits with the most that can be spent in place of infinite ones, and their features (2M,)."""
        limited = np.isfinite(limits)
        ratio = np.where(limited, limits / self._reference, 1.0)
        return np.where(limited, limits, self._most_rest[:, 0]), np.concatenate([limited, ratio])

    def observe_many(self, state: BatchState, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """What `observe` gives for each of N episodes: float32 of shape (N, size).

        Args:
            state: The episodes.
            allowed: (N, P) what may be chosen now.
        """
        step, count, metrics = state.step, len(state.used), len(self._reference)
        limited = np.isfinite(state.limits)
        limits = np.where(limited, state.limits, self._most_rest[:, 0])
        left = limits - state.used - self._rest[:, step]
        values = np.zeros((count, self.size))
        column = self._static.shape[1]
        values[:, :column] = self._static_or_over[step]
        parts = (
            limited,
            np.where(limited, state.limits / self._reference, 1.0),
            state.used / self._reference,
            left / self._reference,
            np.where(self._has_room[step], left / self._room[step], 1.0),
        )
        for part in parts:
            values[:, column : column + metrics] = part
            column += metrics
        if step:
            values[np.arange(count), column + state.choices[:, step - 1]] = 1.0
            values[:, -2] = self._widths[state.choices[:, :step]].mean(axis=1)
        column += self._choices
        values[:, column : column + self._choices] = allowed
        values[:, -3] = step / self._layers
        values[:, -1] = np.log1p(state.predicted_loss) / self._loss_scale
        np.clip(values, 0.0, 1.0, out=values)
        return values.astype(np.float32)


def _relative_log(values: list[int]) -> FloatArray:
    logs = np.log1p(np.asarray(values, dtype=float))
    return np.asarray(logs / logs.max())


def _share(values: FloatArray | list[int]) -> FloatArray:
    """Values over the largest of all layers, per column."""
    array = np.asarray(values, dtype=float)
    largest = array.max(axis=0)
    return np.asarray(array / np.where(largest > 0, largest, 1.0))
