"""Files of quality tables, in format `amed-table/1`: what a network is worth under every allocation.

A table is an `.npz` file without any pickle. Its rows are all allocations in the order of their choices, the last group
of layers varying fastest. The number of correct samples is exact (uint16); losses are kept as float16, whose steps are
a thousandth of the value or less. A digest over everything tells a damaged file from a whole one. Divergences from the
float network lie in a file of their own beside it (`stored_divergences`), as results name tables by their digests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amed_env.errors import TableError, UnsupportedPrecisionError
from amed_env.evaluation.array_files import (
    digest_of,
    packed,
    read_arrays,
    reading,
    sealed,
    unpacked,
    unsealed,
    write_arrays,
)
from amed_env.evaluation.quality import SPLITS, Quality
from amed_env.problem.allocation import BitAllocation, Precision, check_bits
from amed_env.problem.score import DIVERGENCE, LOSS, TOP_1, Score
from amed_env.problem.ties import Ties
from amed_env.problem.workload import Layer, Workload

FORMAT = "amed-table/1"
MOST_ROWS = 2**24
"""More allocations than this make no table."""
_TYPES = {"correct": "<u2", "loss": "<f2"}
"""Columns of a split, with the type of their values in a file."""


@dataclass(frozen=True, eq=False)
class QualityTable:
    """Quality of every allocation of a network, and what else an agent may ask about it.

    Attributes:
        ties: The network's layers, and which of them share a choice: G groups.
        precisions: P precisions that every group chooses from, narrow ones first.
        correct: Split to the number of correct samples of each allocation: uint16 (P ** G,).
        loss: Split to the mean cross-entropy in nats: float16 (P ** G,).
        float_quality: Split to the quality of the float network.
        predicted_loss: float64 (G, P): mean Kullback-Leibler divergence in nats when one group alone is quantized.
        weight_statistics: float64 (G,): largest magnitude over standard deviation of a group's weights.
        kept_float: Modules with parameters that stay in float.
        provenance: How the table was made: recipe, fingerprint, versions, data, machine.
        divergence: Split to the mean Kullback-Leibler divergence from the float network in nats: float16 (P ** G,);
            None where it is not known. It is neither in the file nor in the digest.
    """

    ties: Ties
    precisions: tuple[Precision, ...]
    correct: Mapping[str, npt.NDArray[np.uint16]]
    loss: Mapping[str, npt.NDArray[np.float16]]
    float_quality: Mapping[str, Quality]
    predicted_loss: npt.NDArray[np.float64]
    weight_statistics: npt.NDArray[np.float64]
    kept_float: tuple[str, ...]
    provenance: Mapping[str, Any]
    divergence: Mapping[str, npt.NDArray[np.float16]] | None = None

    def __post_init__(self) -> None:
        groups, choices = len(self.ties.groups), len(self.precisions)
        shapes = {"predicted_loss": (groups, choices), "weight_statistics": (groups,)}
        arrays = {name: getattr(self, name) for name in shapes}
        for split in SPLITS:
            columns: list[tuple[str, Mapping[str, npt.NDArray[Any]] | None]] = [
                ("correct", self.correct), ("loss", self.loss), ("divergence", self.divergence)
            ]  # fmt: skip
            for what, values in columns:
                if values is not None:
                    arrays[f"{split}_{what}"], shapes[f"{split}_{what}"] = values[split], (choices**groups,)
            if int(self.correct[split].max()) > self.float_quality[split].samples:
                raise TableError(f"the table has more correct samples of the {split} split than there are samples.")
        for name, array in arrays.items():
            if array.shape != shapes[name]:
                raise TableError(f"the table's {name} has shape {array.shape}, expected {shapes[name]}.")
            if not np.isfinite(array).all() or array.min() < 0:
                raise TableError(f"the table's {name} has values that are negative or not finite.")
            array.setflags(write=False)  # all tasks of a process share the table

    def __len__(self) -> int:
        """Allocations in all."""
        return int(len(self.precisions) ** len(self.ties.groups))

    @cached_property
    def strides(self) -> npt.NDArray[np.int64]:
        """What one step of a group's choice moves the row number by: int64 (G,)."""
        return len(self.precisions) ** np.arange(len(self.ties.groups) - 1, -1, -1, dtype=np.int64)

    @cached_property
    def choice_of(self) -> dict[Precision, int]:
        """The number of every precision."""
        return {precision: choice for choice, precision in enumerate(self.precisions)}

    @cached_property
    def _row_parts(self) -> list[tuple[str, int]]:
        """The name and the stride of every group, as plain values: looking up is what a search on a table does."""
        return list(zip(self.ties.names, self.strides.tolist(), strict=True))

    def row(self, allocation: BitAllocation) -> int:
        """The row of an allocation of the groups.

        Raises:
            AllocationError: If it does not have exactly the table's groups.
            UnsupportedPrecisionError: If the table lacks a precision.
        """
        allocation = allocation.require_layers(self.ties.names, f"network {self.ties.full.name!r}")
        row = 0
        for name, stride in self._row_parts:
            choice = self.choice_of.get(allocation[name])
            if choice is None:
                raise UnsupportedPrecisionError(
                    f"layer {name!r} has {allocation[name]}, but the table of {self.ties.full.name!r} has only "
                    f"{', '.join(map(str, self.precisions))}; evaluate other widths on the network itself."
                )
            row += choice * stride
        return row

    def allocation(self, row: int) -> BitAllocation:
        """The allocation of the groups in one row."""
        choices = row // self.strides % len(self.precisions)
        pairs = zip(self.ties.names, choices, strict=True)
        return BitAllocation({name: self.precisions[choice] for name, choice in pairs})

    def scores(self, split: str, score: Score) -> npt.NDArray[np.float64]:
        """What every allocation is scored: float64 (P ** G,).

        Raises:
            TableError: If the table does not have that score.
        """
        if score == TOP_1:
            return self.correct[split] / self.float_quality[split].samples
        if score == LOSS:
            return self.loss[split].astype(np.float64)
        if score == DIVERGENCE and self.divergence is not None:
            return self.divergence[split].astype(np.float64)
        known = [TOP_1, LOSS] if self.divergence is None else [TOP_1, LOSS, DIVERGENCE]
        raise TableError(
            f"the table of {self.ties.full.name!r} holds no {score.name}; it holds "
            f"{', '.join(score.name for score in known)}. The task of the network itself can be scored by anything."
        )

    def order(self, split: str, score: Score) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Two numbers of every allocation that sort the better one first, as `Quality.order` does."""
        scores = self.scores(split, score)
        return -scores if score.higher_is_better else scores, self.loss[split].astype(np.float64)

    def quality(self, row: int, split: str, score: Score = TOP_1) -> Quality:
        """Quality in one row."""
        correct, loss = int(self.correct[split][row]), float(self.loss[split][row])
        return self._scored(Quality(correct, self.float_quality[split].samples, loss), row, split, score)

    def quality_of_float(self, split: str, score: Score = TOP_1) -> Quality:
        """Quality of the float network."""
        return self._scored(self.float_quality[split], None, split, score)

    def _scored(self, quality: Quality, row: int | None, split: str, score: Score) -> Quality:
        """A quality of one row, or of the float network, by another score than accuracy."""
        if score == TOP_1:
            return quality
        value = quality.loss
        if score == DIVERGENCE and self.divergence is not None:
            value = 0.0 if row is None else float(self.divergence[split][row])
        assert value is not None  # samples of tables have labels
        return replace(quality, score=value, scored_by=score, standard_error=None)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything in the table."""
        return digest_of(self._header(), self._arrays())

    @cached_property
    def divergence_digest(self) -> str:
        """SHA-256 (hex) of the divergences; of nothing if there are none."""
        return digest_of(b"", {split: values.astype("<f2") for split, values in (self.divergence or {}).items()})

    def _header(self) -> bytes:
        # Neither "partial" nor the choice of fields has a meaning any more, but both are part of the digest by which
        # results name their tables.
        float_quality = {
            split: {"correct": quality.correct, "samples": quality.samples, "loss": quality.loss, "partial": False}
            for split, quality in self.float_quality.items()
        }
        header = {
            "format": FORMAT,
            "network": self.ties.full.name,
            "layers": [_fields_of(layer) for layer in self.ties.full],
            "ties": [list(group) for group in self.ties.groups if len(group) > 1],
            "precisions": [list(precision) for precision in self.precisions],
            "float": float_quality,
            "kept_float": list(self.kept_float),
            "provenance": self.provenance,
        }
        return json.dumps(header, sort_keys=True, allow_nan=False).encode()

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        # Counts are exact. Losses have the 11 significant bits of float16, which halves the file; so a task of a table
        # has a fingerprint of its own.
        columns = {
            f"{split}_{what}": np.asarray(getattr(self, what)[split], dtype=dtype)
            for split in SPLITS
            for what, dtype in _TYPES.items()
        }
        small = {name: np.asarray(getattr(self, name), dtype="<f8") for name in ("predicted_loss", "weight_statistics")}
        return {**columns, **small}

    def save(self, path: Path) -> None:
        """Write the file; equal tables give equal bytes."""
        header, arrays = self._header(), self._arrays()
        parts = {
            **sealed(header, self.digest),
            **{name: array if array.dtype == "<f8" else packed(array) for name, array in arrays.items()},
        }
        write_arrays(path, parts)

    @classmethod
    def load(cls, path: Path) -> QualityTable:
        """Read a file.

        Raises:
            TableError: If it is missing or damaged, or no such table.
        """
        with reading(path, "quality table"):
            return cls._load(path)

    @classmethod
    def _load(cls, path: Path) -> QualityTable:
        arrays = read_arrays(path)
        raw, digest = unsealed(arrays)
        header = json.loads(raw)
        if header.get("format") != FORMAT:
            raise TableError(f"its format is {header.get('format')!r}, expected {FORMAT!r}.")
        columns: dict[str, dict[str, npt.NDArray[Any]]] = {}
        for what, dtype in _TYPES.items():
            for split in SPLITS:
                name = f"{split}_{what}"
                arrays[name] = unpacked(arrays[name], dtype)
                columns.setdefault(what, {})[split] = arrays[name]
        if digest_of(raw, arrays) != digest:
            raise TableError("its contents do not match their checksum; install the package again.")
        workload = Workload(header["network"], tuple(_layer(fields) for fields in header["layers"]))
        return cls(
            Ties.of(workload, header["ties"]),
            tuple(Precision(*(check_bits(bits, "table") for bits in pair)) for pair in header["precisions"]),
            columns["correct"],
            columns["loss"],
            {split: Quality.from_json(header["float"][split]) for split in SPLITS},
            arrays["predicted_loss"],
            arrays["weight_statistics"],
            tuple(header["kept_float"]),
            header["provenance"],
        )


def members_of(ties: Ties) -> list[list[int]]:
    """Positions of the layers of each group among all layers of the network."""
    position = {name: row for row, name in enumerate(ties.full.layer_names)}
    return [[position[name] for name in group] for group in ties.groups]


def check_size(groups: int, choices: int) -> int:
    """The number of rows of a table.

    Raises:
        TableError: If they are too many.
    """
    rows = int(choices**groups)
    if rows > MOST_ROWS:
        raise TableError(
            f"{groups} groups of layers with {choices} precisions are {rows:,} allocations, more than {MOST_ROWS:,}; "
            "tie layers, or take fewer widths."
        )
    return rows


def _fields_of(layer: Layer) -> dict[str, Any]:
    fields = asdict(layer)
    # Earlier versions did not have these: where they say nothing they are left out, so that tables keep their digests.
    if layer.batch == 1:
        del fields["batch"]
    if not layer.shares_weights_with:
        del fields["shares_weights_with"]
    return fields


def _layer(fields: Mapping[str, Any]) -> Layer:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return Layer(**values)
