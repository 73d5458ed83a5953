"""Quality from a table that has every allocation of a network: no data, no network, no forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import as_file, files

import numpy as np
import numpy.typing as npt

from amed_env.errors import InputError, UnknownNameError, UnsupportedPrecisionError
from amed_env.evaluation.quality import Evaluator, GradientMeasure, Quality, Split, check_split
from amed_env.evaluation.stored_divergences import StoredDivergences
from amed_env.evaluation.stored_proxies import StoredProxies
from amed_env.evaluation.table_file import QualityTable
from amed_env.problem.allocation import FLOAT_BITS, BitAllocation, Precision
from amed_env.problem.score import DIVERGENCE, LOSS, TOP_1

TABLE_SCORES = {"divergence": DIVERGENCE, "kl": DIVERGENCE, "loss": LOSS, "metric": TOP_1, TOP_1.name: TOP_1}
"""Scores that tables may hold, by what a user calls them."""


class TableEvaluator(Evaluator):
    """Looks the quality of allocations up.

    Where layers are tied, `workload` has one layer for each group (see `ties.Ties`), and allocations are those of
    the groups.

    Args:
        table: The table.
        proxies: What calibration samples say about the network besides the table's predicted loss, if it is stored.
        score: `divergence`, `loss`, or `metric` (top-1 accuracy); None is the divergence where the table holds it, and
            accuracy elsewhere.

    Raises:
        TableError: If the proxies belong to another table, or the table does not hold that score.
        UnknownNameError: If there is no such score.
    """

    looked_up = True

    def __init__(self, table: QualityTable, proxies: StoredProxies | None = None, score: str | None = None) -> None:
        self.table = table
        self._chosen_score = score
        self.score = DIVERGENCE if table.divergence is not None else TOP_1
        if score is not None:
            if score not in TABLE_SCORES:
                raise UnknownNameError("score of a table", str(score), TABLE_SCORES)
            self.score = TABLE_SCORES[score]
            table.scores("search", self.score)  # says what the table does not hold
        self.proxies = None if proxies is None else proxies.require(table)
        self.workload = table.ties.reduced()
        self.ties = None if table.ties.trivial else table.ties
        self.fingerprint = f"table {table.digest}"
        if self.score == DIVERGENCE:
            self.fingerprint += f" divergences {table.divergence_digest}"
        self.kept_float = table.kept_float

    def complete_table(self) -> QualityTable:
        """See `Evaluator.complete_table`."""
        return self.table

    def evaluate(self, allocation: BitAllocation, split: Split = "search") -> Quality:
        """Quality of an allocation, or of the float network; see `Evaluator.evaluate`."""
        check_split(split)
        if all(precision == (FLOAT_BITS, FLOAT_BITS) for precision in allocation.values()):
            return self.table.quality_of_float(split, self.score)
        return self.table.quality(self.table.row(allocation), split, self.score)

    def score_remarks(self) -> list[str]:
        """See `Evaluator.score_remarks`."""
        if self._chosen_score is None and self.table.divergence is None:
            return [f"this table holds no divergences, so {TOP_1.title} is what is optimised"]
        return []

    def scored(self, score: str | None) -> TableEvaluator:
        """The same table by another score."""
        return TableEvaluator(self.table, self.proxies, score)

    def predicted_loss(self, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """Predicted loss of every group at precisions of the table; see `Evaluator.predicted_loss`.

        That of tied layers is the sum of theirs.
        """
        return self.table.predicted_loss[:, self._columns(precisions)]

    def sensitivity(self, measure: GradientMeasure, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """Stored sensitivities of every group; see `Evaluator.sensitivity`. Those of tied layers are added."""
        return self._stored(measure).sensitivities[measure][:, self._columns(precisions)]

    def pair_divergences(self, precisions: Sequence[Precision], reach: int) -> npt.NDArray[np.float64]:
        """Stored divergences of pairs of groups; see `Evaluator.pair_divergences`."""
        columns = self._columns(precisions)
        pairs = self._stored("pairs").pairs[:, columns][:, :, :, columns]
        groups = np.arange(len(pairs))
        near = np.abs(groups[:, None] - groups) <= reach
        return np.where(near[:, None, :, None], pairs, 0.0)

    def _stored(self, what: str) -> StoredProxies:
        if self.proxies is None:
            raise InputError(
                f"no proxies are stored beside the table of {self.workload.name!r}, so there is no {what!r}; use the "
                "proxy 'kl', or the task of the network itself."
            )
        return self.proxies

    def _columns(self, precisions: Sequence[Precision]) -> list[int]:
        missing = [precision for precision in precisions if precision not in self.table.choice_of]
        if missing:
            raise UnsupportedPrecisionError(
                f"the table of {self.workload.name!r} has no {', '.join(map(str, missing))}; it has "
                f"{', '.join(map(str, self.table.precisions))}."
            )
        return [self.table.choice_of[precision] for precision in precisions]

    def weight_statistics(self) -> npt.NDArray[np.float64]:
        """See `Evaluator.weight_statistics`; of tied layers the largest."""
        return self.table.weight_statistics


@lru_cache(maxsize=8)
def shipped_table(name: str) -> TableEvaluator:
    """The evaluator of a table that comes with the package, by the name of its file without the ending.

    Raises:
        TableError: If the file is missing or damaged.
    """
    folder = files("amed_env.evaluation") / "tables"
    with as_file(folder / f"{name}.npz") as path:
        table = QualityTable.load(path)
    divergences, proxies = folder / f"{name}.divergences.npz", folder / f"{name}.proxies.npz"
    if divergences.is_file():
        with as_file(divergences) as path:
            table = StoredDivergences.load(path).added_to(table)
    if not proxies.is_file():
        return TableEvaluator(table)
    with as_file(proxies) as path:
        return TableEvaluator(table, StoredProxies.load(path, table))
