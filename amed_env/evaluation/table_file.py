"""Files of quality tables: what a network is worth under every allocation, in format `amed-table/1`.

A table is an `.npz` file without any pickle. Its rows are all allocations in the order of their choices, the last group
of layers varying fastest. The number of correct samples is exact (uint16); the loss is kept as float16, whose steps are
a thousandth of the value or less. A digest over everything tells a damaged file from a whole one.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amed_env.errors import AmedError, TableError, UnsupportedPrecisionError
from amed_env.evaluation.quality import SPLITS, Quality
from amed_env.problem.allocation import BitAllocation, Precision, check_bits
from amed_env.problem.ties import Ties
from amed_env.problem.workload import Layer, Workload

FORMAT = "amed-table/1"
MOST_ROWS = 2**24
"""More allocations than this make no table."""
_COLUMNS = tuple(f"{split}_{what}" for split in SPLITS for what in ("correct", "loss"))


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

    def __post_init__(self) -> None:
        groups, choices = len(self.ties.groups), len(self.precisions)
        shapes = {"predicted_loss": (groups, choices), "weight_statistics": (groups,)}
        arrays = {name: getattr(self, name) for name in shapes}
        for split in SPLITS:
            for what, values in (("correct", self.correct[split]), ("loss", self.loss[split])):
                arrays[f"{split}_{what}"], shapes[f"{split}_{what}"] = values, (choices**groups,)
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

    def quality(self, row: int, split: str) -> Quality:
        """Quality in one row."""
        return Quality(int(self.correct[split][row]), self.float_quality[split].samples, float(self.loss[split][row]))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything in the table."""
        return _digest(self._header(), self._arrays())

    def _header(self) -> bytes:
        header = {
            "format": FORMAT,
            "network": self.ties.full.name,
            "layers": [asdict(layer) for layer in self.ties.full],
            "ties": [list(group) for group in self.ties.groups if len(group) > 1],
            "precisions": [list(precision) for precision in self.precisions],
            # "partial" has no meaning any more, but it is part of the digest by which results name their tables.
            "float": {split: {**asdict(quality), "partial": False} for split, quality in self.float_quality.items()},
            "kept_float": list(self.kept_float),
            "provenance": self.provenance,
        }
        return json.dumps(header, sort_keys=True, allow_nan=False).encode()

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        columns = {
            f"{split}_{what}": np.asarray(values[split], dtype=dtype)
            for split in SPLITS
            # Counts are exact. Losses have the 11 significant bits of float16, which halves the file; so a task of a
            # table has a fingerprint of its own.
            for what, values, dtype in (("correct", self.correct, "<u2"), ("loss", self.loss, "<f2"))
        }
        small = {name: np.asarray(getattr(self, name), dtype="<f8") for name in ("predicted_loss", "weight_statistics")}
        return {**columns, **small}

    def save(self, path: Path) -> None:
        """Write the file; equal tables give equal bytes."""
        header, arrays = self._header(), self._arrays()
        parts = {
            "header": np.frombuffer(header, dtype=np.uint8),
            "sha256": np.frombuffer(bytes.fromhex(self.digest), dtype=np.uint8),
            **{name: _packed(array) if name in _COLUMNS else array for name, array in arrays.items()},
        }
        write_arrays(path, parts)

    @classmethod
    def load(cls, path: Path) -> QualityTable:
        """Read a file.

        Raises:
            TableError: If it is missing or damaged, or no such table.
        """
        try:
            return cls._load(path)
        except OSError as error:
            raise TableError(f"cannot read the quality table {path}: {error}.") from error
        except AmedError as error:
            raise TableError(f"the quality table {path} cannot be used: {error}") from error
        except Exception as error:  # a damaged file makes zipfile, numpy and json raise errors of many types
            raise TableError(
                f"the quality table {path} is damaged or no table ({type(error).__name__}: {error}); install the "
                "package again, or make the table anew."
            ) from error

    @classmethod
    def _load(cls, path: Path) -> QualityTable:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        raw, digest = arrays.pop("header").tobytes(), arrays.pop("sha256").tobytes().hex()
        header = json.loads(raw)
        if header.get("format") != FORMAT:
            raise TableError(f"its format is {header.get('format')!r}, expected {FORMAT!r}.")
        for name in _COLUMNS:
            arrays[name] = _unpacked(arrays[name], "<u2" if name.endswith("correct") else "<f2")
        if _digest(raw, arrays) != digest:
            raise TableError("its contents do not match their checksum; install the package again.")
        workload = Workload(header["network"], tuple(_layer(fields) for fields in header["layers"]))
        return cls(
            Ties.of(workload, header["ties"]),
            tuple(Precision(*(check_bits(bits, "table") for bits in pair)) for pair in header["precisions"]),
            {split: arrays[f"{split}_correct"] for split in SPLITS},
            {split: arrays[f"{split}_loss"] for split in SPLITS},
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


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write an `.npz` file; equal arrays give equal bytes, as `numpy.savez`, which keeps the time, does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED)


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


def _digest(header: bytes, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256(header)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.shape} {array.dtype.str}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _packed(column: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The low bytes of all values, then the high ones: uint8 (2, rows), which compresses better."""
    return np.ascontiguousarray(column.view(np.uint8).reshape(-1, 2).T)


def _unpacked(planes: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    if planes.dtype != np.uint8 or planes.ndim != 2 or len(planes) != 2:
        raise TableError(f"a column has shape {planes.shape} and type {planes.dtype}, expected uint8 (2, rows).")
    return np.ascontiguousarray(planes.T).view(dtype).reshape(-1)


def _layer(fields: Mapping[str, Any]) -> Layer:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return Layer(**values)
