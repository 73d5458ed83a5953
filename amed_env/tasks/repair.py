"""Bring an allocation that exceeds its budgets within them, by as few and as harmless changes as possible."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from amed_env.problem.constraints import cheapest_choices
from amed_env.problem.objective import fits, violation
from amed_env.tasks.task import Task


def repair(task: Task, choices: npt.NDArray[np.int64], limits: Mapping[str, float]) -> npt.NDArray[np.int64] | None:
    """Choices within the limits that differ from the given ones in few layers.

    Where costs add up this changes the least number of layers and, among those, gives the least predicted loss. Where
    they do not, it takes the single change that removes the most violation per predicted loss, again and again. Where
    no single change helps (of a maximum several layers may be the largest), it is the widest uniform allocation within
    the limits, with those of the given choices that still fit.

    Args:
        task: The task.
        choices: int64 (L,), a precision number a layer.
        limits: Limit by metric.

    Returns:
        int64 (L,), or None if no way within the limits was found.
    """
    if all(metric in task.costs for metric in limits):
        table = np.stack([task.costs[metric] for metric in limits])
        return cheapest_choices(table, np.asarray(list(limits.values())), _as_given(task, choices), task.choosable)
    if all(metric in task.device_costs.least_table for metric in limits):
        # What meets the bounds on every sum mostly meets the limits: memory needs more only if room is wasted.
        costs, values = task.device_costs.bounded_limits(limits)
        best = cheapest_choices(costs, values, _as_given(task, choices), task.choosable)
        if best is not None and fits(task.cost(task.allocation(best)).metrics, limits):
            return best
    return _repair_by_descent(task, choices, limits)


def _as_given(task: Task, choices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """What to minimise for few changes and, among those, little predicted loss: float64 (L, P)."""
    changed = np.ones_like(task.predicted_loss)
    changed[np.arange(len(choices)), choices] = 0.0
    # One more change must weigh more than any predicted loss can.
    weight = 2.0 * float(task.predicted_loss.max(axis=1).sum()) + 1.0
    return np.asarray(task.predicted_loss + weight * changed)


def _repair_by_descent(
    task: Task, choices: npt.NDArray[np.int64], limits: Mapping[str, float]
) -> npt.NDArray[np.int64] | None:
    current = task.nearest_choosable(choices)
    costs = task.cost(task.allocation(current)).metrics
    while not fits(costs, limits):
        excess = violation(costs, limits)
        best: tuple[float, npt.NDArray[np.int64], Mapping[str, float]] | None = None
        moves = [
            (layer, int(choice))
            for layer in range(len(current))
            for choice in np.flatnonzero(task.choosable[layer])
            if choice != current[layer]
        ]
        candidates = [np.where(np.arange(len(current)) == layer, choice, current) for layer, choice in moves]
        answers = task.device_costs.evaluate_many([task.allocation(candidate) for candidate in candidates])
        for (layer, choice), candidate, answer in zip(moves, candidates, answers, strict=True):
            relief = excess - violation(answer.metrics, limits)
            harm = task.predicted_loss[layer, choice] - task.predicted_loss[layer, current[layer]]
            # A change that harms nothing is worth taking first, but not infinitely: relief decides among such ones.
            gain = relief / max(float(harm), 1e-6)
            if relief > 0 and (best is None or gain > best[0]):
                best = gain, candidate, answer.metrics
        if best is None:
            return _from_uniform(task, choices, limits)
        _, current, costs = best
    return current


def _from_uniform(
    task: Task, choices: npt.NDArray[np.int64], limits: Mapping[str, float]
) -> npt.NDArray[np.int64] | None:
    def within(candidate: npt.NDArray[np.int64]) -> bool:
        return fits(task.cost(task.allocation(candidate)).metrics, limits)

    uniform = (task.space.uniform_choices(int(choice)) for choice in task.space.free_choices[::-1])
    current = next((candidate for candidate in uniform if within(candidate)), None)
    if current is None:
        return None
    wanted, rows = task.nearest_choosable(choices), np.arange(len(choices))
    avoided = task.predicted_loss[rows, current] - task.predicted_loss[rows, wanted]
    for layer in np.argsort(-avoided, kind="stable"):
        candidate = np.where(rows == layer, wanted, current)
        if wanted[layer] != current[layer] and within(candidate):
            current = candidate
    return current
