"""Samples, with or without labels, and the parts that a task is made of: calibration, search and test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from amed_env.errors import DataError
from amed_env.support.text import first_few
from amed_env.tracing.packing import pack, unpack

INPUT_TYPES = (torch.float32, torch.int64)
"""Types of inputs: values, or numbers of tokens."""
LABEL_TYPES = (torch.int64, torch.float32)
"""Types of labels: classes, or values."""
IGNORED_LABEL = -100
"""Label of a pixel or token that does not count: the one that torch's cross-entropy ignores."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs of a network, with their labels if they have any.

    Attributes:
        inputs: (N, ...) float32, ready for the network; the first axis counts samples. For a network that takes several
            tensors (N, D): all of them packed into one (see `of_several`).
        labels: What is true of each sample: its class, int64 (N,), from 0; classes of its pixels or tokens, int64
            (N, …), -100 where nothing is compared; or values, float32 (N,) or (N, …). None for samples without.
        name: What they are (`"digits/search"`); it begins every message and is no part of the fingerprint.
        packed_shapes: For a network that takes several tensors, the shape of each of them without N.
        packed_types: The type of each of them; the packed tensor has a type that holds them all.

    Raises:
        DataError: If there are no samples, lengths or dtypes are wrong, a label is negative, or an input or a label is
            NaN or infinite.
    """

    inputs: torch.Tensor
    labels: torch.Tensor | None = None
    name: str = "samples"
    packed_shapes: tuple[tuple[int, ...], ...] | None = None
    packed_types: tuple[torch.dtype, ...] | None = None

    @classmethod
    def of_several(cls, inputs: Sequence[torch.Tensor], labels: torch.Tensor | None, name: str = "samples") -> Samples:
        """Samples of a network that takes several tensors.

        Args:
            inputs: The tensors, float32 or int64 (N, ...) each.
            labels: As for `Samples`.
            name: What they are.

        Raises:
            DataError: As for `Samples`, or if the tensors have different numbers of samples.
        """
        counts = [len(tensor) if tensor.ndim else 0 for tensor in inputs]
        if len(set(counts)) != 1:
            raise DataError(f"{name}: the inputs have {counts} samples; give as many of each.")
        wrong = sorted({str(tensor.dtype) for tensor in inputs if tensor.dtype not in INPUT_TYPES})
        if wrong:
            raise DataError(
                f"{name}: inputs are {', '.join(wrong)}, expected torch.float32, or torch.int64 for numbers of tokens."
            )
        shapes = tuple(tuple(tensor.shape[1:]) for tensor in inputs)
        return cls(pack(inputs), labels, name, shapes, tuple(tensor.dtype for tensor in inputs))

    def __post_init__(self) -> None:
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
        # Extremes show NaN and infinity without a mask as large as the inputs.
        if not bool(torch.isfinite(torch.stack(torch.aminmax(self.inputs))).all()):
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
    def known_labels(self) -> torch.Tensor:
        """The labels, where there have to be any.

        Raises:
            DataError: If there are none.
        """
        if self.labels is None:
            raise DataError(f"{self.name}: these samples have no labels.")
        return self.labels

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the sample axis."""
        return tuple(self.inputs.shape[1:])

    def subset(self, indices: Sequence[int] | np.ndarray | torch.Tensor, name: str | None = None) -> Samples:
        """The samples at some positions, in that order.

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
        labels = None if self.labels is None else self.labels[chosen]
        return Samples(self.inputs[chosen], labels, name, self.packed_shapes, self.packed_types)

    def example(self) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The first sample as the network takes it: a tensor (1, ...), or a tuple of them."""
        first = self.inputs[:1]
        if self.packed_shapes is None:
            return first
        parts = unpack(first, self.packed_shapes)
        types = self.packed_types or (first.dtype,) * len(parts)
        return tuple(part.to(dtype) for part, dtype in zip(parts, types, strict=True))

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Inputs and labels (or None) in order, `size` samples at a time; the last batch may be smaller.

        Raises:
            DataError: If the size is not positive.
        """
        if size < 1:
            raise DataError(f"{self.name}: the batch size is {size}; it must be at least 1.")
        inputs = self.inputs.split(size)
        labels: Sequence[torch.Tensor | None] = [None] * len(inputs)
        if self.labels is not None:
            labels = self.labels.split(size)
        yield from zip(inputs, labels, strict=True)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of shape, inputs and labels: the same on every machine for the same contents."""
        # Shape first, so that equal bytes of other shapes differ; the name is no part of the contents.
        digest = hashlib.sha256(f"amed-samples/1 {tuple(self.inputs.shape)} ".encode())
        if self.packed_shapes is not None:
            digest.update(f"{self.packed_shapes} ".encode())
        digest.update(_little_endian(self.inputs, "<f4").data)
        if self.labels is None:
            # As versions did that filled in zeros, so that what was learned from the same samples is found.
            digest.update(np.zeros(len(self), dtype="<i8").data)
            return digest.hexdigest()
        if self.labels.ndim > 1 or self.labels.is_floating_point():
            digest.update(f"{self.labels.dtype} {tuple(self.labels.shape)} ".encode())
        digest.update(_little_endian(self.labels, "<f4" if self.labels.is_floating_point() else "<i8").data)
        return digest.hexdigest()

    def sample_hashes(self) -> list[bytes]:
        """A 16-byte hash of each input, without its label: equal for exact copies."""
        # Sixteen bytes make equal hashes of different samples practically impossible (2^64 samples for an even chance).
        rows = _little_endian(self.inputs, "<f4").reshape(len(self), -1)
        return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]


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
            shape, expected = (p.packed_shapes or p.sample_shape for p in (part, self.calibration))
            if shape != expected:
                raise DataError(
                    f"the {name} samples have shape {shape} but the calibration samples "
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
                    f"samples ({second} index {first_few(shared)}), so scores would be too good; split without "
                    "overlap, or pass allow_duplicates=True if the data set contains exact copies."
                )


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


def _little_endian(tensor: torch.Tensor, dtype: str) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy().astype(dtype, copy=False))
