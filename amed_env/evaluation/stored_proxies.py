"""Files of proxies beside quality tables, in format `amed-proxies/1`: what calibration samples say about a network.

A table answers without the network, so whatever needs the network has to be measured beforehand: sensitivities of
single groups of layers, and divergences of pairs of them. A file belongs to the table that was made from the same
network, samples and recipe; it is an `.npz` file without any pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from amed_env.errors import TableError
from amed_env.evaluation.array_files import read_arrays, reading, write_arrays
from amed_env.evaluation.quality import Evaluator, GradientMeasure
from amed_env.evaluation.table_file import QualityTable, members_of
from amed_env.problem.ties import Ties

FORMAT = "amed-proxies/1"
MEASURES: tuple[GradientMeasure, ...] = get_args(GradientMeasure)


@dataclass(frozen=True, eq=False)
class StoredProxies:
    """Proxies of a table.

    Attributes:
        fingerprint: That of the evaluator which the table was made with.
        sensitivities: Measure to float64 (G, P), in the order of the table's groups and precisions.
        pairs: float64 (G, P, G, P), in nats; see `Evaluator.pair_divergences`.
    """

    fingerprint: str
    sensitivities: Mapping[str, npt.NDArray[np.float64]]
    pairs: npt.NDArray[np.float64]

    @classmethod
    def measure(cls, evaluator: Evaluator, table: QualityTable) -> StoredProxies:
        """Measure them with the evaluator of the table's network.

        Raises:
            TableError: If the table was made from something else.
        """
        if evaluator.fingerprint != table.provenance.get("fingerprint"):
            raise TableError(
                f"the table of {table.ties.full.name!r} was made from another network, other samples or another "
                "recipe than this evaluator has; make the table anew."
            )
        sensitivities: dict[str, npt.NDArray[np.float64]] = {
            measure: _of_groups(evaluator.sensitivity(measure, table.precisions), table.ties) for measure in MEASURES
        }
        pairs = evaluator.pair_divergences(table.precisions, len(evaluator.workload) - 1)
        return cls(evaluator.fingerprint, sensitivities, _pairs_of_groups(pairs, table.ties))

    def require(self, table: QualityTable) -> StoredProxies:
        """Themselves, after checking that they belong to a table.

        Raises:
            TableError: If they do not, or if shapes or values cannot be right.
        """
        if self.fingerprint != table.provenance.get("fingerprint"):
            raise TableError("the proxies belong to another table; measure them anew.")
        groups, count = len(table.ties.groups), len(table.precisions)
        for name in (*MEASURES, "pairs"):
            array = self.pairs if name == "pairs" else self.sensitivities.get(name)
            shape = (groups, count) * (2 if name == "pairs" else 1)
            if array is None or array.shape != shape or not np.isfinite(array).all():
                raise TableError(f"the proxy {name!r} is missing, has a wrong shape, or holds NaN or infinity.")
        return self

    def save(self, path: Path) -> None:
        """Write the file; equal proxies give equal bytes."""
        header = json.dumps({"format": FORMAT, "fingerprint": self.fingerprint}, sort_keys=True).encode()
        parts: dict[str, npt.NDArray[Any]] = {"header": np.frombuffer(header, dtype=np.uint8), **self.sensitivities}
        parts["pairs"] = self.pairs
        write_arrays(path, parts)

    @classmethod
    def load(cls, path: Path, table: QualityTable) -> StoredProxies:
        """Read the file that belongs to a table.

        Raises:
            TableError: If it is missing or damaged, or belongs to another table.
        """
        with reading(path, "file of proxies"):
            arrays = read_arrays(path)
            header = json.loads(arrays.pop("header").tobytes())
            if header.get("format") != FORMAT:
                raise TableError(f"its format is {header.get('format')!r}, expected {FORMAT!r}.")
            values = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}
            return cls(str(header["fingerprint"]), values, values.pop("pairs")).require(table)


def _of_groups(values: npt.NDArray[np.float64], ties: Ties) -> npt.NDArray[np.float64]:
    """Of tied layers the sum: (L, P) to (G, P)."""
    return np.stack([values[members].sum(axis=0) for members in members_of(ties)])


def _pairs_of_groups(pairs: npt.NDArray[np.float64], ties: Ties) -> npt.NDArray[np.float64]:
    """Between two groups the sum over all pairs of their layers: (L, P, L, P) to (G, P, G, P), 0 within a group.

    What the layers of one group do to each other is left out, as the group's own divergence is a sum too.
    """
    groups = members_of(ties)
    count = pairs.shape[1]
    between_groups = np.zeros((len(groups), count, len(groups), count))
    for first, mine in enumerate(groups):
        for second, others in enumerate(groups):
            if first != second:
                between_groups[first, :, second] = pairs[np.ix_(mine, range(count), others, range(count))].sum(
                    axis=(0, 2)
                )
    return between_groups
