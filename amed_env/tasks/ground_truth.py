"""What nobody has to search for: the true optimum and the true Pareto front of a task whose every allocation is known.

Costs add up over the layers on most devices, so the costs of all allocations are one sum of small arrays. A device
whose costs do not add up is asked for every allocation once, which may take long.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from amed_env.errors import BudgetError, InputError
from amed_env.evaluation.quality import Split, check_split
from amed_env.evaluation.store import Trial
from amed_env.evaluation.table_file import QualityTable
from amed_env.hardware import HardwareBackend, load_device
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.objective import BUDGET_METRICS, TOLERANCE
from amed_env.tasks.task import Task

Budgets = Mapping[str, str | float] | Iterable[str]
_Costs = dict[str, npt.NDArray[np.float64]]
_ASKED: WeakKeyDictionary[HardwareBackend, dict[tuple[Any, ...], _Costs]] = WeakKeyDictionary()
"""What devices whose costs do not add up answered: by workload, precisions of table and task, and pins."""


def optimum(task: Task, budget: Budgets | float | None = None, split: Split = "search") -> Trial:
    """The best allocation within the budgets: the best score, then the least loss, then the first row.

    Args:
        task: A task on a quality table; its pins and widths hold.
        budget: Budgets in place of the task's own; a number is another value of its first one.
        split: The split whose quality counts.

    Raises:
        InputError: If the task is on no table.
        BudgetError: If no allocation meets the budgets.
    """
    _table(task)  # said before anything about budgets
    task = task if budget is None else task.with_budget(_budgets(task, budget))
    table = _table(task)
    feasible = feasible_rows(task)
    if not feasible.any():
        raise BudgetError(f"no allocation meets {' and '.join(map(str, task.budgets))} on {task.device!r}.")
    order, loss = table.order(check_split(split), task.score)
    order = np.where(feasible, order, np.inf)
    rows = np.flatnonzero(order == order.min())
    return _trial(task, int(rows[loss[rows].argmin()]), split)


def pareto_front(
    task: Task,
    device: str | Path | HardwareBackend | None = None,
    metric: str = "latency_ms",
    split: Split = "search",
) -> list[Trial]:
    """All that is best for its cost: allocations of which no other has a better score at the same cost or less.

    Costs that differ by rounding errors of sums alone count as equal; of equally good allocations of equal cost the
    one of the least loss stands for all.

    Args:
        task: A task on a quality table; its budgets, pins and widths hold.
        device: Another device than the task's, as `make_task` takes it: quality does not depend on the device.
        metric: The metric of the cost, or the budget that limits it (`latency` for `latency_ms`).
        split: The split whose quality counts.

    Returns:
        Trials, cheapest first; the score is better from each to the next.

    Raises:
        InputError: If the task is on no table, or the device does not report the metric.
        UnknownNameError: If there is no such device.
        BudgetError: If no allocation meets the task's budgets on the other device.
    """
    table = _table(task)
    task = task if device is None else task.with_device(load_device(device))
    metric = BUDGET_METRICS.get(metric, metric)
    rows = np.flatnonzero(feasible_rows(task))
    costs = all_costs(task, metric)[rows]
    scores, loss = (values[rows] for values in table.order(check_split(split), task.score))
    by_cost = np.argsort(costs, kind="stable")
    ordered = costs[by_cost]
    steps = np.diff(ordered) > TOLERANCE * ordered[1:]
    level = np.empty(len(rows), dtype=np.int64)
    level[by_cost] = np.concatenate([[0], np.cumsum(steps)])
    order = np.lexsort((loss, scores, level))
    best = np.minimum.accumulate(scores[order])
    better = np.concatenate([[True], best[1:] < best[:-1]])
    return [_trial(task, int(row), split) for row in rows[order[better]]]


class Searched(Protocol):
    """What regret needs of the result of a search (`amed_env.SearchResult`): its task, and the best trial if any."""

    @property
    def task(self) -> Task:
        """The task that was searched."""

    @property
    def best(self) -> Trial | None:
        """The best trial within the budgets."""


def regret(result: Searched, split: Split = "search") -> float:
    """By how much a search missed the optimum of its task; see `regret_of`."""
    return regret_of(result.task, None if result.best is None else result.best.allocation, split)


def regret_of(task: Task, allocation: BitAllocation | None, split: Split = "search") -> float:
    """By how much the score of an allocation is worse than that of the optimum of its task.

    The score is looked up, not believed. None, and an allocation that exceeds the budgets, count as accuracy 0, or as
    the worst allocation of all where less of the score is better.

    Args:
        task: A task on a quality table, with its budgets.
        allocation: The allocation, or None if there is none.
        split: The split whose quality counts; the optimum is that of the same split.

    Returns:
        In the unit of the score (percentage points of accuracy, nats of divergence), 0 or more.
    """
    table, score = _table(task), task.score
    best = score.order(optimum(task, split=split).quality.score)
    if allocation is not None and feasible_rows(task)[table.row(allocation)]:
        reached = score.order(table.quality(table.row(allocation), split, score).score)
    else:
        reached = 0.0 if score.higher_is_better else float(table.scores(split, score).max())
    return score.shown(reached - best)


def all_costs(task: Task, metric: str) -> npt.NDArray[np.float64]:
    """Cost of every row of the task's table: float64 (rows,), infinite where the task does not allow the row.

    Raises:
        InputError: If the task is on no table, or the device does not report the metric.
    """
    table = _table(task)
    if metric in task.costs:
        columns = _columns(task)
        values = np.where(task.choosable, task.costs[metric], np.inf)
        costs = np.full((len(table.ties.groups), len(table.precisions)), np.inf)
        costs[:, columns] = values
        return _sums(costs)
    if metric not in task.capabilities.metrics:
        raise InputError(
            f"device {task.device!r} reports no {metric}; it reports "
            f"{', '.join(sorted({*task.costs, *task.capabilities.metrics}))}."
        )
    return _asked_costs(task)[metric]


def _asked_costs(task: Task) -> _Costs:
    """Metrics of every row, asked one by one: float64 (rows,), infinite where the task does not allow the row.

    What a deterministic device answered is kept as long as the device lives: asking may take a minute.
    """
    key = (task.workload, _table(task).precisions, task.precisions, task.choosable.tobytes())
    kept = task.capabilities.deterministic and isinstance(task.backend, Hashable)
    known = _ASKED.setdefault(task.backend, {}) if kept else {}
    if key not in known:
        allowed = np.flatnonzero(_allowed(task))
        answers = task.device_costs.evaluate_many([_table(task).allocation(int(row)) for row in allowed])
        costs = {metric: np.full(len(_table(task)), np.inf) for metric in task.capabilities.metrics}
        for metric, values in costs.items():
            values[allowed] = [answer.metrics[metric] for answer in answers]
            values.setflags(write=False)
        known[key] = costs
    return known[key]


def feasible_rows(task: Task) -> npt.NDArray[np.bool_]:
    """Which rows of the task's table the task allows and its budgets admit: bool (rows,).

    Raises:
        InputError: If the task is on no table.
    """
    feasible = _allowed(task)
    for metric, limit in task.limits.items():
        feasible &= all_costs(task, metric) <= limit * (1 + TOLERANCE)
    return feasible


def rows_of(task: Task, choices: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Rows of the task's table, for many allocations at once.

    Args:
        task: A task on a quality table.
        choices: (N, G): for each group of layers the number of its precision among those of the task.

    Returns:
        int64 (N,).

    Raises:
        InputError: If the task is on no table, or a choice does not exist.
    """
    strides = _table(task).strides
    numbers = np.asarray(choices, dtype=np.int64).reshape(-1, len(strides))
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(task.precisions):
        raise InputError(f"task {task.network!r} has precisions 0 to {len(task.precisions) - 1}; found others.")
    return np.asarray(np.asarray(_columns(task))[numbers] @ strides)


def _budgets(task: Task, budget: Budgets | float) -> Budgets:
    """Budgets as `Task.with_budget` takes them."""
    if isinstance(budget, Mapping | Iterable):
        return budget
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise InputError(f"budget is {budget!r}; give a mapping such as {{'latency': 0.45}}, or a number.")
    if not task.budgets:
        raise InputError(f"the task has no budget that {budget} could be a value of; write {{'latency': {budget}}}.")
    return {task.budgets[0].name: float(budget)}


def _table(task: Task) -> QualityTable:
    if not isinstance(task, Task):
        raise InputError(f"{task!r} is no task; make one with amed_env.make_task.")
    table = task.evaluator.complete_table()
    if table is None:
        raise InputError(
            f"task {task.network!r} has no table of all allocations, so nobody knows its optimum; take a task whose "
            "name begins with 'tabular/' (see `amed tasks`)."
        )
    return table


def _columns(task: Task) -> list[int]:
    """For each precision of the task its column in the table."""
    precisions = _table(task).precisions
    return [precisions.index(precision) for precision in task.precisions]


def _sums(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From values (G, P) the sum of every row of choices, the last group varying fastest: (P ** G,)."""
    sums: npt.NDArray[np.float64] = values[-1]
    for group in values[-2::-1]:
        sums = np.add.outer(group, sums).reshape(-1)
    return sums


def _allowed(task: Task) -> npt.NDArray[np.bool_]:
    """Which rows have only precisions that the task lets their layers choose: bool (rows,)."""
    table = _table(task)
    forbidden = np.ones((len(table.ties.groups), len(table.precisions)))
    forbidden[:, _columns(task)] = ~task.choosable
    return np.asarray(_sums(forbidden) == 0)


def _trial(task: Task, row: int, split: Split) -> Trial:
    allocation = _table(task).allocation(row)
    return Trial(allocation, _table(task).quality(row, split, task.score), task.total_costs(allocation))
