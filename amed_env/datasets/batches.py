"""Inputs and labels of one batch, or of the items of a data set, as tensors that have an axis of samples."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from amed_env.datasets.padding import HOW_TO_PAD, pad_items
from amed_env.errors import DataError
from amed_env.support.text import shortened

LABEL_KEYS = ("labels", "label")
"""Where a dict has its labels, as the data sets of Hugging Face do."""
WHAT_FITS = (
    "give (inputs, labels), a dict of inputs with labels, Samples, a torch data set of (input, label) pairs or of such "
    "dicts, or a DataLoader"
)

WHAT_LABELS_ARE = (
    "give a class number, a value or an array of each sample, or inputs alone: to compare with the float network, as a "
    "search does by default, takes no labels"
)


class Batch(NamedTuple):
    """Some samples.

    Attributes:
        inputs: A tensor (N, …), or a tree of them.
        labels: int64 or float32 (N, …), or None.
        name: What they are, for messages.
    """

    inputs: Any
    labels: torch.Tensor | None
    name: str


def batch_of(source: Any, name: str, labelled: bool | None, one_input: bool = False) -> Batch:
    """Inputs and labels that have an axis of samples each.

    Args:
        source: A pair, a dict, or inputs alone.
        name: What they are, for messages: `search samples`.
        labelled: Whether labels are needed; None takes those that there are.
        one_input: Whether the network takes one tensor.

    Raises:
        DataError: If they are no tensors, or have no labels where these are needed.
    """
    inputs, labels = split_labels(source, labelled, one_input)
    if one_input and _are_collected(inputs, labels):
        inputs = _stacked(list(inputs), name, "")
    if labelled is False and isinstance(labels, tuple | list) and not is_numbers(labels):
        labels = None  # boxes, texts …: no one asks for them
    inputs = _tensors(inputs, f"the inputs of the {name}")
    if labelled and labels is None:
        raise DataError(f"the {name} have no labels; {WHAT_FITS}.")
    made = as_labels(labels, f"the labels of the {name}")
    if made is not None and made.dim() < 1:
        raise DataError(f"{name}: the labels are one number; expected a leading axis of samples.")
    return Batch(inputs, made, name)


def _are_collected(inputs: Any, labels: Any) -> bool:
    """Whether these are single samples and as many labels, as `collate_fn=lambda batch: tuple(zip(*batch))` gives."""
    if not isinstance(inputs, tuple | list) or not isinstance(labels, tuple | list) or len(inputs) != len(labels):
        return False
    return all(isinstance(entry, torch.Tensor) for entry in inputs)


def batch_of_items(
    items: Sequence[Any], numbers: Sequence[int], part: str, labelled: bool | None, one_input: bool = False
) -> Batch:
    """The items of a data set, which have no axis of samples, as a batch.

    Args:
        items: Pairs, dicts, or inputs alone.
        numbers: The number of each in the data set, for messages.
        part: What they are for, for messages.
        labelled: As for `batch_of`.
        one_input: As for `batch_of`.

    Raises:
        DataError: If they are in no such form, or differ from each other.
    """
    read = [_of_item(item, number, part, labelled, one_input) for item, number in zip(items, numbers, strict=True)]
    name = f"items {numbers[0]} to {numbers[-1]} of the {part} data set"
    what = f"a label of the {part} data set"
    single = [(_item_tensors(inputs, part), None if label is None else _tensor(label, what)) for inputs, label in read]
    padded = pad_items(single)
    stacked = _stacked([inputs for inputs, _ in padded], part, "")
    labels = [label for _, label in padded if label is not None]
    if len(labels) < len(padded):
        return Batch(stacked, None, name)
    shapes = {tuple(label.shape) for label in labels}
    if len(shapes) > 1:
        raise DataError(
            f"the {part} data set yields labels of the shapes {sorted(shapes)}; give a class number each, or arrays of "
            "one shape."
        )
    return Batch(stacked, as_labels(torch.stack(labels), f"the labels of the {part} data set"), name)


def _item_tensors(inputs: Any, part: str) -> Any:
    """A dict of inputs of one item with tensors, so that its sequences can be measured; others as they are."""
    if not isinstance(inputs, Mapping):
        return inputs
    made = {}
    for key, value in inputs.items():
        is_plain = isinstance(value, np.ndarray) or is_numbers(value)
        made[key] = _tensor(value, f"an input {key!r} of the {part} data set") if is_plain else value
    return made


def _are_texts(values: Any) -> bool:
    if isinstance(values, np.ndarray):
        return values.dtype.kind in "USO"
    return isinstance(values, list | tuple) and len(values) > 0 and isinstance(values[0], str)


def split_labels(source: Any, labelled: bool | None, one_input: bool = False) -> tuple[Any, Any]:
    """Inputs, and labels or None."""
    if isinstance(source, Mapping):
        inputs = {key: value for key, value in source.items() if key not in LABEL_KEYS}
        labels = [source[key] for key in LABEL_KEYS if key in source]
        return inputs, labels[0] if labels else None
    if isinstance(source, tuple | list) and len(source) == 2:
        if one_input:
            return source[0], source[1]
        are_values = isinstance(source[1], torch.Tensor) and source[1].is_floating_point() and source[1].dim() > 1
        if not are_values and (labelled or not are_inputs(source)):
            return source[0], source[1]
    return source, None


def _of_item(item: Any, number: int, part: str, labelled: bool | None, one_input: bool) -> tuple[Any, Any]:
    """Input and label of one item of a data set; None where there is none, or none is wanted."""
    what = f"item {number} of the {part} data set"
    is_pair = isinstance(item, tuple | list) and len(item) == 2
    if isinstance(item, Mapping):
        inputs, label = split_labels(item, labelled)
        if labelled and label is None:
            raise DataError(f"{what} has {', '.join(map(str, item))} and no {' or '.join(LABEL_KEYS)}; add them.")
    elif labelled and not is_pair:
        raise DataError(
            f"the {part} data set must yield (input, label) pairs; item {number} is {type(item).__name__}, and no dict "
            "with labels either."
        )
    else:
        # Where no labels are needed, a second entry is an input if it has axes of its own. So have masks, which it is
        # where the network is known to take one input.
        inputs, label = item if is_pair and (labelled or one_input or np.ndim(item[1]) == 0) else (item, None)
    if labelled is False or label is None:
        return inputs, None
    if isinstance(label, float) or hasattr(label, "__array__"):
        return inputs, label
    try:
        return inputs, operator.index(label)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} has the label {shortened(label)}; {WHAT_LABELS_ARE}.") from error


def _stacked(entries: list[Any], part: str, where: str) -> Any:
    """The inputs of items as one tree whose tensors have an axis of samples."""
    first = entries[0]
    kinds = {_kind(entry) for entry in entries}
    if len(kinds) > 1:
        raise DataError(
            f"the {part} data set yields different inputs{where}: {' and '.join(sorted(kinds))}; give the same of each."
        )
    if isinstance(first, Mapping):
        return {key: _stacked([entry[key] for entry in entries], part, f"{where} {key!r}") for key in first}
    if isinstance(first, tuple | list) and not is_numbers(first):
        columns = [list(column) for column in zip(*entries, strict=True)]
        return tuple(_stacked(column, part, f"{where} {number}") for number, column in enumerate(columns))
    if first is None:
        return None
    tensors = [_tensor(entry, f"an input{where} of the {part} data set") for entry in entries]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise DataError(f"the {part} data set yields inputs{where} of the shapes {sorted(shapes)}; {HOW_TO_PAD}.")
    return torch.stack(tensors)


def _kind(entry: Any) -> str:
    """What must be equal for inputs to be stacked."""
    if isinstance(entry, Mapping):
        return f"a dict of {', '.join(sorted(map(str, entry)))}"
    if isinstance(entry, tuple | list) and not is_numbers(entry):
        return f"{len(entry)} inputs"
    return "None" if entry is None else "a tensor"


def is_numbers(entry: Any) -> bool:
    """Whether a list is numbers, as data sets without tensors have them, and not several inputs."""
    while isinstance(entry, tuple | list) and entry:
        entry = entry[0]
    return isinstance(entry, int | float)


def _tensors(inputs: Any, what: str) -> Any:
    """Inputs with lists and arrays of numbers made tensors."""
    if isinstance(inputs, Mapping):
        return {key: _tensors(value, f"{what} {key!r}") for key, value in inputs.items()}
    if isinstance(inputs, tuple) or (isinstance(inputs, list) and any(isinstance(i, torch.Tensor) for i in inputs)):
        return tuple(_tensors(value, what) for value in inputs)
    is_array = isinstance(inputs, list | np.ndarray) and not isinstance(inputs, np.memmap)
    return (
        _tensor(inputs, what) if is_array else inputs
    )  # of a file that is mapped, rows are made tensors as they are read


def _tensor(values: Any, what: str) -> torch.Tensor:
    try:
        if hasattr(values, "getpixel"):  # an image of PIL, of which torch makes (H, W, 3) without a word
            raise TypeError("it is an image of PIL; return tensors (C, H, W), as ToTensor() makes them")
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} cannot be made a tensor: {error}.") from error


def as_labels(values: Any, what: str) -> torch.Tensor | None:
    """Labels in the types that samples have: whole numbers of any width as int64, floats as float32."""
    if values is None:
        return None
    if _are_texts(values):
        raise DataError(f"{what} cannot be made a tensor: they are texts; give the number of each class, from 0.")
    if isinstance(values, Mapping) or (isinstance(values, tuple | list) and values and isinstance(values[0], Mapping)):
        raise DataError(f"{what} are dicts; {WHAT_LABELS_ARE}.")
    labels = _tensor(values, what)
    return labels.float() if labels.is_floating_point() else labels.long()


def are_inputs(source: Any) -> bool:
    """Whether these are several inputs of a network, without labels, which are one row of integers."""
    if not isinstance(source, tuple | list) or not any(isinstance(entry, torch.Tensor) for entry in source):
        return False
    return all(_is_input(entry) for entry in source)


def _is_input(entry: Any) -> bool:
    if isinstance(entry, torch.Tensor):
        return entry.is_floating_point() or entry.dim() > 1
    if isinstance(entry, Mapping):
        return all(_is_input(value) for value in entry.values())
    return entry is None or are_inputs(entry)
