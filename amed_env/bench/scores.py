"""Regret of recorded runs: looked up in the tables, never taken from a file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from amed_env.bench.result_file import ResultFile, Run
from amed_env.bench.suites import Cell, cell_task
from amed_env.evaluation.quality import Split
from amed_env.ground_truth import optimum

FloatArray = npt.NDArray[np.float64]

AFTER = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Evaluations after which regret is shown."""


_task = lru_cache(maxsize=256)(cell_task)  # of every cell once; nothing here changes it


@lru_cache(maxsize=4096)
def best_accuracy(cell: Cell, split: Split = "search") -> float:
    """Accuracy in percent of the optimum of a cell."""
    return 100.0 * optimum(_task(cell), split=split).quality.accuracy


@lru_cache(maxsize=4096)
def optimum_on_test(cell: Cell) -> float:
    """Regret on the test split, in accuracy points, of the allocation that is the optimum by the search split."""
    task = _task(cell)
    return best_accuracy(cell, "test") - 100.0 * task.evaluator.evaluate(optimum(task).allocation, "test").accuracy


def regret_after(run: Run, evaluations: int, split: Split = "search") -> float:
    """Accuracy points between the optimum of the cell and the best that a run had after so many evaluations.

    The best is always chosen by the search split; `split` says where both are then measured. A run that had found
    nothing feasible has the whole accuracy of the optimum as regret.
    """
    best = run.best_after(evaluations)
    if best is None:
        return best_accuracy(run.cell, split)
    task = _task(run.cell)
    allocation = task.allocation([int(choice) for choice in best.choices])
    return best_accuracy(run.cell, split) - 100.0 * task.evaluator.evaluate(allocation, split).accuracy


def regrets(result: ResultFile, cells: Sequence[Cell], evaluations: int, split: Split = "search") -> FloatArray:
    """Regrets in accuracy points of all runs: float64 (seeds, cells).

    Raises:
        KeyError: If a run is missing.
    """
    runs = {run.key: run for run in result.runs}
    return np.asarray(
        [[regret_after(runs[cell, seed], evaluations, split) for cell in cells] for seed in range(result.header.seeds)]
    )
