"""Samples from a reader: kept in memory where they are few, and read again whenever they are needed where not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from amed_env.datasets.batches import Batch
from amed_env.datasets.lazy import LazyInputs, largest_of, regrouped, row_hashes, stored_type
from amed_env.datasets.padding import HOW_TO_PAD, LABELS, length_of, pad_labels, pad_sequences, sequences_of
from amed_env.datasets.readers import ITEMS_AT_ONCE, LoaderReader, Reader, leaves
from amed_env.datasets.samples import MASK_NAME, Samples
from amed_env.errors import DataError
from amed_env.support.memory import give_back_free_memory
from amed_env.support.text import first_few, tensor_text
from amed_env.tracing.packing import EXACT_INTEGERS, InputForm, packed_inputs

logger = logging.getLogger(__name__)

Transform = Callable[[Any], Any]
"""What makes of a batch of inputs, as they are stored, a batch as the network takes it."""
IN_MEMORY_MIB = 256
"""Inputs of a part up to here are kept in memory: all of CIFAR-10's 10,000 test images, or 400 images of 3 x 224 x 224.
Search, test and training samples together stay below 1 GiB."""
_MIB = 2**20
_TRIM_MIB = 64
"""Inputs that are read until memory is given back: a trim takes about a millisecond, reading as much a hundred."""


class Source:
    """Reads packed inputs of one form.

    Args:
        reader: Reads batches.
        part: What they are for, for messages.
        transform: See `Transform`; None for inputs that are stored as the network takes them.
    """

    def __init__(self, reader: Reader, part: str, transform: Transform | None) -> None:
        self.reader, self.part, self.transform = reader, part, transform
        self.length: int | None = None
        self.names: frozenset[str] = frozenset()
        self.form: InputForm | None = None
        self._first = ""
        self._read_bytes = 0

    def transformed(self, batch: Batch) -> Batch:
        """A batch after the transform.

        Raises:
            DataError: If the transform fails or returns another number of samples.
        """
        if self.transform is None:
            return batch
        try:
            inputs = self.transform(batch.inputs)
        except Exception as error:  # the transform is code of the user
            raise DataError(
                f"the transform fails on {_text(batch.inputs)}, a batch of the {self.part} samples: "
                f"{type(error).__name__}: {error}. It takes a whole batch as it is stored; what takes single images "
                "belongs into the data set."
            ) from error
        before, after = _count(batch.inputs), _count(inputs)
        if before != after:
            raise DataError(
                f"the transform made {_text(inputs)} of {_text(batch.inputs)}, {before} {self.part} samples; it "
                "must return inputs with a row for each of them."
            )
        return batch._replace(inputs=inputs)

    def padded(self, batch: Batch) -> Batch:
        """A batch whose sequences have the common length."""
        if self.length is None:
            return batch
        inputs, labels = pad_sequences(batch.inputs, batch.labels, self.names, self.length)
        return batch._replace(inputs=inputs, labels=labels)

    def packed(self, batch: Batch) -> torch.Tensor:
        """The inputs of a transformed and padded batch as one tensor.

        Raises:
            DataError: If they are not of the form of those before them.
        """
        inputs, form = _packed(batch)
        if self.form is None:
            self.form, self._first = form, batch.name
        if form != self.form:
            raise DataError(
                f"{batch.name} has inputs of another shape than {self._first}: {form.listed()} and not "
                f"{self.form.listed()}; {HOW_TO_PAD}."
            )
        self._read_bytes += inputs.numel() * inputs.element_size()
        if self._read_bytes > _TRIM_MIB * _MIB:
            self._read_bytes = 0
            give_back_free_memory()
        return inputs

    def rows(self, batch: Batch) -> torch.Tensor:
        """Packed inputs of a batch as it was read."""
        return self.packed(self.padded(self.transformed(batch)))


class StreamedInputs(LazyInputs):
    """Inputs that are read from a source whenever they are asked for.

    Args:
        source: The source.
        positions: int64 (N,), the numbers of its samples; in its order where it is read in passes.
        shape: Shape of one sample.
        dtype: See `LazyInputs`.
        largest: See `LazyInputs`.
        known_hashes: Hashes of all samples of the source, if they are known.
    """

    def __init__(
        self,
        source: Source,
        positions: torch.Tensor,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        largest: float,
        known_hashes: Sequence[bytes] | None = None,
    ) -> None:
        self.source, self.positions = source, positions
        self.shape, self.dtype, self.largest = (len(positions), *shape), dtype, largest
        self._hashes = known_hashes

    def split(self, size: int) -> Iterator[torch.Tensor]:
        """See `LazyInputs.split`."""
        if self.source.reader.in_passes:
            yield from regrouped(self._passed_by(), size)
            return
        parts = [part.tolist() for part in self.positions.split(size)]
        for batch in self.source.reader.read(parts):
            yield self.source.rows(batch)

    def _passed_by(self) -> Iterator[torch.Tensor]:
        """The rows in order, from one pass by all samples."""
        wanted = self.positions.numpy()
        first = 0
        for batch in self.source.reader.batches():
            rows = self.source.rows(batch)
            low, high = np.searchsorted(wanted, [first, first + len(rows)])
            if high > low:
                yield rows[self.positions[low:high] - first]
            first += len(rows)
            if high == len(wanted):
                return
        raise DataError(
            f"the {self.source.part} samples ended after {first} in a later pass, but there were more in the first; "
            "give what yields the same samples in every pass."
        )

    def taken(self, rows: torch.Tensor) -> torch.Tensor:
        """See `LazyInputs.taken`."""
        if not self.source.reader.in_passes:
            view = StreamedInputs(self.source, self.positions[rows], self.shape[1:], self.dtype, self.largest)
            return torch.cat([torch.empty((0, *self.shape[1:]), dtype=self.dtype), *view.split(ITEMS_AT_ONCE)])
        unique, places = torch.unique(rows, return_inverse=True)
        view = StreamedInputs(self.source, self.positions[unique], self.shape[1:], self.dtype, self.largest)
        return torch.cat(list(view.split(ITEMS_AT_ONCE)))[places]

    def subset(self, rows: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """See `LazyInputs.subset`."""
        values = len(rows) * (self.numel() // len(self))
        if values * self.dtype.itemsize <= IN_MEMORY_MIB * _MIB:
            return self.taken(rows), rows
        if self.source.reader.in_passes:
            rows = rows.sort().values
        return self._view(rows), rows

    def _view(self, rows: torch.Tensor) -> StreamedInputs:
        known = self._hashes
        return StreamedInputs(self.source, self.positions[rows], self.shape[1:], self.dtype, self.largest, known)

    def hashes(self) -> list[bytes]:
        """See `LazyInputs.hashes`."""
        if self._hashes is None:
            return super().hashes()
        return [self._hashes[position] for position in self.positions.tolist()]

    def padded_to(self, length: int, names: frozenset[str]) -> StreamedInputs:
        """The same with longer sequences."""
        source = Source(self.source.reader, self.source.part, self.source.transform)
        source.length, source.names = length, names | self.source.names
        first = next(StreamedInputs(source, self.positions[:1], self.shape[1:], self.dtype, self.largest).split(1))
        return StreamedInputs(source, self.positions, tuple(first.shape[1:]), self.dtype, self.largest)


class _Survey:
    """What one pass by all samples finds: their number, labels and form, and the inputs while they are few."""

    def __init__(self, source: Source, keep_all: bool) -> None:
        self.source, self.keep_all = source, keep_all
        self.kept: list[Batch] | None = []
        self.labels: list[torch.Tensor | None] = []
        self.hashes: list[bytes] = []
        self.lengths: set[int | None] = set()
        self.names: frozenset[str] | None = None
        self.count, self.values, self.largest = 0, 0, 0.0
        self.dtype = torch.float32
        self.padded_left = False
        self.masks: list[torch.Tensor | None] = []

    def run(self) -> None:
        """Pass by all samples."""
        for read in self.source.reader.batches():
            batch = self.source.transformed(read)
            self._measure_sequences(batch)
            self.labels.append(batch.labels)
            self.masks.append(batch.inputs[MASK_NAME] if length_of(batch.inputs) is not None else None)
            if self.kept is not None:
                self.kept.append(batch)
                self._drop_if_many(batch)
            else:
                self._take_in(batch)

    def _measure_sequences(self, batch: Batch) -> None:
        length = length_of(batch.inputs)
        self.lengths.add(length)
        if length is not None:
            self.padded_left |= bool((batch.inputs[MASK_NAME][:, 0] == 0).any())
        names = sequences_of(batch.inputs, batch.labels)
        self.names = names if self.names is None else self.names & names

    def _drop_if_many(self, batch: Batch) -> None:
        """Keep inputs no longer once they are many."""
        if self.keep_all:
            return
        inputs, _ = _packed(batch)
        self.values += inputs.numel() * inputs.element_size()
        if self.values > IN_MEMORY_MIB * _MIB:
            kept, self.kept = self.kept or [], None
            for earlier in kept:
                self._take_in(earlier)

    def _take_in(self, batch: Batch) -> None:
        """Check the inputs of a batch that is not kept, and take their hashes."""
        inputs = _packed(batch)[0] if self.ragged else self.source.packed(batch)
        finite = torch.isfinite(inputs.flatten(1)).all(dim=1)
        if not bool(finite.all()):
            at = torch.nonzero(~finite).flatten() + self.count
            raise DataError(
                f"{self.source.part}: input values in {len(at)} samples are NaN or infinite, at index "
                f"{first_few(at.tolist())}; remove or repair those samples."
            )
        self.dtype, self.largest = inputs.dtype, max(self.largest, largest_of(inputs))
        self.hashes += row_hashes(inputs, stored_type(inputs.dtype, self.largest))
        self.count += len(inputs)

    @property
    def ragged(self) -> bool:
        """Whether sequences beside an attention mask have several lengths."""
        return len(self.lengths) > 1 and None not in self.lengths


def read_samples(reader: Reader, part: str, transform: Transform | None = None, *, keep_all: bool = True) -> Samples:
    """The samples of a reader.

    Args:
        reader: The reader.
        part: What they are for, for messages.
        transform: See `Transform`.
        keep_all: Whether they are kept in memory however many they are.

    Raises:
        DataError: If there are none, or some do not fit the others.
    """
    source = Source(reader, part, transform)
    survey = _Survey(source, keep_all)
    survey.run()
    if not survey.labels:
        raise DataError(f"the {part} samples are empty; give at least one.")
    if survey.ragged:
        source.names, source.form = survey.names or frozenset(), None
        source.length = max(length for length in survey.lengths if length is not None)
        names = ", ".join(sorted(source.names))
        logger.info("%s samples: sequences are padded to the longest, %d (%s)", part, source.length, names)
    labels = _joined_labels(survey, source, part)
    if survey.kept is not None:
        return _kept_samples(survey.kept, source, labels, part)
    return _streamed_samples(survey, source, labels, part)


def _kept_samples(kept: list[Batch], source: Source, labels: torch.Tensor | None, part: str) -> Samples:
    packed = []
    for batch in kept:
        packed.append(source.packed(source.padded(batch)))
    form = source.form
    assert form is not None  # there is a batch
    inputs = packed[0] if len(packed) == 1 else torch.cat(packed)
    return Samples(inputs, labels, part, None if form.is_plain else form)


def _streamed_samples(survey: _Survey, source: Source, labels: torch.Tensor | None, part: str) -> Samples:
    if survey.ragged and survey.padded_left:
        raise DataError(
            f"the {part} samples do not fit in memory, and their batches are padded on the left to other lengths; "
            "pad on the right, or all to one length."
        )
    # Of padded sequences other bytes are hashed; and integers beyond 2^24 may have come after others were.
    hashes_stay = not survey.ragged and survey.largest <= EXACT_INTEGERS
    first = source.rows(next(source.reader.batches()))
    positions = torch.arange(survey.count)
    known = survey.hashes if hashes_stay else None
    inputs = StreamedInputs(source, positions, tuple(first.shape[1:]), survey.dtype, survey.largest, known)
    if known is not None and row_hashes(first, stored_type(first.dtype, survey.largest)) != known[: len(first)]:
        raise DataError(
            f"the {part} samples do not fit in memory, and are others when they are read a second time; leave random "
            "augmentation out, and give an iterable data set that yields the same order in every pass."
        )
    mib = inputs.numel() * inputs.dtype.itemsize / _MIB
    logger.info("%s samples: %.0f MiB of inputs are read anew whenever they are needed", part, mib)
    form = source.form
    assert form is not None  # the first batch was packed
    return Samples(cast(torch.Tensor, inputs), labels, part, None if form.is_plain else form)


def _joined_labels(survey: _Survey, source: Source, part: str) -> torch.Tensor | None:
    """The labels of all batches; None where some items have none."""
    labels = [label for label in survey.labels if label is not None]
    if len(labels) < len(survey.labels):
        if labels and isinstance(source.reader, LoaderReader):
            raise DataError(f"some batches of the {part} samples have labels and others none; give them to all.")
        return None
    if source.length is not None and LABELS in source.names:
        labels = [_padded_labels(label, mask, source.length) for label, mask in zip(labels, survey.masks, strict=True)]
    shapes = {tuple(label.shape[1:]) for label in labels}
    if len(shapes) > 1:
        raise DataError(
            f"the {part} samples have labels of the shapes {sorted(shapes)}; give a class number each, or arrays "
            "of one shape."
        )
    return torch.cat(labels)


def _padded_labels(labels: torch.Tensor, mask: torch.Tensor | None, length: int) -> torch.Tensor:
    sequences = {MASK_NAME: mask}
    padded: torch.Tensor = pad_sequences(sequences, labels, frozenset((LABELS,)), length)[1]
    return padded


def with_one_length(parts: Mapping[str, Samples]) -> dict[str, Samples]:
    """Parts whose sequences are all as long as the longest; those without an attention mask are left as they are."""
    lengths = {name: _form_length(samples) for name, samples in parts.items()}
    known = [length for length in lengths.values() if length is not None]
    if len(known) < len(parts) or len(set(known)) == 1:
        return dict(parts)
    longest = max(known)
    names = frozenset.intersection(*(_form_sequences(samples) for samples in parts.values()))
    logger.info("sequences of all samples are padded to the longest, %d", longest)
    return {
        name: samples if lengths[name] == longest else lengthened(samples, longest, names)
        for name, samples in parts.items()
    }


def lengthened(samples: Samples, length: int, names: frozenset[str]) -> Samples:
    """Samples whose sequences of some names are padded to a length."""
    labels = samples.labels
    if labels is not None and labels.dim() > 1 and labels.shape[1] == _form_length(samples):
        labels = pad_labels(labels, length)
    if isinstance(samples.inputs, StreamedInputs):
        inputs = samples.inputs.padded_to(length, names)
        return Samples(cast(torch.Tensor, inputs), labels, samples.name, inputs.source.form)
    assert samples.form is not None  # they have an attention mask
    tree, _ = pad_sequences(samples.form.unpacked(samples.inputs), None, names, length)
    return Samples.of_inputs(tree, labels, samples.name)


def _form_length(samples: Samples) -> int | None:
    shape = _form_shapes(samples).get(MASK_NAME)
    return shape[0] if shape is not None and len(shape) == 1 else None


def _form_sequences(samples: Samples) -> frozenset[str]:
    length = _form_length(samples)
    return frozenset(name for name, shape in _form_shapes(samples).items() if shape[:1] == (length,))


def _form_shapes(samples: Samples) -> dict[str, tuple[int, ...]]:
    if samples.form is None or not isinstance(samples.form.tree, dict):
        return {}
    return dict(zip(samples.form.names, samples.form.shapes, strict=True))


def _packed(batch: Batch) -> tuple[torch.Tensor, InputForm]:
    try:
        return packed_inputs(batch.inputs)
    except ValueError as error:
        raise DataError(f"{batch.name}: {error}") from error


def _count(inputs: Any) -> int | None:
    """Number of samples; None if there is no tensor."""
    for leaf in leaves(inputs):
        if isinstance(leaf, torch.Tensor | np.ndarray):
            return len(leaf) if leaf.ndim else None
    return None


def _text(inputs: Any) -> str:
    if isinstance(inputs, torch.Tensor):
        return tensor_text(inputs)
    if isinstance(inputs, tuple | list):
        return f"a {type(inputs).__name__} of {', '.join(map(_text, inputs))}"
    return f"a dict of {', '.join(map(str, inputs))}" if isinstance(inputs, Mapping) else type(inputs).__name__
