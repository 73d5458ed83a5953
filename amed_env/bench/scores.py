"""Regret of recorded runs: looked up in the tables, never taken from a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amed_env.bench.result_file import ResultFile, Run
from amed_env.bench.suites import Cell
from amed_env.bench.truth import NOTHING, cell_truth
from amed_env.evaluation.quality import Split

FloatArray = npt.NDArray[np.float64]

AFTER = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Evaluations after which regret is shown."""


def best_accuracy(cell: Cell, split: Split = "search") -> float:
    """Accuracy in percent of the best feasible allocation of a cell on a split."""
    truth = cell_truth(cell)
    return 100.0 * float(truth.correct(split).max()) / truth.table.float_quality[split].samples


def optimum_on_test(cell: Cell) -> float:
    """Regret on the test split, in accuracy points, of the allocation that is the optimum by the search split."""
    truth = cell_truth(cell)
    return float(truth.regret(truth.optimum, "test"))


def regret_after(run: Run, evaluations: int, split: Split = "search") -> float:
    """Accuracy points between the optimum of the cell and the best that a run had after so many evaluations.

    The best is always chosen by the search split; `split` says where both are then measured. Of a run that had found
    nothing feasible see `CellTruth.regret`.
    """
    best, truth = run.best_after(evaluations), cell_truth(run.cell)
    return float(truth.regret(NOTHING if best is None else truth.rows([best.choices])[0], split))


def regrets(result: ResultFile, cells: Sequence[Cell], evaluations: int, split: Split = "search") -> FloatArray:
    """Regrets in accuracy points of all runs: float64 (seeds, cells).

    Raises:
        KeyError: If a run is missing.
    """
    runs = {run.key: run for run in result.runs}
    return np.asarray(
        [[regret_after(runs[cell, seed], evaluations, split) for cell in cells] for seed in range(result.header.seeds)]
    )
