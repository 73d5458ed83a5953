"""Labelled samples and the three parts that a task is made of: calibration, search and test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from amed_env.errors import DataError
from amed_env.support.text import first_few
from amed_env.tracing.packing import EXACT_INTEGERS, InputForm, Inputs, packed_inputs

INPUT_TYPES = (torch.float32, torch.int64)
"""Types of inputs: values, or numbers of tokens."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs of a network with their labels.

    Attributes:
        inputs: (N, ...) float32, or int64 for numbers of tokens; the first axis counts samples. For a network that
            takes several tensors (N, D): all of them packed into one (see `of_inputs`).
        labels: (N,) int64, the class of each sample, from 0.
        name: What they are (`"digits/search"`); it begins every message and is no part of the fingerprint.
        form: How `inputs` holds what the network takes; None where it takes just that tensor.

    Raises:
        DataError: If there are no samples, lengths or dtypes are wrong, a label is negative, or an input is
            NaN or infinite.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    name: str = "samples"
    form: InputForm | None = None

    @classmethod
    def of_inputs(cls, inputs: Inputs, labels: torch.Tensor, name: str = "samples") -> Samples:
        """Samples of whatever a network takes.

        Args:
            inputs: A tensor (N, ...), a tuple of them for several arguments, a dict of them for keyword arguments, or a
                nested tree of these; floating-point, integers or bool.
            labels: (N,) int64.
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
        for attribute, dtypes, cure in (
            ("inputs", INPUT_TYPES, "float(), or .long() for numbers of tokens"),
            ("labels", (torch.int64,), "long()"),
        ):
            value = getattr(self, attribute)
            if not isinstance(value, torch.Tensor):
                raise DataError(
                    f"{self.name}: {attribute} must be a torch tensor, not {type(value).__name__}; "
                    "convert it with torch.as_tensor()."
                )
            if value.dtype not in dtypes:
                raise DataError(
                    f"{self.name}: {attribute} are {value.dtype}, expected {' or '.join(map(str, dtypes))}; convert "
                    f"them with .{cure}."
                )
        if self.inputs.ndim < 2:
            raise DataError(
                f"{self.name}: inputs have shape {tuple(self.inputs.shape)}; expected a leading axis of "
                "samples and at least one axis of values."
            )
        if self.labels.ndim != 1:
            raise DataError(
                f"{self.name}: labels have shape {tuple(self.labels.shape)}; expected (N,) class numbers, not one-hot."
            )
        if len(self.inputs) != len(self.labels):
            raise DataError(
                f"{self.name}: {len(self.inputs)} inputs but {len(self.labels)} labels; give one label a sample."
            )
        if not len(self.labels) or not self.inputs.numel():
            raise DataError(
                f"{self.name}: there are no samples (inputs of shape {tuple(self.inputs.shape)}); give at least one."
            )
        if bool((self.labels < 0).any()):
            at = torch.nonzero(self.labels < 0).flatten()
            raise DataError(
                f"{self.name}: {len(at)} labels are negative, at index {first_few(at.tolist())}; classes count from 0."
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

    def __len__(self) -> int:
        return len(self.labels)

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
        return Samples(self.inputs[chosen], self.labels[chosen], name, self.form)

    def example(self) -> Inputs:
        """The first sample as the network takes it: a tensor (1, ...), or a tree of them."""
        first = self.inputs[:1]
        return first if self.form is None else self.form.unpacked(first)

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Inputs and labels in order, `size` samples at a time; the last batch may be smaller.

        Raises:
            DataError: If the size is not positive.
        """
        if size < 1:
            raise DataError(f"{self.name}: the batch size is {size}; it must be at least 1.")
        yield from zip(self.inputs.split(size), self.labels.split(size), strict=True)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of shape, inputs and labels: the same on every machine for the same contents."""
        # Shape first, so that equal bytes of other shapes differ; the name is no part of the contents.
        digest = hashlib.sha256(f"amed-samples/1 {tuple(self.inputs.shape)} ".encode())
        if self.form is not None:
            digest.update(f"{self.form.fingerprint()} ".encode())
        digest.update(_little_endian(self.inputs, self._stored_type()).data)
        digest.update(_little_endian(self.labels, "<i8").data)
        return digest.hexdigest()

    def _stored_type(self) -> str:
        """What contents are hashed in: float32, which all small integers are too, or int64 for others."""
        integers = not self.inputs.is_floating_point()
        return "<i8" if integers and int(self.inputs.abs().max()) > EXACT_INTEGERS else "<f4"

    def sample_hashes(self) -> list[bytes]:
        """A 16-byte hash of each input, without its label: equal for exact copies."""
        # Sixteen bytes make equal hashes of different samples practically impossible (2^64 samples for an even chance).
        rows = _little_endian(self.inputs, self._stored_type()).reshape(len(self), -1)
        return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]


@dataclass(frozen=True, eq=False)
class Splits:
    """The three parts of a task's data; no sample may be in two of them.

    Attributes:
        calibration: Sets quantization ranges; its labels are not used for choosing.
        search: Scores allocations while searching.
        test: Touched once, for the final report.
        allow_duplicates: Accept exact copies that are in two parts. For data sets that contain copies of
            their own; it is then for the caller to see that no *index* is in two parts.

    Raises:
        DataError: If inputs of the parts have different shapes, or a sample is in two parts.
    """

    calibration: Samples
    search: Samples
    test: Samples
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
        """The three parts by name."""
        return {"calibration": self.calibration, "search": self.search, "test": self.test}

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the three fingerprints."""
        return hashlib.sha256(" ".join(p.fingerprint() for p in self.parts().values()).encode()).hexdigest()

    def _check_disjoint(self) -> None:
        hashes = {name: part.sample_hashes() for name, part in self.parts().items()}
        for (first, first_hashes), (second, second_hashes) in combinations(hashes.items(), 2):
            known = set(first_hashes)
            shared = [index for index, value in enumerate(second_hashes) if value in known]
            if shared:
                raise DataError(
                    f"{len(shared)} of the {len(second_hashes)} {second} samples are also in the {first} "
                    f"samples ({second} index {first_few(shared)}), so scores would be too good; split without "
                    "overlap, or pass allow_duplicates=True if the data set contains exact copies."
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


def _little_endian(tensor: torch.Tensor, dtype: str) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy().astype(dtype, copy=False))
