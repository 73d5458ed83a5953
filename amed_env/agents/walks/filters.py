"""Which allocations a walk may enter: those within the budgets, asked for many times a second."""

from __future__ import annotations

import math
from collections.abc import Container

import numpy as np
import numpy.typing as npt

from amed_env.agents.session import SearchSession
from amed_env.errors import BackendError
from amed_env.problem.objective import TOLERANCE, violation
from amed_env.tasks.task import Task

IntArray = npt.NDArray[np.int64]


class BudgetFilter:
    """Tells what is within the budgets of a task.

    Costs that add up are summed here; others are first bounded from below, and the device is asked only about what the
    bounds let pass.

    Args:
        session: The search; it counts the failures of the device.
        task: Its task, or the same with more pins.
        metrics: Metrics whose limits count.
    """

    def __init__(self, session: SearchSession, task: Task, metrics: Container[str]) -> None:
        self._session, self._task = session, task
        self.limits = {name: limit for name, limit in task.limits.items() if name in metrics}
        self._costs, limits = task.device_costs.bounded_limits(self.limits)
        self._tolerant = limits * (1 + TOLERANCE)
        self._exact = all(name in task.costs for name in self.limits)
        self._layers = np.arange(len(task.workload))

    def allows(self, choices: IntArray) -> bool:
        """Whether an allocation is within the limits; where the device fails to say, it is taken not to be.

        Args:
            choices: int64 (L,), a precision number a layer.

        Raises:
            SearchEnded: If the device failed too often in a row.
        """
        if (self._costs[:, self._layers, choices].sum(axis=1) > self._tolerant).any():
            return False
        return self._exact or self.violation(choices) == 0.0

    def violation(self, choices: IntArray) -> float:
        """By how much the limits are exceeded, as in `objective.violation`; infinite where the device fails.

        Raises:
            SearchEnded: If the device failed too often in a row.
        """
        try:
            costs = self._task.total_costs(self._task.allocation(choices))
        except BackendError:
            self._session.check_device()
            return math.inf
        return violation(costs, self.limits)
