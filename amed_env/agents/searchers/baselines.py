"""Agents that do not learn: uniform widths, random allocations, and greedy descent by sensitivity."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from amed_env.agents.protocol import Agent
from amed_env.agents.searchers.moves import (
    all_within,
    evaluate,
    feasible_uniform,
    random_choices,
    spend_slack,
    tolerant,
)
from amed_env.agents.session import SearchSession
from amed_env.tasks.repair import repair
from amed_env.tasks.task import Task

_MOST_REPEATS = 2_000  # random draws in a row that bring nothing new before the space counts as exhausted
_REPEATS_BEFORE_LISTING = 10  # in a row: few allocations seem to be left
_MOST_LISTED = 100_000  # where there are more, it goes on drawing


class UniformAgent(Agent):
    """Evaluates every uniform precision of the task that meets the budget."""

    name = "uniform"

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        for choices in feasible_uniform(session):
            evaluate(session, choices)


class RandomAgent(Agent):
    """Evaluates random allocations within the budget: every layer draws among what leaves the budget reachable.

    Each is evaluated once. Where draws mostly repeat what is known, few allocations are left; these are then listed, if
    costs add up, and follow in a random order, each as likely as any other to be next.
    """

    name = "random"

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        repeats, listed = 0, False
        while repeats < _MOST_REPEATS:
            if repeats == _REPEATS_BEFORE_LISTING and not listed:
                listed = True
                left = all_within(session.task, _MOST_LISTED)
                if left is not None:
                    for choices in session.rng.permutation(left):
                        evaluate(session, choices)
                    return
            drawn = tolerant(session, lambda: random_choices(session.task, session.rng))
            if drawn is None or session.knows(session.task.allocation(drawn)):
                repeats += 1
                continue
            repeats = 0
            evaluate(session, drawn)


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
            repaired = tolerant(session, lambda: repair(task, path[-1], task.limits))
            starts, rest = ([] if repaired is None else [repaired]), []
        else:
            starts, rest = [path[first]], path[first + 1 :]
        for choices in [*starts, *feasible_uniform(session)]:
            evaluate(session, choices)
            evaluate(session, spend_slack(session, choices))
        for choices in rest:
            evaluate(session, choices)


def _step_weight(task: Task) -> npt.NDArray[np.float64]:
    """(L, P) the cost that a step is weighed by: each budgeted metric as a share of its limit, added up."""
    costs, limits = task.device_costs.bounded_limits(task.limits)
    if not len(limits):
        return task.costs["bops"] / float(task.costs["bops"].max(axis=1).sum())
    return np.asarray((costs / limits[:, None, None]).sum(axis=0))


def _descent(task: Task) -> list[npt.NDArray[np.int64]]:
    """From the widest precision everywhere to the narrowest, one layer a step: the least loss per cost saved."""
    weight, loss = _step_weight(task), task.predicted_loss
    rows = np.arange(len(task.workload))
    current = task.space.uniform_choices(int(task.space.free_choices[-1]))
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
