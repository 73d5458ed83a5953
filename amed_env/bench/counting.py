"""Quality that is counted wherever it is asked for: an agent may look at its task, but not past its session."""

from __future__ import annotations

import copy
from typing import Any, NoReturn, Self, SupportsIndex

from amed_env.allocation import FLOAT_BITS, BitAllocation
from amed_env.errors import InputError
from amed_env.evaluation.delegating import DelegatingEvaluator
from amed_env.evaluation.early_decision import EarlyDecision
from amed_env.evaluation.quality import Evaluator, Quality, Split
from amed_env.task import Task


class CountedEvaluator(DelegatingEvaluator):
    """Another evaluator, which remembers what it was asked, and answers for the search split alone.

    Copies, deep ones too, are the evaluator itself, so that what is asked of the copy of a task counts as well.

    Args:
        inner: The other one.

    Attributes:
        asked: Different allocations whose quality was asked for, in order; the float network is free.
    """

    def __init__(self, inner: Evaluator) -> None:
        super().__init__(inner)
        self.asked: list[BitAllocation] = []
        self._known: set[BitAllocation] = set()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise InputError(
            "the task of a benchmark cannot be pickled, as what is asked of another process would not be counted; make "
            "evaluations with session.evaluate in the agent's own process."
        )

    def evaluate(self, allocation: BitAllocation, split: Split = "search") -> Quality:
        """See `Evaluator.evaluate`.

        Raises:
            InputError: If another split than that of the search is asked for.
        """
        if split != "search":
            raise InputError(
                f"the {split} split is closed while an agent searches; score allocations on the search split."
            )
        self._count(allocation)
        return super().evaluate(allocation, split)

    def evaluate_until(self, allocation: BitAllocation, early: EarlyDecision) -> Quality:
        """See `Evaluator.evaluate_until`."""
        self._count(allocation)
        return super().evaluate_until(allocation, early)

    def _count(self, allocation: BitAllocation) -> None:
        is_float = all(precision == (FLOAT_BITS, FLOAT_BITS) for precision in allocation.values())
        if not is_float and allocation not in self._known:
            self._known.add(allocation)
            self.asked.append(allocation)


def counted(task: Task) -> tuple[Task, CountedEvaluator]:
    """A copy of a task whose evaluator counts, and that evaluator."""
    twin, evaluator = copy.copy(task), CountedEvaluator(task.evaluator)
    twin.evaluator = evaluator
    return twin, evaluator
