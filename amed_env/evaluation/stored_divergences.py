"""Files of divergences beside quality tables, in format `amed-divergences/1`: how far every allocation is from float.

They lie beside the table and not in it: results name tables by their digests, which stay as they are. The values are
float16, whose steps are a thousandth of the value or less (below 0.00006 nats up to 0.00000003 nats).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amed_env.errors import TableError
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
from amed_env.evaluation.quality import SPLITS
from amed_env.evaluation.table_file import QualityTable

FORMAT = "amed-divergences/1"


@dataclass(frozen=True, eq=False)
class StoredDivergences:
    """Divergences of all allocations of a table.

    Attributes:
        table: Digest of the table.
        values: Split to the mean Kullback-Leibler divergence from the float network in nats: float16 (rows,).
        samples: Split to the number of its samples, from the first on, that the mean is over.
        provenance: How they were measured, and how many correct samples of the table came out the same.
    """

    table: str
    values: Mapping[str, npt.NDArray[np.float16]]
    samples: Mapping[str, int]
    provenance: Mapping[str, Any]

    @classmethod
    def of(cls, built: QualityTable, table: QualityTable) -> StoredDivergences:
        """Those of a table that was built again, for the table that it repeats.

        Raises:
            TableError: If it has no divergences, or is of another network, other allocations or other samples.
        """
        name = table.ties.full.name
        if built.divergence is None:
            raise TableError(f"the table of {name!r} was built again without divergences.")
        made, before = built.provenance, table.provenance
        same_rows = (built.ties, built.precisions) == (table.ties, table.precisions)
        same_samples = all(made["samples"][part] == before["samples"][part] for part in ("calibration", "search"))
        if not (same_rows and same_samples and made["network_and_calibration"] == before["network_and_calibration"]):
            raise TableError(
                f"the divergences of {name!r} were measured on another network, other allocations or other samples "
                "than its table."
            )
        # Another processor adds up in another order, and learned rounding ends at slightly other integers.
        equal = float(np.mean(built.correct["search"] == table.correct["search"]))
        provenance = {**made, "share_of_equal_counts": round(equal, 4)}
        samples: dict[str, int] = {split: built.float_quality[split].samples for split in SPLITS}
        return cls(table.digest, built.divergence, samples, provenance)

    def added_to(self, table: QualityTable) -> QualityTable:
        """The table with these divergences.

        Raises:
            TableError: If they belong to another table, or are of another form.
        """
        if self.table != table.digest:
            raise TableError("the divergences belong to another table; measure them anew.")
        return replace(table, divergence=self.values)

    def save(self, path: Path) -> None:
        """Write the file; equal divergences give equal bytes."""
        header = {"format": FORMAT, "table": self.table, "samples": dict(self.samples), "provenance": self.provenance}
        raw = json.dumps(header, sort_keys=True, allow_nan=False).encode()
        values: dict[str, npt.NDArray[Any]] = {split: np.asarray(self.values[split], dtype="<f2") for split in SPLITS}
        parts = {
            **sealed(raw, digest_of(raw, values)),
            **{split: packed(array) for split, array in values.items()},
        }
        write_arrays(path, parts)

    @classmethod
    def load(cls, path: Path) -> StoredDivergences:
        """Read a file.

        Raises:
            TableError: If it is missing or damaged, or no such file.
        """
        with reading(path, "file of divergences"):
            arrays = read_arrays(path)
            raw, digest = unsealed(arrays)
            header = json.loads(raw)
            if header.get("format") != FORMAT:
                raise TableError(f"its format is {header.get('format')!r}, expected {FORMAT!r}.")
            values: dict[str, npt.NDArray[Any]] = {split: unpacked(arrays[split], "<f2") for split in SPLITS}
            if digest_of(raw, values) != digest:
                raise TableError("its contents do not match their checksum; install the package again.")
            return cls(header["table"], values, header["samples"], header["provenance"])
