"""The first answer of a search: before anything is learned, measured at length, or evaluated.

A pass forward and backward over few samples tells what each layer roughly loses at each width; the exact solver turns
that into an allocation within the budgets. A search begins with it, so that whoever stops it has an answer.
"""

from __future__ import annotations

from time import perf_counter

from amed_env.agents.result import FirstAnswer
from amed_env.agents.searchers.moves import good_starts
from amed_env.agents.session import SearchSession
from amed_env.errors import SearchEnded
from amed_env.tasks.task import Task


def first_answer(task: Task) -> FirstAnswer | None:
    """The allocation that a quick estimate of the layers' losses proposes within the budgets.

    Args:
        task: The task with its budgets; its network need not be prepared, and is not.

    Returns:
        The answer; None if the task's evaluator has no quicker estimate than its predicted losses, or the device tells
        the costs of nothing.
    """
    started = perf_counter()
    losses = task.evaluator.first_losses(task.precisions)
    if losses is None:
        return None
    session = SearchSession(task, 1)
    try:
        starts = good_starts(session, losses)
    except SearchEnded:
        return None
    if not starts:
        return None
    allocation = task.allocation(starts[0])
    return FirstAnswer(allocation, task.total_costs(allocation), perf_counter() - started)
