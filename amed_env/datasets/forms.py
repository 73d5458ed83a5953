"""Samples from whatever form a user has them in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from amed_env.datasets.batches import WHAT_FITS, are_inputs, batch_of, is_numbers
from amed_env.datasets.readers import ArrayReader, ItemReader, LoaderReader, Reader, is_on_disk
from amed_env.datasets.samples import Samples
from amed_env.datasets.streaming import Transform, read_samples
from amed_env.errors import DataError


def as_samples(
    source: Any,
    part: str,
    labelled: bool | None = True,
    one_input: bool = False,
    *,
    transform: Transform | None = None,
    in_memory: bool = True,
) -> Samples:
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
        transform: What makes of a batch of inputs, as it is stored, a batch as the network takes it.
        in_memory: Whether inputs are kept in memory however many they are; if not, those of data sets, loaders, mapped
            files and behind a transform are read again whenever they are needed where they are more than 256 MiB.

    Raises:
        DataError: If they are in no such form, empty, or malformed.
    """
    if isinstance(source, Samples):
        if transform is not None:
            raise DataError(f"the {part} samples are Samples, which no transform can change; give (inputs, labels).")
        return source
    reader = _reader_of(source, part, labelled, one_input)
    if isinstance(reader, ArrayReader) and transform is None and not is_on_disk(reader.whole.inputs):
        return Samples.of_inputs(reader.whole.inputs, reader.whole.labels, part)
    return read_samples(reader, part, transform, keep_all=in_memory)


def _reader_of(source: Any, part: str, labelled: bool | None, one_input: bool) -> Reader:
    if isinstance(source, DataLoader):
        return LoaderReader(source, part, labelled, one_input)
    if isinstance(source, Mapping):
        return _of_batch(source, part, labelled)
    is_pair = isinstance(source, tuple | list) and len(source) == 2 and _are_labels(source[1])
    if isinstance(source, torch.Tensor | np.ndarray) or is_pair or are_inputs(source):
        return _of_batch(source, part, labelled, one_input)
    if isinstance(source, IterableDataset) or (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        return ItemReader(source, part, labelled, one_input)
    raise DataError(f"the {part} samples are {type(source).__name__}; {WHAT_FITS}.")


def _are_labels(entry: Any) -> bool:
    """Whether these may be labels, and not the second item of a data set, which begins with a tensor or a dict."""
    if isinstance(entry, tuple | list) and entry:
        first = entry[0]
        return isinstance(first, str) or is_numbers(first) or (isinstance(first, torch.Tensor) and first.dim() == 0)
    return hasattr(entry, "__len__") and not isinstance(entry, Mapping)


def _of_batch(source: Any, part: str, labelled: bool | None, one_input: bool = False) -> ArrayReader:
    return ArrayReader(batch_of(source, f"{part} samples", labelled, one_input))
