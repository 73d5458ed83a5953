"""Operations that only move values, as nested loops over two strided buffers.

What an operation moves is found out by running it on the positions of the values: reshape, slice, transpose, pad and
concatenate become the same few loops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

MOST_AXES = 5
"""Loops of the C kernel."""

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Loops:
    """Where values are read and written: `target[offset + i·steps] = source[offset + i·steps]` for all `i < counts`.

    Attributes:
        counts: Values of each loop, the outermost first.
        source_steps, target_steps: Elements between neighbours.
        source_offset, target_offset: The first element.
    """

    counts: tuple[int, ...]
    source_steps: tuple[int, ...]
    target_steps: tuple[int, ...]
    source_offset: int
    target_offset: int


def moved(
    sources: Sequence[torch.Tensor], order: Sequence[int], operation: Callable[..., torch.Tensor]
) -> list[tuple[int, Loops]] | None:
    """The loops of an operation.

    Args:
        sources: Positions of the operands' values.
        order: Axes of the result, slowest first.
        operation: Takes tensors in place of the operands; what it pads with is 0.

    Returns:
        Operand and loops, or None if the operation is no such thing. What no loop writes is padding.
    """
    bases = np.cumsum([1, *(source.numel() for source in sources)])
    result = operation(*(source + int(base) for source, base in zip(sources, bases, strict=False)))
    stored = np.ascontiguousarray(result.permute(*order).numpy())
    places = np.arange(stored.size).reshape(stored.shape)
    found: list[tuple[int, Loops]] = []
    for number in range(len(sources)):
        mine = (stored >= bases[number]) & (stored < bases[number + 1])
        if not mine.any():
            continue
        box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in np.nonzero(mine))
        if not mine[box].all():
            return None
        loops = _loops(stored[box] - int(bases[number]), places[box])
        if loops is None:
            return None
        found.append((number, loops))
    return found


def _loops(read: Positions, written: Positions) -> Loops | None:
    """Nested loops that go over both in the order of their axes, or None if there are no regular ones."""
    sources, targets = read.reshape(-1), written.reshape(-1)
    first = int(sources[0]), int(targets[0])
    inner_first: list[tuple[int, int, int]] = []
    while len(sources) > 1:
        # The longest start with constant steps is the innermost loop; the rest must repeat it.
        steps = np.stack([np.diff(sources), np.diff(targets)])
        changes = np.nonzero((steps != steps[:, :1]).any(axis=0))[0]
        count = int(changes[0]) + 1 if len(changes) else len(sources)
        if len(sources) % count:
            return None
        for values, step in zip((sources, targets), steps[:, 0], strict=True):
            rows = values.reshape(-1, count)
            if not np.array_equal(rows, rows[:, :1] + step * np.arange(count)):
                return None
        inner_first.append((count, int(steps[0, 0]), int(steps[1, 0])))
        sources, targets = sources[::count], targets[::count]
    if len(inner_first) > MOST_AXES:
        return None
    counts, source_steps, target_steps = zip(*(inner_first[::-1] or [(1, 1, 1)]), strict=True)
    return Loops(counts, source_steps, target_steps, *first)
