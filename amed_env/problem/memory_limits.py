"""A limit on memory as limits on sums over layers, one for each moment at which much is kept.

Memory is the largest sum of what is kept at one moment, so a limit on it is a limit on each of these sums. What a plan
wastes between results is not in them: an allocation that exceeds one of them needs too much memory for sure, and one
that meets them all may still need a little more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from amed_env.problem.allocation import FLOAT_BITS, Precision
from amed_env.problem.memory_plan import BYTE, NetworkMemory

FloatArray = npt.NDArray[np.float64]


class MemoryRows(NamedTuple):
    """What is kept at S moments, in bytes.

    Attributes:
        costs: float64 (S, L, P): of layers at each choice.
        fixed: float64 (S,): whatever is chosen.
    """

    costs: FloatArray
    fixed: FloatArray


def memory_rows(memory: NetworkMemory, layers: Sequence[str], precisions: Sequence[Precision]) -> MemoryRows:
    """What is kept at every moment at the least.

    Args:
        memory: What the network keeps.
        layers: Its L layers.
        precisions: P precisions.
    """
    numbers = {name: number for number, name in enumerate(layers)}
    steps = 1 + max((result.last for result in memory.results), default=0)
    costs = np.zeros((steps, len(layers), len(precisions)))
    fixed = np.full(steps, float(memory.scratch))
    activation = np.asarray([precision.activation_bits for precision in precisions], dtype=np.float64)
    for result in memory.results:
        # While a step writes over what it reads, the two are in one place.
        first = result.first if result.over is None else result.first + 1
        moments = slice(first, result.last + 1)
        if result.layer and not result.stored:
            costs[moments, numbers[result.layer]] += result.elements * activation / BYTE
        else:
            fixed[moments] += result.elements * (BYTE if result.stored else FLOAT_BITS) / BYTE
    return MemoryRows(*_largest(costs, fixed))


def _largest(costs: FloatArray, fixed: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The moments at which no other one keeps as much of everything."""
    order = np.argsort(-(fixed + costs.max(axis=2).sum(axis=1)), kind="stable")
    kept: list[int] = []
    for row in order:
        if not any(fixed[row] <= fixed[other] and (costs[row] <= costs[other]).all() for other in kept):
            kept.append(int(row))
    return costs[kept], fixed[kept]
