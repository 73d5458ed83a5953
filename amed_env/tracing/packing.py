"""A network's inputs, whatever tree of tensors they are, as one tensor: what handles samples and batches handles one.

A single tensor stays as it is. Of several, each sample's values are put into one row, one input after the other, and
the network takes them apart again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

Shapes = tuple[tuple[int, ...], ...]
"""The shape of each input, without the sample axis."""
Inputs = Any
"""What a network takes: a tensor (N, …), a tuple of arguments, a mapping of keyword arguments, or a tree of these."""

EXACT_INTEGERS = 2**24
"""Integers up to here, and no further ones, are all float32 numbers."""
_INTEGER_TYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.bool)
"""Bytes without a sign are pixels more often than numbers of tokens, so they are not guessed at."""
_CONSTANTS = (type(None), bool, int, float, str)
_WHAT_FITS = (
    "inputs must be a tensor with at least one sample, shape (N, ...), a tuple of such tensors for several arguments, "
    "or a dict of them for keyword arguments; these may be nested, with None, numbers or texts among them"
)


@dataclass(frozen=True)
class Slot:
    """Where the tensor of a number stands in a tree."""

    number: int


@dataclass(frozen=True)
class InputForm:
    """How one tensor holds all inputs of a network.

    Attributes:
        tree: What the network takes, as dicts, lists and tuples, with a `Slot` for each tensor.
        names: Where each tensor stands (`input_ids`, `1.mask`); empty for a tensor that stands alone.
        shapes: Shape of each tensor, without the sample axis.
        types: Type in which the network gets each tensor.
    """

    tree: Any
    names: tuple[str, ...]
    shapes: Shapes
    types: tuple[torch.dtype, ...]

    @property
    def is_plain(self) -> bool:
        """Whether it is one tensor, float32 or int64, that needs no packing."""
        return self.tree == Slot(0) and self.types[0] in (torch.float32, torch.int64) and len(self.shapes[0]) > 0

    def with_float_types(self, chosen: Callable[[torch.dtype], torch.dtype]) -> InputForm:
        """The same form with other types of its floating-point tensors."""
        types = [chosen(dtype) if dtype.is_floating_point else dtype for dtype in self.types]
        return replace(self, types=tuple(types))

    def unpacked(self, packed: torch.Tensor) -> Inputs:
        """What the network takes, of the tensor that holds it."""
        if len(self.shapes) == 1:
            parts = [packed if packed.shape[1:] == self.shapes[0] else packed.reshape(packed.shape[0], *self.shapes[0])]
        else:
            parts = list(unpack(packed, self.shapes))
        typed = [part if part.dtype == dtype else part.to(dtype) for part, dtype in zip(parts, self.types, strict=True)]
        return _filled(self.tree, typed)

    def fingerprint(self) -> str:
        """Text that differs for other shapes, types, names or constants; for a tuple of tensors just the shapes."""
        usual = all(dtype in (torch.float32, torch.int64) for dtype in self.types)
        if usual and self.tree == tuple(map(Slot, range(len(self.shapes)))):
            return str(self.shapes)  # as it was before there were other trees: kept results go by it
        return f"{self.shapes} {[str(dtype) for dtype in self.types]} {self.tree}"

    def listed(self) -> str:
        """Every tensor's name, shape and type, and the constants, for messages."""
        parts = []
        for name, shape, dtype in zip(self.names, self.shapes, self.types, strict=True):
            kind = "" if dtype == torch.float32 else f" {dtype}"
            parts.append(f"{name} {shape}{kind}".strip())
        parts.extend(_constants(self.tree, ""))
        return ", ".join(parts)

    def described(self, count: int) -> str:
        """What a call with a number of samples is given, for messages."""
        shapes = [(count, *shape) for shape in self.shapes]
        if self.tree == Slot(0):
            return f"an input of shape {shapes[0]}"
        if _are_numbers(self.names):
            return f"inputs of shapes {shapes}"
        return "inputs " + ", ".join(f"{name} {shape}" for name, shape in zip(self.names, shapes, strict=True))


def packed_inputs(inputs: Inputs) -> tuple[torch.Tensor, InputForm]:
    """One tensor that holds all inputs of a network, float32 or int64, and how it does.

    Raises:
        ValueError: If there are no tensors, they have no samples or unequally many, or something else stands among
            them, or if integers beyond 2^24 would be packed with floats, which are not exact there.
    """
    alone = isinstance(inputs, tuple | list) and len(inputs) == 1 and isinstance(inputs[0], torch.Tensor | np.ndarray)
    tree, tensors, names = _taken_apart(inputs[0] if alone else inputs)
    if not tensors:
        raise ValueError(f"there is no tensor in this {type(inputs).__name__}; {_WHAT_FITS}.")
    for tensor, name in zip(tensors, names, strict=True):
        _check_type(tensor, name)
    counts = [len(tensor) if tensor.dim() else 0 for tensor in tensors]
    if len(set(counts)) > 1:
        raise ValueError(f"the inputs have {counts} samples{_in_order(names)}; give as many of each.")
    if counts[0] == 0:
        raise ValueError(f"there are no samples in inputs of shape {tuple(tensors[0].shape)}; {_WHAT_FITS}.")
    if tree == Slot(0) and tensors[0].dim() < 2:
        raise ValueError(
            f"inputs have shape {tuple(tensors[0].shape)}; expected a leading axis of samples and at least one axis of "
            f"values; {_WHAT_FITS}."
        )
    form = InputForm(
        tree,
        tuple(names),
        tuple(tuple(tensor.shape[1:]) for tensor in tensors),
        tuple(tensor.dtype for tensor in tensors),
    )
    if len(tensors) == 1:
        single = _stored(tensors[0])
        return (single if single.dim() > 1 else single[:, None]), form
    if any(tensor.is_floating_point() for tensor in tensors):
        for tensor, name in zip(tensors, names, strict=True):
            _check_exact(tensor, name)
    return pack([_stored(tensor) for tensor in tensors]), form


def _check_type(tensor: torch.Tensor, name: str) -> None:
    if tensor.is_floating_point() or tensor.dtype in _INTEGER_TYPES:
        return
    which = f"input {name!r} is" if name else "inputs are"
    if tensor.dtype == torch.uint8:
        raise ValueError(
            f"{which} torch.uint8, expected torch.float32 or torch.int64; convert them with .float() and scale them as "
            "in training, or give make_task a transform that does so, such as lambda batch: batch.float() / 255; "
            "numbers of tokens with .long()."
        )
    raise ValueError(
        f"{which} {tensor.dtype}, expected torch.float32 or torch.int64; convert them with .float(), or .long() for "
        "numbers of tokens."
    )


def _check_exact(tensor: torch.Tensor, name: str) -> None:
    """Check that integers which are packed with floats stay what they are."""
    if tensor.dtype in (torch.int32, torch.int64) and tensor.numel():
        largest = max(abs(int(value)) for value in torch.aminmax(tensor))
        if largest > EXACT_INTEGERS:
            raise ValueError(
                f"input {name!r} has the integer {largest}, and beyond 2^24 they are not exact beside inputs that are "
                "floats; give smaller numbers, or two inputs (its quotient and remainder by 2^24)."
            )


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.float32 if tensor.is_floating_point() else torch.int64)


def _taken_apart(inputs: Inputs) -> tuple[Any, list[torch.Tensor], list[str]]:
    """The tree with slots, its tensors, and where each stands."""
    tensors: list[torch.Tensor] = []
    names: list[str] = []
    tree = _slotted(inputs, (), tensors, names)
    return tree, tensors, names


# No function inside of the other: one that calls itself is in a reference cycle, which would keep every batch's tensors
# in memory until the garbage collector comes by.
def _slotted(value: Any, path: tuple[str, ...], tensors: list[torch.Tensor], names: list[str]) -> Any:
    """A tree with slots; its tensors and their names are added to the lists."""
    if isinstance(value, np.ndarray):
        value = torch.as_tensor(value)
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        names.append(".".join(path))
        return Slot(len(tensors) - 1)
    if isinstance(value, Mapping):  # as the tokenizers of transformers return them; the order of keys means nothing
        return {key: _slotted(value[key], (*path, str(key)), tensors, names) for key in sorted(value, key=str)}
    if isinstance(value, tuple | list):
        parts = [_slotted(part, (*path, str(number)), tensors, names) for number, part in enumerate(value)]
        return _like(value, parts)
    if isinstance(value, _CONSTANTS):
        return value
    where = f" at {'.'.join(path)!r}" if path else ""
    raise ValueError(f"{type(value).__name__}{where} is no input of a network; {_WHAT_FITS}.")


def _filled(tree: Any, tensors: Sequence[torch.Tensor]) -> Any:
    if isinstance(tree, Slot):
        return tensors[tree.number]
    if isinstance(tree, dict):
        return {key: _filled(value, tensors) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return _like(tree, [_filled(part, tensors) for part in tree])
    return tree


def _like(sequence: Any, parts: list[Any]) -> Any:
    """The parts as a list, tuple or named tuple like another one."""
    if isinstance(sequence, list):
        return parts
    make: Any = getattr(type(sequence), "_make", tuple)
    return make(parts)


def _constants(tree: Any, name: str) -> list[str]:
    """The constants of a tree, each as `name=value`."""
    if isinstance(tree, Slot):
        return []
    entries: Any = ()
    if isinstance(tree, dict):
        entries = tree.items()
    elif isinstance(tree, tuple | list):
        entries = enumerate(tree)
    else:
        return [f"{name}={tree!r}"]
    found = []
    for key, value in entries:
        found += _constants(value, f"{name}.{key}" if name else str(key))
    return found


def _in_order(names: Sequence[str]) -> str:
    return "" if _are_numbers(names) else f" ({', '.join(names)})"


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether inputs are known by their places alone."""
    return all(name.isdecimal() or not name for name in names)


def pack(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor (N, D) of several tensors (N, ...)."""
    return torch.cat([tensor.reshape(tensor.shape[0], -1) for tensor in inputs], dim=1)


def unpack(packed: torch.Tensor, shapes: Shapes) -> Iterator[torch.Tensor]:
    """The tensors (N, *shape) that `pack` made (N, D) from."""
    ends = [0]
    for shape in shapes:
        ends.append(ends[-1] + math.prod(shape))
    for (start, end), shape in zip(pairwise(ends), shapes, strict=True):
        yield packed[:, start:end].reshape(packed.shape[0], *shape)


def of_size(samples: torch.Tensor, size: int) -> torch.Tensor:
    """The first samples, repeated where they are too few."""
    return samples if len(samples) == size else samples[torch.arange(size) % len(samples)]
