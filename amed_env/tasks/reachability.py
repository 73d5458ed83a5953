"""Whether any allocation can meet the budgets of a task, and what the least reachable value is if none can."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from amed_env.errors import BackendError, BudgetError
from amed_env.hardware.costs import RAM
from amed_env.problem.constraints import cheapest_choices, least_choosable, smallest_reachable
from amed_env.problem.objective import TOLERANCE, Budget, fits
from amed_env.problem.pins import pins_text
from amed_env.tasks.device_costs import DeviceCosts

logger = logging.getLogger(__name__)


def check_reachable(costs: DeviceCosts, budgets: Sequence[Budget], limits: Mapping[str, float]) -> None:
    """Refuse budgets that no allocation can meet; warn where that is not known and no uniform width does.

    Args:
        costs: What allocations cost.
        budgets: The budgets as they were given, for the message.
        limits: Their limits by metric.

    Raises:
        BudgetError: If none can; the message has the smallest reachable value.
    """
    _check_sums(costs, [budget for budget in budgets if budget.metric in costs.least_table], limits)
    for budget in budgets:
        if budget.metric == RAM and costs.memory is not None:
            _check_memory(costs, budget, limits[RAM])
    if any(budget.metric not in costs.table for budget in budgets):
        _warn_if_no_uniform_fits(costs, budgets, limits)


def _check_sums(costs: DeviceCosts, budgets: Sequence[Budget], limits: Mapping[str, float]) -> None:
    """Refuse limits that sums over the layers, or lower bounds of them, prove to be out of reach."""
    if not budgets:
        return
    table = np.stack([costs.least_table[budget.metric] for budget in budgets])
    values = np.asarray([limits[budget.metric] for budget in budgets])
    tolerant = values * (1 + TOLERANCE)
    smallest = least_choosable(table, costs.space.choosable).sum(axis=1)
    for budget, limit, least in zip(budgets, tolerant, smallest, strict=True):
        if least > limit:
            pinned = f" and {pins_text(costs.space.pins)} pinned" if costs.space.pins else ""
            raise BudgetError(
                f"no allocation meets {budget} on {costs.backend.name!r}: {_reachable(costs, budget, least)} "
                f"with {costs.space.text}{pinned}."
            )
    if len(budgets) == 1 or cheapest_choices(table, values, table[0], costs.space.choosable) is not None:
        return
    for position, budget in enumerate(budgets):
        least_with_others = smallest_reachable(table, values, position, costs.space.choosable)
        if least_with_others is not None:
            others = " and ".join(str(b) for i, b in enumerate(budgets) if i != position)
            raise BudgetError(
                f"no allocation meets {budget} together with {others} on {costs.backend.name!r}: "
                f"{_reachable(costs, budget, least_with_others)} then."
            )
    raise BudgetError(
        f"no allocation meets {' and '.join(map(str, budgets))} together on {costs.backend.name!r}; "
        "loosen at least two of them."
    )


def _check_memory(costs: DeviceCosts, budget: Budget, limit: float) -> None:
    """Refuse a limit on memory that the narrowest activations exceed."""
    space = costs.space
    activation = np.asarray([precision.activation_bits for precision in space.precisions])
    narrowest = np.where(space.choosable, activation, np.inf).argmin(axis=1)
    assert space.workload.memory is not None
    least = space.workload.memory.bytes(space.allocation(narrowest)) / 1024
    if least > limit * (1 + TOLERANCE):
        raise BudgetError(
            f"no allocation meets {budget} on {costs.backend.name!r}: {_reachable(costs, budget, least)} with "
            f"{space.text}. What is kept in floats, or at 8 bits for several readers, is the same at all widths."
        )


def _warn_if_no_uniform_fits(costs: DeviceCosts, budgets: Sequence[Budget], limits: Mapping[str, float]) -> None:
    try:
        fitting = any(fits(cost.metrics, limits) for cost in costs.uniform)
    except BackendError:
        return  # whether the device works shows in the search
    if not fitting:
        logger.warning(
            "no uniform width meets %s on %r; whether any allocation does is not known beforehand, as its costs "
            "do not add up over the layers.",
            " and ".join(map(str, budgets)),
            costs.backend.name,
        )


def _reachable(costs: DeviceCosts, budget: Budget, least: float) -> str:
    metric, reference = budget.metric, costs.reference
    bound = "" if metric in costs.table else "at least "
    text = f"the smallest reachable {metric} is {bound}{least:.6g}"
    if reference[metric] > 0:
        # Rounded up, so that the printed value can be used as a budget.
        ratio = np.ceil(least / reference[metric] * 1e4) / 1e4
        text += f" ({budget.name}={ratio:.4f} of {costs.reference_text})"
    return text
