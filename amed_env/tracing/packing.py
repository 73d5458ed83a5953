"""Several inputs of a network as one tensor, so that whatever handles samples and batches handles a single one.

Every sample's values are put into one row, one input after the other; the network takes them apart again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

Shapes = tuple[tuple[int, ...], ...]
"""The shape of each input, without the sample axis."""


def pack(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """One float tensor (N, D) of several tensors (N, ...)."""
    return torch.cat([tensor.reshape(tensor.shape[0], -1) for tensor in inputs], dim=1)


def unpack(packed: torch.Tensor, shapes: Shapes) -> tuple[torch.Tensor, ...]:
    """The tensors (N, *shape) that `pack` made (N, D) from; torch.fx can follow it."""
    ends = [0]
    for shape in shapes:
        ends.append(ends[-1] + math.prod(shape))
    return tuple(
        packed[:, start:end].reshape(-1, *shape) for (start, end), shape in zip(pairwise(ends), shapes, strict=True)
    )


def take_packed(module: nn.Module, shapes: Shapes) -> nn.Module:
    """Change a network of several inputs, in place, to one that takes them packed; its layers keep their names.

    Args:
        module: The network.
        shapes: The shape of each input, without the sample axis.
    """
    module.packed_shapes = shapes  # type: ignore[assignment]
    module.__class__ = _packed_class(type(module))
    return module


_PACKED_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _packed_class(base: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose `forward` takes the packed tensor; always the same one for a class."""
    if base in _PACKED_CLASSES:
        return _PACKED_CLASSES[base]

    def forward(self: Any, packed: torch.Tensor) -> Any:
        return base.forward(self, *unpack(packed, self.packed_shapes))

    def reduce(self: Any) -> tuple[object, ...]:  # no module holds this class, so it is made anew
        return _empty, (base,), self.__dict__

    made = type(f"Packed{base.__name__}", (base,), {"forward": forward, "__reduce__": reduce})
    return _PACKED_CLASSES.setdefault(base, made)


def _empty(base: type[nn.Module]) -> nn.Module:
    made = _packed_class(base)
    return made.__new__(made)
