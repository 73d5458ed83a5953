"""What allocations cost on the device of a task: tables, answers that are remembered, limits, faults."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from math import fsum
from operator import getitem

import numpy as np
import numpy.typing as npt

from amed_env.errors import BackendError
from amed_env.hardware.choices import reference_allocation
from amed_env.hardware.costs import (
    RAM,
    backend_capabilities,
    common_cost_table,
    evaluate_cost,
    evaluate_costs,
    lower_bounds,
    precision_costs,
)
from amed_env.hardware.faults import FaultLog
from amed_env.hardware.metrics import METRIC_UNITS
from amed_env.hardware.protocol import Cost, HardwareBackend
from amed_env.problem.allocation import BitAllocation, Precision
from amed_env.problem.constraints import allowed_choices, least_choosable, least_rest
from amed_env.problem.memory_limits import MemoryRows, memory_rows
from amed_env.problem.objective import REFERENCE_BITS, Budget, resolve
from amed_env.tasks.search_space import SearchSpace

logger = logging.getLogger(__name__)

_REMEMBERED_COSTS = 20_000  # answers of a few kilobytes each, so that a long search stays below 100 MB of them


class DeviceCosts:
    """The costs of a search space on a device.

    Args:
        backend: The device.
        space: What may be chosen.

    Attributes:
        backend: The device.
        capabilities: What it can run and reports.
        faults: Counts its failing calls.
    """

    def __init__(self, backend: HardwareBackend, space: SearchSpace) -> None:
        self.backend, self.space = backend, space
        self.capabilities = backend_capabilities(backend)
        self.faults = FaultLog()
        self._known: dict[BitAllocation, Cost] = {}
        self._limits_memory = False

    @cached_property
    def table(self) -> dict[str, npt.NDArray[np.float64]]:
        """Metric to the cost of every layer at every choice, float64 (L, P), for the metrics that add up.

        On a device whose costs do not add up these are `weight_kib`, `flash_kib` and `bops` alone, without those that
        it counts itself. Where a layer cannot run at a precision, the cost is that of the nearest one.
        """
        space = self.space
        if self.capabilities.additive:
            return precision_costs(self.backend, space.workload, space.precisions, space.runnable)
        granule = self.capabilities.granule_bytes
        common = common_cost_table(space.workload, space.bits, space.bits, granule)
        own = self.capabilities.metrics
        return {metric: common.column(metric, space.precisions) for metric in common.metrics if metric not in own}

    @cached_property
    def least_table(self) -> dict[str, npt.NDArray[np.float64]]:
        """Metric to what every layer costs at the least at every choice, float64 (L, P).

        Equal to `table` for metrics that add up; otherwise the lower bound that the device knows, if any, and of memory
        what is kept at the moment at which it can be most. A sum over the layers that exceeds a limit proves that the
        allocation does.
        """
        if self.capabilities.additive:
            bounds = dict(self.table)
        else:
            bounds = lower_bounds(self.backend, self.space.workload, self.space.precisions, self.space.runnable)
        if self.memory is not None:
            first = self.memory.costs[0] / 1024
            first[0] += self.memory.fixed[0] / 1024  # whatever the layers choose, so it does not matter whose it is
            bounds[RAM] = first
        return bounds

    @cached_property
    def memory(self) -> MemoryRows | None:
        """What the network keeps at each moment; None if that is not known, or if the device says what it needs."""
        workload = self.space.workload
        if workload.memory is None or RAM in self.capabilities.metrics:
            return None
        return memory_rows(workload.memory, workload.layer_names, self.space.precisions)

    def memory_allowed(self, choices: Sequence[int], limit: float) -> npt.NDArray[np.bool_]:
        """What the next layer may choose so that a limit on memory stays within reach: bool (P,).

        Args:
            choices: Those of the layers before.
            limit: In KiB.
        """
        if self.memory is None:
            return np.ones(len(self.space.precisions), dtype=bool)
        costs, number = self.memory.costs, len(choices)
        used = self.memory.fixed + costs[:, np.arange(number), list(choices)].sum(axis=1)
        rest = least_rest(costs, self.space.choosable)[:, number + 1]
        limits = np.full(len(costs), limit * 1024)
        return allowed_choices(used, costs[:, number], rest, limits, self.space.choosable[number])

    def bounded_limits(self, limits: Mapping[str, float]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """What solvers are given of limits on metrics in `least_table`; others cannot be bounded beforehand.

        A limit on memory is one for every moment at which much is kept, so there are as many rows, B, or more.

        Args:
            limits: Limit by metric.

        Returns:
            Costs (B, L, P), or lower bounds of them where they do not add up, and limits (B,).
        """
        rows: list[npt.NDArray[np.float64]] = []
        values: list[float] = []
        for metric, limit in limits.items():
            if metric == RAM and self.memory is not None:
                rows += list(self.memory.costs / 1024)
                values += (limit - self.memory.fixed / 1024).tolist()
            elif metric in self.least_table:
                rows.append(self.least_table[metric])
                values.append(limit)
        costs = np.stack(rows) if rows else np.zeros((0, *self.space.choosable.shape))
        return costs, np.asarray(values, dtype=np.float64)

    def smallest_known(self, metric: str) -> float | None:
        """A value of a metric that some allocation surely reaches: the least of all where costs add up.

        Elsewhere the least of the uniform allocations; None if the device does not report the metric.
        """
        if metric in self.table:
            return float(least_choosable(self.table[metric][None], self.space.choosable).sum())
        values = [cost.metrics[metric] for cost in self.uniform if metric in cost.metrics]
        return min(values, default=None)

    @cached_property
    def uniform(self) -> list[Cost]:
        """Costs of the uniform allocations, narrow ones first."""
        space = self.space
        uniform = [space.uniform_choices(int(choice)) for choice in space.free_choices]
        return self.evaluate_many([space.allocation(choices) for choices in uniform])

    @cached_property
    def reference(self) -> Cost:
        """Cost of the network at uniform 8 bit, which relative costs are factors of.

        Layers that the device cannot run at 8 bits have what stands for it; see `reference_allocation`.
        """
        return self.evaluate(self.reference_allocation)

    @cached_property
    def reference_allocation(self) -> BitAllocation:
        """The allocation behind `reference`."""
        return reference_allocation(self.backend, self.space.workload)

    @property
    def uniform_reference(self) -> Cost | None:
        """The reference where it is uniform 8 bit in every layer, else None."""
        uniform = self.reference_allocation == self.space.workload.uniform(REFERENCE_BITS)
        return self.reference if uniform else None

    @property
    def reference_text(self) -> str:
        """What the reference is, for messages and tables."""
        further = ", as far as the device runs it" if self.uniform_reference is None else ""
        return f"uniform {REFERENCE_BITS} bit{further}"

    def evaluate(self, allocation: BitAllocation) -> Cost:
        """Cost of an allocation; see `evaluate_many`."""
        return self.evaluate_many([allocation])[0]

    def evaluate_many(self, allocations: Sequence[BitAllocation]) -> list[Cost]:
        """Costs of allocations, in their order; a device with several workers answers side by side.

        What a deterministic device answered once is remembered where a call may be slow: where costs do not add up,
        and where the device has a limit on its time.

        Raises:
            BackendError: If the device fails; `faults` counts it.
        """
        unknown = [allocation for allocation in dict.fromkeys(allocations) if allocation not in self._known]
        try:
            if len(unknown) == 1:
                answered = [evaluate_cost(self.backend, self.space.workload, unknown[0], self.faults.add_retry)]
            else:
                answered = evaluate_costs(self.backend, self.space.workload, unknown, self.faults.add_retry)
        except BackendError as error:
            self.faults.add(error)
            raise
        if unknown:
            self.faults.succeeded()
        answers = dict(zip(unknown, answered, strict=True))
        costs = [answers[a] if a in answers else self._known[a] for a in allocations]
        slow = not self.capabilities.additive or self.backend.timeout_s is not None
        if slow and self.capabilities.deterministic:
            if len(self._known) + len(answers) > _REMEMBERED_COSTS:
                self._known.clear()
            self._known.update(answers)
        return costs

    def sums(self, allocation: BitAllocation) -> dict[str, float] | None:
        """Cost by metric as sums over `table`, without asking the device: the same numbers, sooner.

        None where the table does not say: costs that do not add up, a device that answers differently each time, or a
        precision that is no choice of the space. Memory is among them once a limit on it was asked for.
        """
        if not (self.capabilities.additive and self.capabilities.deterministic):
            return None
        columns, number_of = self._columns
        try:
            choices = [number_of[allocation[name]] for name in self.space.workload.layer_names]
        except KeyError:
            return None
        # fsum rounds once, as the device's own totals do; another order of adding would not be the same number.
        sums = {metric: fsum(map(getitem, rows, choices)) for metric, rows in columns.items()}
        if self._limits_memory and self.space.workload.memory is not None and RAM not in sums:
            sums[RAM] = self.space.workload.memory.bytes(allocation) / 1024
        return sums

    @cached_property
    def _columns(self) -> tuple[dict[str, list[list[float]]], dict[Precision, int]]:
        """The table as lists, which are quicker to index one by one than arrays, and the number of each precision."""
        columns = {metric: table.tolist() for metric, table in self.table.items()}
        return columns, {precision: choice for choice, precision in enumerate(self.space.precisions)}

    @property
    def own_budgets(self) -> tuple[Budget, ...]:
        """What the device has of its metrics, as budgets; of what is not known of this network there are none."""
        budgets = []
        for metric, limit in self.capabilities.limits.items():
            if metric in self.reference.metrics:
                budgets.append(Budget(metric, limit, relative=False))
            else:
                logger.warning(
                    "device %r has %g %s of %s, but what network %r needs of it is not known; it is not limited.",
                    self.backend.name,
                    limit,
                    self.unit(metric),
                    metric,
                    self.space.workload.name,
                )
        return tuple(budgets)

    def unit(self, metric: str) -> str:
        """The unit of a metric, as the device declares it."""
        return {**METRIC_UNITS, **self.capabilities.metrics}.get(metric, "")

    def resolve(self, budgets: Iterable[Budget]) -> dict[str, float]:
        """Limits by metric of budgets, relative ones in units of the reference cost.

        Raises:
            UnknownNameError: If a budget is the name of nothing that the device reports.
            BudgetError: If a budget is in a unit that measures something else, or a factor of 0.
        """
        budgets = tuple(budgets)
        if not budgets:
            return {}
        self._limits_memory |= any(budget.metric == RAM for budget in budgets)
        return resolve(budgets, self.reference.metrics, {budget.metric: self.unit(budget.metric) for budget in budgets})
