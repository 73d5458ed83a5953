"""Agents that do not learn: uniform widths, random allocations, and greedy descent by sensitivity."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from amed_env.agents.protocol import Agent
from amed_env.agents.session import SearchSession
from amed_env.constraints import allowed_choices, least_rest
from amed_env.errors import AmedError, BackendError, SearchEnded, StoreError
from amed_env.repair import repair
from amed_env.task import Task

logger = logging.getLogger(__name__)

_MOST_REPEATS = 2_000  # random draws in a row that bring nothing new before the space counts as exhausted


class UniformAgent(Agent):
    """Evaluates every uniform precision of the task that meets the budget."""

    name = "uniform"

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        for choices in _feasible_uniform(session):
            _evaluate(session, choices)


class RandomAgent(Agent):
    """Evaluates random allocations within the budget: every layer draws among what leaves the budget reachable."""

    name = "random"

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        repeats = 0
        while repeats < _MOST_REPEATS:
            choices = _tolerant(session, lambda: random_choices(session.task, session.rng))
            if choices is None or session.knows(session.task.allocation(choices)):
                repeats += 1
                continue
            repeats = 0
            _evaluate(session, choices)


class GreedyAgent(Agent):
    """Starts with the widest precision and narrows the layer that loses least per cost, until the budget is met.

    A layer's loss is the Kullback-Leibler divergence when it alone is quantized, on calibration samples. The allocation
    that meets the budget first is evaluated first, then the one that spends its slack where most loss is avoided. The
    same is done from the other side: every uniform width within the budget, and what it widens to. What is left of the
    evaluations continues the descent below the budget, which gives the trade-off curve.
    """

    name = "greedy"

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        task = session.task
        path = _descent(task)
        first = next((i for i, choices in enumerate(path) if session.feasible(task.allocation(choices))), None)
        if first is None:
            repaired = _tolerant(session, lambda: repair(task, path[-1], task.limits))
            starts, rest = ([] if repaired is None else [repaired]), []
        else:
            starts, rest = [path[first]], path[first + 1 :]
        for choices in [*starts, *_feasible_uniform(session)]:
            _evaluate(session, choices)
            _evaluate(session, _spend_slack(session, choices))
        for choices in rest:
            _evaluate(session, choices)


def _feasible_uniform(session: SearchSession) -> list[npt.NDArray[np.int64]]:
    """Every uniform precision within the budget, wide ones first."""
    task = session.task
    uniform = [task.uniform_choices(choice) for choice in reversed(task.free_choices)]
    return [choices for choices in uniform if session.feasible(task.allocation(choices))]


def _tolerant(session: SearchSession, call: Callable[[], npt.NDArray[np.int64] | None]) -> npt.NDArray[np.int64] | None:
    """What a call finds, or None if the device failed meanwhile; ends the search where that happens too often."""
    try:
        return call()
    except BackendError:
        if session.faulty:
            session.check()
        return None


def _evaluate(session: SearchSession, choices: npt.NDArray[np.int64]) -> None:
    """Evaluate, and go on after a fault: the session counts it."""
    try:
        session.evaluate(session.task.allocation(choices))
    except (SearchEnded, StoreError):
        raise
    except AmedError as error:
        logger.debug("goes on after %s", error)


def random_choices(task: Task, rng: np.random.Generator) -> npt.NDArray[np.int64] | None:
    """A random choice a layer within the budget: int64 (L,), or None where a draw met none.

    Layers are decided in a random order, so that no layer is favoured by coming first.
    """
    limited = [metric for metric in task.limits if metric in task.least_costs]
    order = rng.permutation(len(task.workload))
    choices = np.zeros(len(order), dtype=np.int64)
    costs = (
        np.stack([task.least_costs[metric][order] for metric in limited])
        if limited
        else np.zeros((0, len(order), len(task.precisions)))
    )
    limits = np.asarray([task.limits[metric] for metric in limited])
    choosable = task.choosable[order]
    rest, used = least_rest(costs, choosable), np.zeros(len(limited))
    for step, layer in enumerate(order):
        allowed = np.flatnonzero(allowed_choices(used, costs[:, step], rest[:, step + 1], limits, choosable[step]))
        if len(allowed) == 0:
            return None
        choices[layer] = rng.choice(allowed)
        used = used + costs[:, step, choices[layer]]
    if task.feasible(task.cost(task.allocation(choices)).metrics):
        return choices
    return repair(task, choices, task.limits)


def _step_weight(task: Task) -> npt.NDArray[np.float64]:
    """(L, P) the cost that a step is weighed by: each budgeted metric as a share of its limit, added up."""
    metrics = [metric for metric in task.limits if metric in task.least_costs]
    if not metrics:
        return task.costs["bops"] / float(task.costs["bops"].max(axis=1).sum())
    return np.asarray(sum(task.least_costs[metric] / task.limits[metric] for metric in metrics))


def _descent(task: Task) -> list[npt.NDArray[np.int64]]:
    """From the widest precision everywhere to the narrowest, one layer a step: the least loss per cost saved."""
    weight, loss = _step_weight(task), task.predicted_loss
    rows = np.arange(len(task.workload))
    current = task.uniform_choices(task.free_choices[-1])
    path = [current]
    while True:
        saved = weight[rows, current][:, None] - weight
        harm = np.maximum(loss - loss[rows, current][:, None], 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            price = np.where((saved > 0) & task.choosable, harm / saved, np.inf)
        if not np.isfinite(price).any():
            return path
        # Equal prices (no harm at all) go to the step that saves most.
        layer, choice = np.unravel_index(np.lexsort((-saved.ravel(), price.ravel()))[0], price.shape)
        current = current.copy()
        current[layer] = choice
        path.append(current)


def _spend_slack(session: SearchSession, choices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Widen again what still fits into the budget, most loss avoided first."""
    task = session.task
    current = choices.copy()
    loss = task.predicted_loss
    rows = np.arange(len(current))
    while True:
        gains = np.where(task.choosable, loss[rows, current][:, None] - loss, 0.0)
        for position in np.argsort(-gains, axis=None, kind="stable"):
            layer, choice = np.unravel_index(position, gains.shape)
            if gains[layer, choice] <= 0:
                return current
            candidate = current.copy()
            candidate[layer] = choice
            if session.feasible(task.allocation(candidate)):
                current = candidate
                break
        else:
            return current
