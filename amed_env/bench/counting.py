"""Quality that is counted wherever it is asked for: an agent may look at its task, but not past its session."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from amed_env.allocation import FLOAT_BITS, BitAllocation, Precision
from amed_env.evaluation.early_decision import EarlyDecision
from amed_env.evaluation.quality import Evaluator, GradientMeasure, Quality, Split
from amed_env.task import Task

_HIDDEN = ("table", "row")  # of an evaluator that looks up: who has the table needs no search


class CountedEvaluator(Evaluator):
    """Another evaluator, which remembers what it was asked.

    It is no `TableEvaluator`, so environments cannot look many things up at once in it.

    Args:
        inner: The other one.

    Attributes:
        asked: Allocations whose quality was asked for; the float network is free.
    """

    def __init__(self, inner: Evaluator) -> None:
        self.workload, self.fingerprint, self.kept_float = inner.workload, inner.fingerprint, inner.kept_float
        self.decides_early, self.looks, self.looked_up = inner.decides_early, inner.looks, inner.looked_up
        self.asked: set[BitAllocation] = set()
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in _HIDDEN:
            raise AttributeError(f"a benchmark's evaluator has no {name!r}.")
        return getattr(self._inner, name)

    def evaluate(self, allocation: BitAllocation, split: Split = "search") -> Quality:
        """See `Evaluator.evaluate`."""
        self._count(allocation)
        return self._inner.evaluate(allocation, split)

    def evaluate_until(self, allocation: BitAllocation, early: EarlyDecision) -> Quality:
        """See `Evaluator.evaluate_until`."""
        self._count(allocation)
        return self._inner.evaluate_until(allocation, early)

    def predicted_loss(self, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """See `Evaluator.predicted_loss`."""
        return self._inner.predicted_loss(precisions)

    def sensitivity(self, measure: GradientMeasure, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """See `Evaluator.sensitivity`."""
        return self._inner.sensitivity(measure, precisions)

    def pair_divergences(self, precisions: Sequence[Precision], reach: int) -> npt.NDArray[np.float64]:
        """See `Evaluator.pair_divergences`."""
        return self._inner.pair_divergences(precisions, reach)

    def weight_statistics(self) -> npt.NDArray[np.float64]:
        """See `Evaluator.weight_statistics`."""
        return self._inner.weight_statistics()

    def _count(self, allocation: BitAllocation) -> None:
        if any(precision != (FLOAT_BITS, FLOAT_BITS) for precision in allocation.values()):
            self.asked.add(allocation)


def counted(task: Task) -> tuple[Task, CountedEvaluator]:
    """A copy of a task whose evaluator counts, and that evaluator."""
    twin, evaluator = copy.copy(task), CountedEvaluator(task.evaluator)
    twin.evaluator = evaluator
    return twin, evaluator
