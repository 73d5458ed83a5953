"""The first answers of a search: before anything is learned, measured at length, or evaluated.

A pass forward and backward over few samples tells what each layer roughly loses at each width, and the exact solver
makes an allocation within the budgets of it. Then the divergences are measured of those layers and widths that matter
for the answer: what the solver chooses and the widths next to it, until everything that it chooses is measured. So a
width that no answer comes near is never measured, and whoever stops the search has an answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

import numpy as np
import numpy.typing as npt

from amed_env.agents.result import FirstAnswer
from amed_env.agents.searchers.moves import good_starts
from amed_env.agents.session import MAX_CONSECUTIVE_FAULTS, SearchSession
from amed_env.errors import SearchEnded
from amed_env.tasks.task import Task

MOST_ROUNDS = 4
"""After which the answer is taken although it may have a width that is not measured."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def first_answers(task: Task, max_faults: int = MAX_CONSECUTIVE_FAULTS) -> Iterator[FirstAnswer]:
    """Allocations within the budgets, each from better estimates of the layers' losses than the one before.

    Args:
        task: The task with its budgets; its network is taken as it is, prepared or not.
        max_faults: Failures of the device in a row after which there is no answer.

    Yields:
        At most two answers; none if the task's evaluator has no quicker estimate than its predicted losses, or the
        device tells the costs of nothing.
    """
    started = perf_counter()
    losses = task.evaluator.first_losses(task.precisions)
    if losses is None:
        return
    session = SearchSession(task, 1, max_faults=max_faults)
    choices = _optimum(session, losses)
    if choices is None:
        return
    yield _answer(task, "gradients", choices, started)
    choices = _refined(session, losses, choices)
    if choices is not None:
        yield _answer(task, "divergences", choices, started)


def _optimum(session: SearchSession, losses: FloatArray) -> IntArray | None:
    try:
        starts = good_starts(session, losses)
    except SearchEnded:  # the device failed too often
        return None
    return starts[0] if starts else None


def _answer(task: Task, stage: str, choices: IntArray, started: float) -> FirstAnswer:
    allocation = task.allocation(choices)
    return FirstAnswer(stage, allocation, task.total_costs(allocation), perf_counter() - started)


def _refined(session: SearchSession, losses: FloatArray, choices: IntArray) -> IntArray | None:
    """The optimum by divergences where they matter, and by estimates of the same size elsewhere."""
    task = session.task
    measured, divergences = np.zeros(losses.shape, dtype=bool), np.zeros(losses.shape)
    wanted = _near(task, choices)
    for _ in range(MOST_ROUNDS):
        cells = np.argwhere(wanted & ~measured)
        if len(cells) == 0:
            break
        divergences += task.evaluator.first_divergences(task.precisions, [(int(i), int(k)) for i, k in cells])
        measured |= wanted
        found = _optimum(session, _completed(losses, divergences, measured))
        if found is None:
            return None
        choices = found
        wanted = np.zeros(losses.shape, dtype=bool)
        wanted[np.arange(len(choices)), choices] = True
    return choices


def _near(task: Task, choices: IntArray) -> npt.NDArray[np.bool_]:
    """What is chosen, and of each layer the next narrower and wider choice: bool (L, P)."""
    near = np.zeros(task.choosable.shape, dtype=bool)
    for layer, choice in enumerate(choices):
        allowed = np.flatnonzero(task.choosable[layer])
        place = int(np.searchsorted(allowed, choice))
        near[layer, allowed[max(0, place - 1) : place + 2]] = True
    return near


def _completed(losses: FloatArray, divergences: FloatArray, measured: npt.NDArray[np.bool_]) -> FloatArray:
    """Divergences, and where there are none the estimates times what they are off by in the same layer: (L, P)."""
    known = measured & (losses > 0) & (divergences > 0)
    ratios = np.where(known, np.log(np.where(known, divergences, 1.0) / np.where(known, losses, 1.0)), 0.0)
    factors = np.exp(ratios.sum(axis=1) / np.maximum(1, known.sum(axis=1)))
    return np.where(measured, divergences, losses * factors[:, None])
