"""Samples from whatever form a user has them in."""

from __future__ import annotations

import operator
from typing import Any, TypeGuard

import torch

from amed_env.datasets.samples import Samples
from amed_env.errors import DataError


def as_samples(source: Any, part: str, labelled: bool = True, input_count: int | None = None) -> Samples:
    """Samples from a pair of inputs and labels, from inputs alone, or from a torch data set.

    Inputs are a tensor, or a tuple of tensors for a network that takes several. Labels are class numbers (N,), masks or
    tokens (N, …), or values.

    Args:
        source: `Samples`, `(inputs, labels)`, a torch data set of `(input, label)` pairs or, without labels, `inputs`.
        part: What they are for, for messages.
        labelled: Whether labels are needed.
        input_count: Tensors that the network takes, if that is known: then two tensors for a network of one input are
            inputs and labels, and otherwise two inputs.

    Raises:
        DataError: If they are in no such form, empty, or malformed.
    """
    if isinstance(source, Samples):
        return source
    pair = isinstance(source, tuple | list) and len(source) == 2 and all(hasattr(item, "__len__") for item in source)
    if isinstance(source, torch.Tensor) or (_is_several(source) and not (pair and input_count == 1)):
        if labelled:
            raise DataError(f"the {part} samples have no labels; give a pair (inputs, labels).")
        return _make(source, None, part)
    if pair:
        return _make(source[0], _labels(source[1], f"the labels of the {part} samples"), part)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        if len(source) == 0:
            raise DataError(f"the {part} samples are empty; give at least one.")
        pairs = [_item(source, index, part) for index in range(len(source))]
        inputs = [pair[0] for pair in pairs]
        labels = _stacked_labels([pair[1] for pair in pairs], part)
        if all(isinstance(entry, tuple | list) for entry in inputs):
            columns = zip(*inputs, strict=True)
            return _make(tuple(_stacked(column, part) for column in columns), labels, part)
        return _make(_stacked(inputs, part), labels, part)
    raise DataError(
        f"the {part} samples are {type(source).__name__}; give (inputs, labels), Samples or a torch data set."
    )


def _is_several(source: Any) -> TypeGuard[tuple[torch.Tensor, ...]]:
    """Whether these are several inputs of a network; labels are one row of integers."""
    return (
        isinstance(source, tuple | list)
        and len(source) > 1
        and all(isinstance(item, torch.Tensor) and (item.is_floating_point() or item.dim() > 1) for item in source)
    )


def _item(source: Any, index: int, part: str) -> tuple[Any, Any]:
    """Input and label of one item of a data set."""
    try:
        item = source[index]
    except Exception as error:  # a data set is code of the user
        raise DataError(f"item {index} of the {part} data set fails: {type(error).__name__}: {error}.") from error
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(f"the {part} data set must yield (input, label) pairs; item {index} is {type(item).__name__}.")
    label = item[1]
    if not isinstance(label, float) and not hasattr(label, "__array__"):
        try:
            label = operator.index(label)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"item {index} of the {part} data set has the label {label!r}; give a class number, a value or an "
                "array."
            ) from error
    return item[0], label


def _stacked_labels(labels: list[Any], part: str) -> torch.Tensor:
    tensors = [_tensor(label, f"a label of the {part} data set") for label in labels]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise DataError(
            f"the {part} data set yields labels of the shapes {sorted(shapes)}; give a class number each, or arrays of "
            "one shape."
        )
    return _labels(torch.stack(tensors), f"the labels of the {part} data set")


def _labels(values: Any, what: str) -> torch.Tensor:
    """Labels in the types that samples have: whole numbers of any width as int64, floats as float32."""
    labels = _tensor(values, what)
    return labels.float() if labels.is_floating_point() else labels.long()


def _tensor(values: Any, what: str) -> torch.Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} cannot be made a tensor: {error}.") from error


def _stacked(inputs: Any, part: str) -> torch.Tensor:
    tensors = [_tensor(entry, f"an input of the {part} data set") for entry in inputs]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise DataError(f"the {part} data set yields inputs of the shapes {sorted(shapes)}; give all of one shape.")
    return torch.stack(tensors)


def _make(inputs: Any, labels: torch.Tensor | None, part: str) -> Samples:
    if isinstance(inputs, tuple | list) and len(inputs) > 1 and all(isinstance(i, torch.Tensor) for i in inputs):
        return Samples.of_several(inputs, labels, part)
    return Samples(_tensor(inputs, f"the inputs of the {part} samples"), labels, part)
