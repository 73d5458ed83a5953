"""Samples from whatever form a user has them in."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from amed_env.datasets.samples import Samples
from amed_env.errors import DataError

LABEL_KEYS = ("labels", "label")
"""Where a dict has its labels, as the data sets of Hugging Face do."""
_WHAT_FITS = (
    "give (inputs, labels), a dict of inputs with labels, Samples, a torch data set of (input, label) pairs or of such "
    "dicts, or a DataLoader"
)


def as_samples(source: Any, part: str, labelled: bool | None = True, one_input: bool = False) -> Samples:
    """Samples from a pair of inputs and labels, a dict with both, inputs alone, a torch data set or a `DataLoader`.

    Inputs are a tensor, a tuple of tensors for several arguments of a network, a dict of them for keyword arguments, or
    a nested tree of these. Labels are class numbers (N,), masks or tokens (N, …), or values.

    Args:
        source: `Samples`; `(inputs, labels)`; a dict of inputs and `labels` (or `label`); a torch data set whose items
            are `(input, label)` pairs or such dicts, or a `DataLoader` whose batches are; or, without labels, inputs
            in any of these forms.
        part: What they are for, for messages.
        labelled: Whether labels are needed; None takes those that there are.
        one_input: Whether the network is known to take one tensor, so that two tensors are inputs and labels.

    Raises:
        DataError: If they are in no such form, empty, or malformed.
    """
    if isinstance(source, Samples):
        return source
    if isinstance(source, DataLoader):
        return _joined(source, part, labelled, one_input)
    if isinstance(source, Mapping):
        return _of_batch(source, part, labelled)
    is_pair = isinstance(source, tuple | list) and len(source) == 2 and _are_labels(source[1])
    if isinstance(source, torch.Tensor | np.ndarray) or is_pair or _are_inputs(source):
        return _of_batch(source, part, labelled, one_input)
    if isinstance(source, IterableDataset) or (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        return _of_items(source, part, labelled)
    raise DataError(f"the {part} samples are {type(source).__name__}; {_WHAT_FITS}.")


def _are_labels(entry: Any) -> bool:
    """Whether these may be labels, and not the second item of a data set, which begins with a tensor or a dict."""
    if isinstance(entry, tuple | list) and entry:
        first = entry[0]
        return isinstance(first, str) or _is_numbers(first) or (isinstance(first, torch.Tensor) and first.dim() == 0)
    return hasattr(entry, "__len__") and not isinstance(entry, Mapping)


def _are_inputs(source: Any) -> bool:
    """Whether these are several inputs of a network, without labels, which are one row of integers."""
    if not isinstance(source, tuple | list) or not any(isinstance(entry, torch.Tensor) for entry in source):
        return False
    return all(_is_input(entry) for entry in source)


def _is_input(entry: Any) -> bool:
    if isinstance(entry, torch.Tensor):
        return entry.is_floating_point() or entry.dim() > 1
    if isinstance(entry, Mapping):
        return all(_is_input(value) for value in entry.values())
    return entry is None or _are_inputs(entry)


def _of_batch(source: Any, part: str, labelled: bool | None, one_input: bool = False) -> Samples:
    """Samples of inputs and labels that have an axis of samples each."""
    inputs, labels = _split(source, labelled, one_input)
    inputs = _tensors(inputs, f"the inputs of the {part} samples")
    if labelled and labels is None:
        raise DataError(f"the {part} samples have no labels; {_WHAT_FITS}.")
    return Samples.of_inputs(inputs, _labels(labels, f"the labels of the {part} samples"), part)


def _labels(values: Any, what: str) -> torch.Tensor | None:
    """Labels in the types that samples have: whole numbers of any width as int64, floats as float32."""
    if values is None:
        return None
    labels = _tensor(values, what)
    return labels.float() if labels.is_floating_point() else labels.long()


def _split(source: Any, labelled: bool | None, one_input: bool = False) -> tuple[Any, Any]:
    """Inputs, and labels or None."""
    if isinstance(source, Mapping):
        inputs = {key: value for key, value in source.items() if key not in LABEL_KEYS}
        labels = [source[key] for key in LABEL_KEYS if key in source]
        return inputs, labels[0] if labels else None
    if isinstance(source, tuple | list) and len(source) == 2:
        if one_input:
            return source[0], source[1]
        are_values = isinstance(source[1], torch.Tensor) and source[1].is_floating_point() and source[1].dim() > 1
        if not are_values and (labelled or not _are_inputs(source)):
            return source[0], source[1]
    return source, None


def _joined(loader: Iterable[Any], part: str, labelled: bool | None, one_input: bool) -> Samples:
    """The batches of a loader, one behind the other."""
    batches = [_of_batch(batch, f"{part} (batch {number})", labelled, one_input) for number, batch in enumerate(loader)]
    if not batches:
        raise DataError(f"the {part} samples are empty; give at least one.")
    first = batches[0]
    for number, batch in enumerate(batches):
        if (batch.form, batch.sample_shape) != (first.form, first.sample_shape):
            raise DataError(
                f"batch {number} of the {part} samples has inputs of another shape than batch 0; pad all to one shape."
            )
    inputs = torch.cat([batch.inputs for batch in batches])
    labels = [batch.labels for batch in batches if batch.labels is not None]
    if len(labels) not in (0, len(batches)):
        raise DataError(f"some batches of the {part} samples have labels and others none; give them to all.")
    return Samples(inputs, torch.cat(labels) if labels else None, part, first.form)


def _of_items(source: Any, part: str, labelled: bool | None) -> Samples:
    """Samples of a data set, whose items have no axis of samples."""
    inputs, labels = [], []
    for number, item in enumerate(_items(source, part)):
        read, label = _of_item(item, number, part, labelled)
        inputs.append(read)
        labels.append(label)
    if not inputs:
        raise DataError(f"the {part} samples are empty; give at least one.")
    stacked = _stacked(inputs, part, "")
    if any(label is None for label in labels):
        return Samples.of_inputs(stacked, None, part)
    tensors = [_tensor(label, f"a label of the {part} data set") for label in labels]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise DataError(
            f"the {part} data set yields labels of the shapes {sorted(shapes)}; give a class number each, or arrays of "
            "one shape."
        )
    return Samples.of_inputs(stacked, _labels(torch.stack(tensors), f"the labels of the {part} data set"), part)


def _items(source: Any, part: str) -> Iterator[Any]:
    """Every item of a data set."""
    if isinstance(source, IterableDataset):
        yield from source
        return
    for index in range(len(source)):
        try:
            yield source[index]
        except Exception as error:  # a data set is code of the user
            raise DataError(f"item {index} of the {part} data set fails: {type(error).__name__}: {error}.") from error


def _of_item(item: Any, number: int, part: str, labelled: bool | None) -> tuple[Any, Any]:
    """Input and label of one item of a data set; None where there is none, or none is wanted."""
    what = f"item {number} of the {part} data set"
    is_pair = isinstance(item, tuple | list) and len(item) == 2
    if isinstance(item, Mapping):
        inputs, label = _split(item, labelled)
        if labelled and label is None:
            raise DataError(f"{what} has {', '.join(map(str, item))} and no {' or '.join(LABEL_KEYS)}; add them.")
    elif labelled and not is_pair:
        raise DataError(
            f"the {part} data set must yield (input, label) pairs; item {number} is {type(item).__name__}, and no dict "
            "with labels either."
        )
    else:
        # Where no labels are needed, a second entry is an input if it has axes of its own.
        inputs, label = item if is_pair and (labelled or np.ndim(item[1]) == 0) else (item, None)
    if labelled is False or label is None:
        return inputs, None
    if isinstance(label, float) or hasattr(label, "__array__"):
        return inputs, label
    try:
        return inputs, operator.index(label)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} has the label {label!r}; give a class number, a value or an array.") from error


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
    if isinstance(first, tuple | list) and not _is_numbers(first):
        columns = [list(column) for column in zip(*entries, strict=True)]
        return tuple(_stacked(column, part, f"{where} {number}") for number, column in enumerate(columns))
    if first is None:
        return None
    tensors = [_tensor(entry, f"an input{where} of the {part} data set") for entry in entries]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise DataError(
            f"the {part} data set yields inputs{where} of the shapes {sorted(shapes)}; pad all to one shape."
        )
    return torch.stack(tensors)


def _kind(entry: Any) -> str:
    """What must be equal for inputs to be stacked."""
    if isinstance(entry, Mapping):
        return f"a dict of {', '.join(sorted(map(str, entry)))}"
    if isinstance(entry, tuple | list) and not _is_numbers(entry):
        return f"{len(entry)} inputs"
    return "None" if entry is None else "a tensor"


def _is_numbers(entry: Any) -> bool:
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
    return _tensor(inputs, what) if isinstance(inputs, list | np.ndarray) else inputs


def _tensor(values: Any, what: str) -> torch.Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} cannot be made a tensor: {error}.") from error


def _leaves(inputs: Any) -> Iterator[Any]:
    if isinstance(inputs, Mapping):
        for value in inputs.values():
            yield from _leaves(value)
    elif isinstance(inputs, tuple | list):
        for value in inputs:
            yield from _leaves(value)
    else:
        yield inputs
