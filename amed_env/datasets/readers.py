"""Readers of samples: the same few methods for arrays, data sets and loaders, which read no more than is asked."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SubsetRandomSampler

from amed_env.datasets.batches import Batch, batch_of, batch_of_items
from amed_env.errors import AmedError, DataError

ITEMS_AT_ONCE = 32
"""Items of a data set that are read together."""
_END = object()


class Reader(Protocol):
    """Reads samples.

    Attributes:
        in_passes: Whether they come one after the other only, so that some of them are read by passing by all.
    """

    in_passes: bool

    def batches(self) -> Iterator[Batch]:
        """All samples, in order."""

    def read(self, parts: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """A batch for each part, which is numbers of samples; not of those that are read in passes."""


class ArrayReader:
    """Rows of arrays, which may be mapped from a file.

    Args:
        whole: Arrays (N, …), or a tree of them, and labels.
    """

    in_passes = False

    def __init__(self, whole: Batch) -> None:
        self.whole = whole

    def batches(self) -> Iterator[Batch]:
        """See `Reader.batches`."""
        arrays = [leaf for leaf in leaves(self.whole.inputs) if isinstance(leaf, torch.Tensor | np.ndarray)]
        if self.whole.labels is not None:
            arrays.append(self.whole.labels)
        counts = [len(array) if array.ndim else 0 for array in arrays]
        if len(set(counts)) != 1:
            raise DataError(f"the {self.whole.name} have {counts} inputs and labels; give as many of each.")
        yield from self.read(_runs(range(counts[0])))

    def read(self, parts: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """See `Reader.read`."""
        for part in parts:
            rows = torch.as_tensor(part)
            labels = None if self.whole.labels is None else self.whole.labels[rows]
            yield Batch(_taken(self.whole.inputs, rows), labels, self.whole.name)


def _taken(inputs: Any, rows: torch.Tensor) -> Any:
    """Some rows of every array of a tree, as tensors of their own."""
    if isinstance(inputs, Mapping):
        return {key: _taken(value, rows) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(_taken(value, rows) for value in inputs)
    if isinstance(inputs, torch.Tensor):
        return inputs[rows]
    if not isinstance(inputs, np.ndarray):
        return inputs
    taken = torch.as_tensor(np.array(inputs[rows.numpy()]))
    _let_go(inputs)
    return taken


def _let_go(array: np.ndarray) -> None:
    """Give back the pages of a file that were read: they would count as this process's memory until it ends."""
    if not isinstance(array, np.memmap) or array.mode != "r" or not hasattr(mmap, "MADV_DONTNEED"):
        return  # pages that may have been changed in memory alone must stay
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if base is not None:
        base.madvise(mmap.MADV_DONTNEED)


def is_on_disk(inputs: Any) -> bool:
    """Whether some arrays are mapped from a file, so that they may be larger than the memory."""
    for leaf in leaves(inputs):
        if isinstance(leaf, np.memmap):
            return True
        if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().filename is not None:
            return True
    return False


class ItemReader:
    """Items of a data set of torch, by their number or, of an `IterableDataset`, one after the other.

    Args:
        source: The data set.
        part: What it is for, for messages.
        labelled: Whether labels are needed; None takes those that there are.
        one_input: Whether the network takes one tensor.
    """

    def __init__(self, source: Any, part: str, labelled: bool | None, one_input: bool) -> None:
        self.source, self.part, self.labelled, self.one_input = source, part, labelled, one_input
        self.in_passes = isinstance(source, IterableDataset)

    def batches(self) -> Iterator[Batch]:
        """See `Reader.batches`."""
        if not self.in_passes:
            yield from self.read(_runs(range(len(self.source))))
            return
        items: list[Any] = []
        first = 0
        with _named(f"the {self.part} data set"):
            for item in self.source:
                items.append(item)
                if len(items) == ITEMS_AT_ONCE:
                    yield self._batch(items, range(first, first + len(items)))
                    first, items = first + len(items), []
        if items:
            yield self._batch(items, range(first, first + len(items)))

    def read(self, parts: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """See `Reader.read`."""
        for part in parts:
            items = []
            for number in part:
                with _named(f"item {number} of the {self.part} data set"):
                    items.append(self.source[number])
            yield self._batch(items, part)

    def _batch(self, items: Sequence[Any], numbers: Sequence[int]) -> Batch:
        return batch_of_items(items, numbers, self.part, self.labelled, self.one_input)


class LoaderReader:
    """Batches of a `DataLoader`, in an order that stays.

    Where the loader draws its order anew in every pass, the samples are read in the order of the data set. Where its
    own sampler chooses among them, as many and in the order that it chose once.

    Args:
        loader: The loader.
        part: What it is for, for messages.
        labelled: Whether labels are needed; None takes those that there are.
        one_input: Whether the network takes one tensor.
    """

    def __init__(self, loader: DataLoader[Any], part: str, labelled: bool | None, one_input: bool) -> None:
        self.loader, self.part, self.labelled, self.one_input = loader, part, labelled, one_input
        by_number = not isinstance(loader.dataset, IterableDataset) and loader.batch_sampler is not None
        self.in_passes = not by_number
        self._parts = _parts_of(loader) if by_number else []
        self._numbers = [number for part in self._parts for number in part]

    def batches(self) -> Iterator[Batch]:
        """See `Reader.batches`."""
        yield from self._converted(self.loader if self.in_passes else self._of_parts(self._parts))

    def read(self, parts: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """See `Reader.read`."""
        yield from self._converted(self._of_parts([[self._numbers[row] for row in part] for part in parts]))

    def _of_parts(self, parts: Sequence[Sequence[int]]) -> DataLoader[Any]:
        loader = self.loader
        return DataLoader(
            loader.dataset,
            batch_sampler=parts,  # type: ignore[arg-type]  # a list is as good as a sampler
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers if len(parts) > 1 else 0,  # starting them takes longer than one batch
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context if len(parts) > 1 else None,
        )

    def _converted(self, batches: Iterable[Any]) -> Iterator[Batch]:
        read = iter(batches)
        number = 0
        while True:
            with _named(f"batch {number} of the {self.part} samples"):
                batch = next(read, _END)
            if batch is _END:
                return
            name = f"batch {number} of the {self.part} samples"
            yield batch_of(batch, name, self.labelled, self.one_input)
            number += 1


def _parts_of(loader: DataLoader[Any]) -> list[list[int]]:
    """Numbers of the items of each batch."""
    sampler, size = loader.sampler, loader.batch_size
    numbers: Sequence[int] | None = None
    if isinstance(sampler, RandomSampler) and not sampler.replacement and len(sampler) == len(sampler.data_source):
        numbers = range(len(sampler))
    elif isinstance(sampler, SubsetRandomSampler):
        numbers = sorted(sampler.indices)
    if numbers is None or size is None:
        return [list(batch) for batch in loader.batch_sampler or ()]
    return [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Errors of the user's data set or loader, which is code, say where they were met."""
    try:
        yield
    except AmedError:
        raise
    except Exception as error:
        raise DataError(f"{what} fails: {type(error).__name__}: {error}.") from error


def _runs(numbers: range) -> Iterator[range]:
    for start in range(0, len(numbers), ITEMS_AT_ONCE):
        yield numbers[start : start + ITEMS_AT_ONCE]


def leaves(inputs: Any) -> Iterator[Any]:
    """The entries of a tree of dicts, lists and tuples."""
    if isinstance(inputs, Mapping):
        for value in inputs.values():
            yield from leaves(value)
    elif isinstance(inputs, tuple | list):
        for value in inputs:
            yield from leaves(value)
    else:
        yield inputs
