"""Whether any allocation can meet the budgets of a task, and what the least reachable value is if none can."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from amed_env.errors import BackendError, BudgetError
from amed_env.problem.constraints import cheapest_choices, least_choosable, smallest_reachable
from amed_env.problem.objective import REFERENCE_BITS, TOLERANCE, Budget, fits
from amed_env.problem.pins import pins_text

if TYPE_CHECKING:
    from amed_env.tasks.task import Task

logger = logging.getLogger(__name__)


def check_reachable(task: Task, budgets: Sequence[Budget], limits: Mapping[str, float]) -> None:
    """Refuse budgets that no allocation can meet; warn where that is not known and no uniform width does.

    Args:
        task: The task; its own budgets are not looked at.
        budgets: The budgets as they were given, for the message.
        limits: Their limits by metric.

    Raises:
        BudgetError: If none can; the message has the smallest reachable value.
    """
    _check_sums(task, [budget for budget in budgets if budget.metric in task.least_costs], limits)
    if any(budget.metric not in task.costs for budget in budgets):
        _warn_if_no_uniform_fits(task, budgets, limits)


def _check_sums(task: Task, budgets: Sequence[Budget], limits: Mapping[str, float]) -> None:
    """Refuse limits that sums over the layers, or lower bounds of them, prove to be out of reach."""
    if not budgets:
        return
    table = np.stack([task.least_costs[budget.metric] for budget in budgets])
    values = np.asarray([limits[budget.metric] for budget in budgets])
    tolerant = values * (1 + TOLERANCE)
    smallest = least_choosable(table, task.choosable).sum(axis=1)
    for budget, limit, least in zip(budgets, tolerant, smallest, strict=True):
        if least > limit:
            raise BudgetError(
                f"no allocation meets {budget} on {task.device!r}: {_reachable(task, budget, least)} "
                f"with widths {', '.join(map(str, task.free_bits))}"
                f"{f' and {pins_text(task.pins)} pinned' if task.pins else ''}."
            )
    if len(budgets) == 1 or cheapest_choices(table, values, table[0], task.choosable) is not None:
        return
    for position, budget in enumerate(budgets):
        least_with_others = smallest_reachable(table, values, position, task.choosable)
        if least_with_others is not None:
            others = " and ".join(str(b) for i, b in enumerate(budgets) if i != position)
            raise BudgetError(
                f"no allocation meets {budget} together with {others} on {task.device!r}: "
                f"{_reachable(task, budget, least_with_others)} then."
            )
    raise BudgetError(
        f"no allocation meets {' and '.join(map(str, budgets))} together on {task.device!r}; "
        "loosen at least two of them."
    )


def _warn_if_no_uniform_fits(task: Task, budgets: Sequence[Budget], limits: Mapping[str, float]) -> None:
    try:
        fitting = any(fits(cost.metrics, limits) for cost in task.uniform_costs)
    except BackendError:
        return  # whether the device works shows in the search
    if not fitting:
        logger.warning(
            "no uniform width meets %s on %r; whether any allocation does is not known beforehand, as its costs "
            "do not add up over the layers.",
            " and ".join(map(str, budgets)),
            task.device,
        )


def _reachable(task: Task, budget: Budget, least: float) -> str:
    metric, reference = budget.metric, task.reference_cost
    bound = "" if metric in task.costs else "at least "
    text = f"the smallest reachable {metric} is {bound}{least:.6g}"
    if reference is not None and reference[metric] > 0:
        # Rounded up, so that the printed value can be used as a budget.
        ratio = np.ceil(least / reference[metric] * 1e4) / 1e4
        text += f" ({budget.name}={ratio:.4f} of uniform {REFERENCE_BITS} bit)"
    return text
