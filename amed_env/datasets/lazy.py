"""Inputs of samples that do not fit in memory: rows that are read when they are asked for."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from amed_env.tracing.packing import EXACT_INTEGERS

HASHED_AT_ONCE = 64
"""Samples whose hashes are computed together."""


class LazyInputs(ABC):
    """Inputs (N, …) that are read in parts; they are indexed, split and measured as a tensor is.

    Attributes:
        shape: As of a tensor.
        dtype: float32, or int64 for numbers of tokens.
        largest: The largest magnitude among them.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    largest: float

    @abstractmethod
    def split(self, size: int) -> Iterator[torch.Tensor]:
        """Tensors of `size` rows in order; the last may be smaller."""

    @abstractmethod
    def taken(self, rows: torch.Tensor) -> torch.Tensor:
        """A tensor of some rows, int64 (n,), in that order."""

    def subset(self, rows: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Some rows, as a tensor or lazy again, and their numbers in the order in which they are.

        Args:
            rows: int64 (n,), which need not be kept in this order.
        """
        return self.taken(rows), rows

    def hashes(self) -> list[bytes]:
        """A 16-byte hash of each row."""
        kind = stored_type(self.dtype, self.largest)
        found: list[bytes] = []
        for rows in self.split(HASHED_AT_ONCE):
            found.extend(row_hashes(rows, kind))
        return found

    def __getitem__(self, chosen: Any) -> torch.Tensor:
        """A tensor of some rows: a slice, or a tensor of their numbers."""
        return self.taken(torch.arange(len(self))[chosen])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def dim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def numel(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    def is_floating_point(self) -> bool:
        """Whether they are values, and not numbers of tokens."""
        return self.dtype.is_floating_point


class JoinedInputs(LazyInputs):
    """Several inputs, one behind the other.

    Args:
        parts: Tensors or lazy inputs of one shape but for the number of rows.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts
        self.shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        self.dtype = parts[0].dtype
        self.largest = max(largest_of(part) for part in parts)

    def split(self, size: int) -> Iterator[torch.Tensor]:
        """See `LazyInputs.split`."""
        return regrouped((rows for part in self.parts for rows in part.split(size)), size)

    def taken(self, rows: torch.Tensor) -> torch.Tensor:
        """See `LazyInputs.taken`."""
        read = torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        start = 0
        for part in self.parts:
            inside = torch.nonzero((rows >= start) & (rows < start + len(part))).flatten()
            if len(inside):
                read[inside] = part[rows[inside] - start]
            start += len(part)
        return read


def joined(parts: Sequence[Any]) -> Any:
    """Inputs one behind the other: a tensor, unless some are lazy."""
    if any(isinstance(part, LazyInputs) for part in parts):
        return JoinedInputs(parts)
    return torch.cat(list(parts))


def regrouped(tensors: Iterable[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """The rows of tensors in order, `size` at a time."""
    held: list[torch.Tensor] = []
    count = 0
    for tensor in tensors:
        held.append(tensor)
        count += len(tensor)
        if count < size:
            continue
        rows = torch.cat(held)
        whole = count // size * size
        yield from rows[:whole].split(size)
        held, count = [rows[whole:]], count - whole
    if count:
        yield torch.cat(held)


def largest_of(inputs: Any) -> float:
    """The largest magnitude among inputs."""
    if isinstance(inputs, LazyInputs):
        return inputs.largest
    return max(abs(float(value)) for value in torch.aminmax(inputs))


def stored_type(dtype: torch.dtype, largest: float) -> str:
    """What contents are hashed in: float32, which all small integers are too, or int64 for others."""
    return "<i8" if not dtype.is_floating_point and largest > EXACT_INTEGERS else "<f4"


def little_endian(tensor: torch.Tensor, dtype: str) -> np.ndarray:
    """The tensor's contents in a type that is the same on every machine."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy().astype(dtype, copy=False))


def row_hashes(inputs: torch.Tensor, kind: str) -> list[bytes]:
    """A 16-byte hash of each row; `kind` is a `stored_type`."""
    # Sixteen bytes make equal hashes of different samples practically impossible (2^64 samples for an even chance).
    rows = little_endian(inputs, kind).reshape(len(inputs), -1)
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]
