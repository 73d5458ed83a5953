"""Several inputs of a network as one tensor, so that whatever handles samples and batches handles a single one.

Every sample's values are put into one row, one input after the other; the network takes them apart again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

Shapes = tuple[tuple[int, ...], ...]
"""The shape of each input, without the sample axis."""


def pack(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """One float tensor (N, D) of several tensors (N, ...)."""
    return torch.cat([tensor.reshape(tensor.shape[0], -1) for tensor in inputs], dim=1)


def unpack(packed: torch.Tensor, shapes: Shapes) -> tuple[torch.Tensor, ...]:
    """The tensors (N, *shape) that `pack` made (N, D) from."""
    ends = [0]
    for shape in shapes:
        ends.append(ends[-1] + math.prod(shape))
    return tuple(
        packed[:, start:end].reshape(-1, *shape) for (start, end), shape in zip(pairwise(ends), shapes, strict=True)
    )
