"""Samples, with or without labels, and the parts that a task is made of: calibration, search and test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from amed_env.datasets.lazy import LazyInputs, largest_of, little_endian, row_hashes, stored_type
from amed_env.errors import DataError
from amed_env.support.text import first_few
from amed_env.tracing.packing import InputForm, Inputs, packed_inputs

INPUT_TYPES = (torch.float32, torch.int64)
"""Types of inputs: values, or numbers of tokens."""
LABEL_TYPES = (torch.int64, torch.float32)
"""Types of labels: classes, or values."""
IGNORED_LABEL = -100
"""Label of a pixel or token that does not count: the one that torch's cross-entropy ignores."""
MASK_NAME = "attention_mask"
"""The input that says which tokens of a sequence count, as the tokenizers of transformers call it."""
_READ_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs of a network, with their labels if they have any.

    Attributes:
        inputs: (N, ...) float32, or int64 for numbers of tokens; the first axis counts samples. For a network that
            takes several tensors (N, D): all of them packed into one (see `of_inputs`). Of samples that do not fit in
            memory they are `LazyInputs`, which are indexed and split alike.
        labels: What is true of each sample: its class, int64 (N,), from 0; classes of its pixels or tokens, int64
            (N, …), -100 where nothing is compared; or values, float32 (N,) or (N, …). None for samples without.
        name: What they are (`"digits/search"`); it begins every message and is no part of the fingerprint.
        form: How `inputs` holds what the network takes; None where it takes just that tensor.

    Raises:
        DataError: If there are no samples, lengths or dtypes are wrong, a label is negative, or an input or a label is
            NaN or infinite.
    """

    inputs: torch.Tensor
    labels: torch.Tensor | None = None
    name: str = "samples"
    form: InputForm | None = None

    @classmethod
    def of_inputs(cls, inputs: Inputs, labels: torch.Tensor | None, name: str = "samples") -> Samples:
        """Samples of whatever a network takes.

        Args:
            inputs: A tensor (N, ...), a tuple of them for several arguments, a dict of them for keyword arguments, or a
                nested tree of these; floating-point, integers or bool.
            labels: As for `Samples`.
            name: What they are.

        Raises:
            DataError: As for `Samples`, if the tensors have different numbers of samples, or if one is of a type that
                networks do not take.
        """
        try:
            packed, form = packed_inputs(inputs)
        except ValueError as error:
            raise DataError(f"{name}: {error}") from error
        return cls(packed, labels, name, None if form.is_plain else form)

    def __post_init__(self) -> None:
        if not self.streamed:
            self._check_tensor("inputs", self.inputs, INPUT_TYPES, "float(), or .long() for numbers of tokens")
        if self.inputs.ndim < 2:
            raise DataError(
                f"{self.name}: inputs have shape {tuple(self.inputs.shape)}; expected a leading axis of "
                "samples and at least one axis of values."
            )
        if self.labels is not None:
            self._check_labels(self.labels)
        if not self.inputs.numel():
            raise DataError(
                f"{self.name}: there are no samples (inputs of shape {tuple(self.inputs.shape)}); give at least one."
            )
        # Lazy inputs are checked as they are read first. Extremes show NaN and infinity without a mask as large as the
        # inputs.
        if not self.streamed and not bool(torch.isfinite(torch.stack(torch.aminmax(self.inputs))).all()):
            wrong = ~torch.isfinite(self.inputs)
            at = torch.nonzero(wrong.flatten(1).any(dim=1)).flatten()
            values = int(wrong.sum())
            raise DataError(
                f"{self.name}: {values} input values in {len(at)} samples are NaN or infinite, at "
                f"index {first_few(at.tolist())}; remove or repair those samples."
            )

    def _check_tensor(self, what: str, value: object, dtypes: Sequence[torch.dtype], cure: str) -> None:
        if not isinstance(value, torch.Tensor):
            raise DataError(
                f"{self.name}: {what} must be a torch tensor, not {type(value).__name__}; "
                "convert it with torch.as_tensor()."
            )
        if value.dtype not in dtypes:
            raise DataError(
                f"{self.name}: {what} are {value.dtype}, expected {' or '.join(map(str, dtypes))}; convert "
                f"them with .{cure}."
            )

    def _check_labels(self, labels: torch.Tensor) -> None:
        self._check_tensor("labels", labels, LABEL_TYPES, "long() for class numbers, or .float() for values")
        if labels.ndim < 1:
            raise DataError(f"{self.name}: the labels are one number; expected a leading axis of samples.")
        if len(self.inputs) != len(labels):
            raise DataError(
                f"{self.name}: {len(self.inputs)} inputs but {len(labels)} labels; give one label a sample."
            )
        if labels.is_floating_point():
            if labels.numel() and not bool(torch.isfinite(labels).all()):
                raise DataError(f"{self.name}: labels are NaN or infinite; remove or repair those samples.")
            return
        negative = (labels < 0) if labels.ndim == 1 else (labels < 0) & (labels != IGNORED_LABEL)
        wrong = negative.flatten(1).any(dim=1) if labels.ndim > 1 else negative
        if bool(wrong.any()):
            at = torch.nonzero(wrong).flatten()
            cure = "" if labels.ndim == 1 else f"; mark what does not count with {IGNORED_LABEL}"
            raise DataError(
                f"{self.name}: {len(at)} labels are negative, at index {first_few(at.tolist())}; classes count from "
                f"0{cure}."
            )

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def streamed(self) -> bool:
        """Whether the inputs are read when they are needed."""
        return isinstance(self.inputs, LazyInputs)

    @property
    def known_labels(self) -> torch.Tensor:
        """The labels, where there have to be any.

        Raises:
            DataError: If there are none.
        """
        if self.labels is None:
            raise DataError(f"{self.name}: these samples have no labels.")
        return self.labels

    @property
    def are_tokens(self) -> bool:
        """Whether a network takes nothing but whole numbers, as those of texts do."""
        types = (self.inputs.dtype,) if self.form is None else self.form.types
        return not any(dtype.is_floating_point for dtype in types)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the sample axis."""
        return tuple(self.inputs.shape[1:])

    def subset(self, indices: Sequence[int] | np.ndarray | torch.Tensor, name: str | None = None) -> Samples:
        """The samples at some positions, in that order; of those that can only be read in passes in their own order.

        Args:
            indices: Positions from 0; a position may be given more than once.
            name: Name of the subset; the same as this one's by default.

        Raises:
            DataError: If there are none, they are no integers, or one is out of range.
        """
        chosen = torch.as_tensor(np.asarray(indices))
        if not chosen.numel():
            raise DataError(f"{self.name}: a subset needs at least one index; none was given.")
        if chosen.ndim != 1 or chosen.is_floating_point() or chosen.dtype == torch.bool:
            raise DataError(
                f"{self.name}: indices must be one row of integers, not {chosen.dtype} of shape {tuple(chosen.shape)}."
            )
        chosen = chosen.long()
        low, high = int(chosen.min()), int(chosen.max())
        if low < 0 or high >= len(self):
            raise DataError(
                f"{self.name}: indices from {low} to {high} do not fit {len(self)} samples; use 0 to {len(self) - 1}."
            )
        name = self.name if name is None else name
        if isinstance(self.inputs, LazyInputs):
            inputs, chosen = self.inputs.subset(chosen)
        else:
            inputs = self.inputs[chosen]
        labels = None if self.labels is None else self.labels[chosen]
        return Samples(inputs, labels, name, self.form)

    def example(self) -> Inputs:
        """The first sample as the network takes it: a tensor (1, ...), or a tree of them."""
        first = self.inputs[:1]
        return first if self.form is None else self.form.unpacked(first)

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Inputs and labels (or None) in order, `size` samples at a time; the last batch may be smaller.

        Raises:
            DataError: If the size is not positive.
        """
        if size < 1:
            raise DataError(f"{self.name}: the batch size is {size}; it must be at least 1.")
        for number, inputs in enumerate(self.inputs.split(size)):
            start = number * size
            yield inputs, None if self.labels is None else self.labels[start : start + size]

    def counting(self, inputs: torch.Tensor) -> torch.Tensor | None:
        """Which tokens of some inputs count: bool (N, T) by their attention mask; None where they have none.

        Args:
            inputs: Inputs of these samples.
        """
        if self.form is None or not isinstance(self.form.tree, dict) or MASK_NAME not in self.form.tree:
            return None
        mask = self.form.unpacked(inputs)[MASK_NAME]
        return mask > 0 if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None

    def fingerprint(self) -> str:
        """SHA-256 (hex) of shape, inputs and labels: the same on every machine for the same contents."""
        # Shape first, so that equal bytes of other shapes differ; the name is no part of the contents.
        digest = hashlib.sha256(f"amed-samples/1 {tuple(self.inputs.shape)} ".encode())
        if self.form is not None:
            digest.update(f"{self.form.fingerprint()} ".encode())
        kind = self._stored_type()
        for inputs in self.inputs.split(_READ_AT_ONCE):
            digest.update(little_endian(inputs, kind).data)
        if self.labels is None:
            # As versions did that filled in zeros, so that what was learned from the same samples is found.
            digest.update(np.zeros(len(self), dtype="<i8").data)
            return digest.hexdigest()
        if self.labels.ndim > 1 or self.labels.is_floating_point():
            digest.update(f"{self.labels.dtype} {tuple(self.labels.shape)} ".encode())
        digest.update(little_endian(self.labels, "<f4" if self.labels.is_floating_point() else "<i8").data)
        return digest.hexdigest()

    def _stored_type(self) -> str:
        floats = self.inputs.is_floating_point()
        return stored_type(self.inputs.dtype, 0.0 if floats else largest_of(self.inputs))

    def sample_hashes(self) -> list[bytes]:
        """A 16-byte hash of each input, without its label: equal for exact copies."""
        if isinstance(self.inputs, LazyInputs):
            return self.inputs.hashes()
        return row_hashes(self.inputs, self._stored_type())


@dataclass(frozen=True, eq=False)
class Splits:
    """The parts of a task's data; no sample may be in two of them.

    Attributes:
        calibration: Sets quantization ranges; its labels are not used for choosing.
        search: Scores allocations while searching; may be the calibration samples themselves.
        test: Touched once, for the final report; None if there is nothing to confirm a result on.
        allow_duplicates: Accept exact copies that are in two parts. For data sets that contain copies of
            their own; it is then for the caller to see that no *index* is in two parts.

    Raises:
        DataError: If inputs of the parts have different shapes, or a sample is in two parts.
    """

    calibration: Samples
    search: Samples
    test: Samples | None
    allow_duplicates: bool = False

    def __post_init__(self) -> None:
        for name, part in self.parts().items():
            found, expected = (_form_text(p) for p in (part, self.calibration))
            if found != expected:
                raise DataError(
                    f"the {name} samples have shape {found} but the calibration samples "
                    f"{expected}; prepare all three in the same way."
                )
        if not self.allow_duplicates:
            self._check_disjoint()

    def parts(self) -> dict[str, Samples]:
        """The parts that there are, by name."""
        parts = {"calibration": self.calibration, "search": self.search}
        return parts if self.test is None else {**parts, "test": self.test}

    def fingerprint(self) -> str:
        """SHA-256 (hex) of their fingerprints."""
        return hashlib.sha256(" ".join(p.fingerprint() for p in self.parts().values()).encode()).hexdigest()

    def _check_disjoint(self) -> None:
        parts = self.parts()
        if self.search is self.calibration:  # on purpose, where there are no others
            del parts["search"]
        hashes = {name: part.sample_hashes() for name, part in parts.items()}
        for (first, first_hashes), (second, second_hashes) in combinations(hashes.items(), 2):
            known = set(first_hashes)
            shared = [index for index, value in enumerate(second_hashes) if value in known]
            if shared:
                raise DataError(
                    f"{len(shared)} of the {len(second_hashes)} {second} samples are also in the {first} "
                    f"samples ({second} index {first_few(shared)}), so scores would be too good; leave them "
                    "out of one of the two, also where the data set itself contains copies."
                )


def _form_text(samples: Samples) -> str:
    """Shape of one sample's input, or names, types, shapes and constants of several."""
    return str(samples.sample_shape) if samples.form is None else samples.form.listed()


def drawn_order(count: int, salt: str) -> np.ndarray:
    """A fixed order of samples that has nothing to do with the order of the data set.

    Samples are sorted by the SHA-256 of salt and index.

    Args:
        count: How many samples there are.
        salt: Another salt, another order.

    Returns:
        (count,) int64 indices, each of them once.
    """
    # A hash, as streams of random generators change with versions and machines.
    keys = [hashlib.sha256(f"{salt}:{index}".encode()).digest() for index in range(count)]
    return np.array(sorted(range(count), key=keys.__getitem__), dtype=np.int64)


def balanced_order(labels: Sequence[int] | np.ndarray, salt: str) -> np.ndarray:
    """A fixed order of all samples in which every prefix is as class-balanced as the classes allow.

    Within a class samples are ordered by `drawn_order`; the classes take turns (round-robin).

    Args:
        labels: (N,) class of each sample.
        salt: Another salt, another order.

    Returns:
        (N,) int64 indices, each of them once.
    """
    labels = np.asarray(labels, dtype=np.int64)
    turns: dict[int, int] = {}  # class to its turns so far
    places = []
    for index in drawn_order(len(labels), salt).tolist():
        label = int(labels[index])
        turn = turns[label] = turns.get(label, -1) + 1
        places.append((turn, label, index))
    return np.array([index for _, _, index in sorted(places)], dtype=np.int64)
