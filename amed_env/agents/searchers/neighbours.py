"""Allocations that differ from another in one layer, or in two of which one is widened and one narrowed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from amed_env.tasks.task import Task

IntArray = npt.NDArray[np.int64]


def neighbours(task: Task, choices: IntArray) -> IntArray:
    """All choices that differ in one layer, then exchanges: one layer gets the next wider, another the next narrower.

    Args:
        task: Says what layers may choose.
        choices: int64 (L,).

    Returns:
        int64 (N, L).
    """
    layers = len(choices)
    rows, others = np.nonzero(task.choosable & (np.arange(len(task.precisions)) != choices[:, None]))
    single = np.repeat(choices[None], len(rows), axis=0)
    single[np.arange(len(rows)), rows] = others
    steps = [_steps(task, layer, int(choices[layer])) for layer in range(layers)]
    exchanges = [
        (up, wider, down, narrower)
        for up in range(layers)
        for down in range(layers)
        if up != down
        for wider in steps[up][1]
        for narrower in steps[down][0]
    ]
    double = np.repeat(choices[None], len(exchanges), axis=0)
    for row, (up, wider, down, narrower) in enumerate(exchanges):
        double[row, up], double[row, down] = wider, narrower
    return np.concatenate([single, double])


def _steps(task: Task, layer: int, choice: int) -> tuple[list[int], list[int]]:
    """The next narrower and the next wider choices: one each with tied widths, up to two each with separate ones."""
    here = task.precisions[choice]
    others = [int(other) for other in np.flatnonzero(task.choosable[layer]) if other != choice]
    lower: list[int] = []
    upper: list[int] = []
    for part in (0, 1) if task.separate else (None,):
        below: list[tuple[int, int]] = []
        above: list[tuple[int, int]] = []
        for other in others:
            there = task.precisions[other]
            if part is not None and there[1 - part] != here[1 - part]:
                continue
            difference = sum(there) - sum(here)
            if difference:
                (above if difference > 0 else below).append((abs(difference), other))
        lower += [min(below)[1]] if below else []
        upper += [min(above)[1]] if above else []
    return lower, upper


def random_neighbour(task: Task, choices: IntArray, rng: np.random.Generator) -> IntArray:
    """Another choice for one layer drawn at random, or for two; the same where no layer has a choice."""
    free = np.flatnonzero(task.choosable.sum(axis=1) > 1)
    changed = choices.copy()
    if len(free) == 0:
        return changed
    for layer in rng.choice(free, size=min(len(free), int(rng.integers(1, 3))), replace=False):
        others = [choice for choice in np.flatnonzero(task.choosable[layer]) if choice != choices[layer]]
        changed[layer] = rng.choice(others)
    return changed
