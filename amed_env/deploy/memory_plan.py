"""Which buffers can share memory: a result lives from the step that makes it to the last one that reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 4
"""Bytes: floats and 32-bit integers are read from aligned addresses."""


@dataclass(frozen=True)
class Lifetime:
    """A buffer.

    Attributes:
        size: Bytes.
        first, last: The steps between which it must be kept.
    """

    size: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """Places of buffers in one arena.

    Attributes:
        offsets: Name to the first byte.
        size: Bytes of the arena.
    """

    offsets: Mapping[str, int]
    size: int


def plan_memory(buffers: Mapping[str, Lifetime]) -> MemoryPlan:
    """Places without overlap of what lives at the same time; of several orders the one that needs least.

    Each buffer goes to the lowest place that is free, the usual heuristic of embedded runtimes. Which buffer goes first
    decides how much is wasted: the largest is usually best, but not where sizes are nearly equal.
    """
    orders = (
        sorted(buffers, key=lambda name: (-buffers[name].size, buffers[name].first, name)),
        sorted(buffers, key=lambda name: (buffers[name].first, -buffers[name].size, name)),
        sorted(buffers, key=lambda name: (-buffers[name].last, -buffers[name].size, name)),
        sorted(buffers, key=lambda name: (buffers[name].first - buffers[name].last, -buffers[name].size, name)),
    )
    return min((_placed(buffers, order) for order in orders), key=lambda plan: plan.size)


def _placed(buffers: Mapping[str, Lifetime], order: Sequence[str]) -> MemoryPlan:
    offsets: dict[str, int] = {}
    for name in order:
        mine = buffers[name]
        taken = sorted(
            (offsets[other], offsets[other] + _aligned(buffers[other].size))
            for other in offsets
            if buffers[other].first <= mine.last and mine.first <= buffers[other].last
        )
        place = 0
        for start, end in taken:
            if place + _aligned(mine.size) <= start:
                break
            place = max(place, end)
        offsets[name] = place
    size = max((offsets[name] + _aligned(buffers[name].size) for name in offsets), default=0)
    return MemoryPlan(offsets, size)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
