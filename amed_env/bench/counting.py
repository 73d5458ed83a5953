"""Quality that is counted wherever it is asked for: an agent may look at its task, but not past its session."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NoReturn, Self, SupportsIndex

from amed_env.errors import InputError
from amed_env.evaluation.delegating import DelegatingEvaluator
from amed_env.evaluation.quality import Evaluator, Quality, Split
from amed_env.problem.allocation import FLOAT_BITS, BitAllocation
from amed_env.tasks.task import Task


class Questions:
    """Different allocations whose quality was asked for, in order; the float network is free."""

    def __init__(self) -> None:
        self._asked: dict[BitAllocation, None] = {}

    def __len__(self) -> int:
        return len(self._asked)

    def add(self, allocation: BitAllocation) -> None:
        """Note an allocation."""
        if not all(precision == (FLOAT_BITS, FLOAT_BITS) for precision in allocation.values()):
            self._asked[allocation] = None

    def after(self, number: int) -> list[BitAllocation]:
        """All but the first so many."""
        return list(self._asked)[number:] if number < len(self._asked) else []


class CountedEvaluator(DelegatingEvaluator):
    """Another evaluator, which tells what it was asked, and answers for the search split alone.

    Copies, deep ones too, are the evaluator itself, so that what is asked of the copy of a task counts as well.

    Args:
        inner: The other one.
        count: Called with every allocation before its quality is told.
    """

    def __init__(self, inner: Evaluator, count: Callable[[BitAllocation], None]) -> None:
        super().__init__(inner)
        self._count = count

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
        allocation = allocation.plain()  # what is counted is what is evaluated
        self._count(allocation)
        return super().evaluate(allocation, split)


def counted(task: Task) -> tuple[Task, Questions]:
    """A copy of a task whose evaluator counts, and what it will have been asked."""
    twin, questions = copy.copy(task), Questions()
    twin.evaluator = CountedEvaluator(task.evaluator, questions.add)
    return twin, questions
