"""What is true about a cell: its best and its worst allocation, and the regret of any other one, all looked up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from amed_env.bench.suites import Cell, cell_task
from amed_env.errors import InputError
from amed_env.evaluation.quality import Split
from amed_env.evaluation.table_file import QualityTable
from amed_env.tasks.ground_truth import feasible_rows, optimum, rows_of
from amed_env.tasks.task import Task

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

NOTHING = -1
"""The row of a run that has found nothing feasible."""


@dataclass(frozen=True, eq=False)
class CellTruth:
    """A cell whose every allocation is known.

    Attributes:
        cell: The cell.
        task: Its task, with the budget.
        table: Quality of every allocation.
        feasible: Rows within the budget: bool (rows,).
        optimum: The row of the best allocation on the search split.
    """

    cell: Cell
    task: Task
    table: QualityTable
    feasible: npt.NDArray[np.bool_]
    optimum: int

    def rows(self, choices: Iterable[str]) -> IntArray:
        """Rows of allocations that are written as a digit for each group of layers: int64 (N,).

        Raises:
            InputError: If one of them has another number of digits, or is no feasible allocation of the cell.
        """
        digits = list(choices)
        groups = len(self.table.ties.groups)
        wrong = next((text for text in digits if len(text) != groups or not text.isdecimal()), None)
        if wrong is not None:
            raise InputError(f"{self.cell} has {groups} choices to make; {wrong!r} are not so many digits.")
        rows = rows_of(self.task, [[int(digit) for digit in text] for text in digits])
        exceeding = np.flatnonzero(~self.feasible[rows])
        if exceeding.size:
            raise InputError(f"{digits[int(exceeding[0])]} exceeds the budget of {self.cell}.")
        return rows

    def correct(self, split: Split) -> IntArray:
        """Correct samples of the feasible allocations: int64 (feasible rows,)."""
        return self.table.correct[split][self.feasible].astype(np.int64)

    def best_accuracy(self, split: Split = "search") -> float:
        """Accuracy in percent of the best feasible allocation on a split."""
        return float(100.0 * self.correct(split).max() / self._samples(split))

    def accuracy(self, rows: npt.ArrayLike, split: Split = "search") -> FloatArray:
        """Accuracies of rows, in percent."""
        return np.asarray(100.0 * self.table.correct[split][np.asarray(rows)] / self._samples(split))

    def regret(self, rows: npt.ArrayLike, split: Split = "search") -> FloatArray:
        """Regrets in accuracy points: how far allocations are below the best feasible one of the same split.

        A run that has found nothing feasible is given the regret of the worst feasible allocation, so that every
        later find is an improvement, however bad it is, and none is made to look better than it was.

        Args:
            rows: Rows of feasible allocations; `NOTHING` where none was found.
            split: Where accuracies, the optimum's too, are measured.

        Returns:
            float64 of the same shape; 0 and no other number for an allocation as good as the optimum.
        """
        numbers = np.asarray(rows, dtype=np.int64)
        feasible = self.correct(split)
        correct = np.where(numbers == NOTHING, feasible.min(), self.table.correct[split][numbers].astype(np.int64))
        return np.asarray(100.0 * (feasible.max() - correct) / self._samples(split))

    def _samples(self, split: Split) -> int:
        return self.table.float_quality[split].samples


@lru_cache(maxsize=256)
def cell_truth(cell: Cell) -> CellTruth:
    """The truth about a cell.

    Raises:
        InputError: If its task is on no table.
        BudgetError: If no allocation meets its budget.
    """
    task = cell_task(cell)
    best = optimum(task)
    table = task.evaluator.complete_table()
    assert table is not None  # others have no optimum
    return CellTruth(cell, task, table, feasible_rows(task), table.row(best.allocation))
