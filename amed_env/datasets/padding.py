"""Sequences of different lengths beside an attention mask, padded to one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from amed_env.datasets.samples import IGNORED_LABEL, MASK_NAME
from amed_env.errors import DataError
from amed_env.support.text import tensor_text

LABELS = "labels"
HOW_TO_PAD = (
    "padding would change what the network answers, so pad all to one shape yourself, or give dicts with an "
    f"{MASK_NAME!r} (1 for what counts, 0 for padding): they are then padded to the longest"
)


def length_of(inputs: Any, axis: int = 1) -> int | None:
    """How long the sequences of a batch are; None for inputs without an attention mask.

    Args:
        inputs: What a network takes.
        axis: Axis of the sequence in the mask: 1, or 0 for a single sample.
    """
    if not isinstance(inputs, Mapping) or not isinstance(inputs.get(MASK_NAME), torch.Tensor):
        return None
    mask = inputs[MASK_NAME]
    return mask.shape[axis] if mask.dim() == axis + 1 else None


def sequences_of(inputs: Any, labels: Any, axis: int = 1) -> frozenset[str]:
    """Names of the inputs that are as long as the attention mask, and of the labels if they are."""
    length = length_of(inputs, axis)
    if length is None:
        return frozenset()
    tensors = {**inputs, LABELS: labels}
    return frozenset(
        str(name)
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor) and tensor.dim() > axis and tensor.shape[axis] == length
    )


def pad_sequences(inputs: Any, labels: Any, names: frozenset[str], length: int, axis: int = 1) -> tuple[Any, Any]:
    """Inputs and labels with the sequences of some names made longer: with zeros, and labels with -100.

    Args:
        inputs: A dict with an attention mask; zeros in it say that nothing there counts.
        labels: Labels or None.
        names: Which are sequences; see `sequences_of`.
        length: The length that they get.
        axis: Axis of the sequence.

    Raises:
        DataError: As for `pad_labels`.
    """
    # What collate functions fill up with, and how far, differs from batch to batch: the same sample must stay the same.
    padding = inputs[MASK_NAME] == 0
    longer = {}
    for name, value in inputs.items():
        longer[name] = value
        if str(name) in names:
            longer[name] = _padded(_filled(value, padding, 0), length, axis, 0)
    if LABELS in names:
        classes = labels if labels.is_floating_point() else _filled(labels, padding, IGNORED_LABEL)
        labels = pad_labels(classes, length, axis)
    return longer, labels


def _filled(tensor: torch.Tensor, padding: torch.Tensor, value: int) -> torch.Tensor:
    """A tensor with a value wherever there is padding; it may have further axes."""
    return tensor.masked_fill(padding.reshape(*padding.shape, *[1] * (tensor.dim() - padding.dim())), value)


def pad_labels(labels: torch.Tensor, length: int, axis: int = 1) -> torch.Tensor:
    """Labels made longer with -100, which does not count.

    Raises:
        DataError: If labels are values, of which none says that it does not count.
    """
    if labels.shape[axis] < length and labels.is_floating_point():
        raise DataError(
            f"labels that are values, {tensor_text(labels)}, cannot be padded from length {labels.shape[axis]} to "
            f"{length}: they would all count; give sequences of one length."
        )
    return _padded(labels, length, axis, IGNORED_LABEL)


def _padded(tensor: torch.Tensor, length: int, axis: int, value: int) -> torch.Tensor:
    missing = length - tensor.shape[axis]
    if missing <= 0:
        return tensor
    shape = [*tensor.shape[:axis], missing, *tensor.shape[axis + 1 :]]
    return torch.cat([tensor, tensor.new_full(shape, value)], dim=axis)


def pad_items(items: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Inputs and labels of single samples, padded to the longest of them if they have an attention mask."""
    lengths = [length_of(inputs, axis=0) for inputs, _ in items]
    known = [length for length in lengths if length is not None]
    if len(known) < len(items) or len(set(known)) == 1:
        return list(items)
    names = frozenset.intersection(*(sequences_of(inputs, labels, axis=0) for inputs, labels in items))
    return [pad_sequences(inputs, labels, names, max(known), axis=0) for inputs, labels in items]
