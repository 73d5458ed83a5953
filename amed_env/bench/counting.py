"""Quality that is counted wherever it is asked for: an agent may look at its task, but not past its session."""

from __future__ import annotations

import copy

from amed_env.evaluation.delegating import DelegatingEvaluator
from amed_env.evaluation.quality import Evaluator, Quality, Split
from amed_env.problem.allocation import FLOAT_BITS, BitAllocation
from amed_env.tasks.task import Task


class CountingEvaluator(DelegatingEvaluator):
    """Another evaluator, which remembers what it was asked.

    Args:
        inner: The other one.

    Attributes:
        asked: Different allocations whose quality was asked for; the float network is free.
    """

    def __init__(self, inner: Evaluator) -> None:
        super().__init__(inner)
        self.asked: set[BitAllocation] = set()

    def evaluate(self, allocation: BitAllocation, split: Split = "search") -> Quality:
        """See `Evaluator.evaluate`."""
        self._count(allocation)
        return super().evaluate(allocation, split)

    def _count(self, allocation: BitAllocation) -> None:
        if any(precision != (FLOAT_BITS, FLOAT_BITS) for precision in allocation.values()):
            self.asked.add(allocation)


def counted(task: Task) -> tuple[Task, set[BitAllocation]]:
    """A copy of a task whose evaluator counts, and the allocations that it will have been asked for."""
    twin, evaluator = copy.copy(task), CountingEvaluator(task.evaluator)
    twin.evaluator = evaluator
    return twin, evaluator.asked
