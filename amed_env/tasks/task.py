"""A task: a network with its data, a device, the widths to choose from and the budgets."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import fsum
from operator import getitem
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from amed_env.errors import AllocationError, BackendError, BudgetError, InputError, UnsupportedPrecisionError
from amed_env.evaluation.quality import Evaluator, Quality, Split
from amed_env.evaluation.store import Trial
from amed_env.hardware.costs import (
    backend_capabilities,
    common_cost_table,
    evaluate_cost,
    evaluate_costs,
    lower_bounds,
    precision_costs,
)
from amed_env.hardware.faults import FaultLog
from amed_env.hardware.protocol import Cost, HardwareBackend
from amed_env.hardware.tied import TiedDevice
from amed_env.problem.allocation import BitAllocation, Precision, check_bits
from amed_env.problem.constraints import least_choosable
from amed_env.problem.objective import REFERENCE_BITS, Budget, fits, parse_budgets, resolve
from amed_env.problem.pins import parse_pins, pins_text
from amed_env.problem.workload import Workload
from amed_env.tasks.reachability import check_reachable

DEFAULT_BITS = (2, 3, 4, 8)
_REMEMBERED_COSTS = 20_000


class Task:
    """A named, reproducible problem: which allocation has the most accuracy within the budgets on this device?

    Args:
        network: Name of the network, part of every file that is written.
        evaluator: Measures quality; it is shared by tasks that differ only in device or budget.
        backend: The device.
        bits: Widths to choose from.
        separate: Whether weights and activations are chosen apart; otherwise both get the same width.
        activation_bits: One width for all activations, so that those of weights alone are chosen; 32 leaves activations
            in float.
        budgets: Limits on the cost.
        pins: Layers that keep a width; see `pins.parse_pins`.

    Attributes:
        free_bits: Widths that layers choose from which are not pinned.
        bits: These, the widths of pinned layers, and that of all activations.
        pins: Precision by pinned layer.
        device_faults: Counts the failing calls of the device; shared by the copies that `with_budget` makes.

    Raises:
        AllocationError: If widths or pins are malformed.
        UnknownNameError: If a pinned layer does not exist.
        UnsupportedPrecisionError: If the device cannot run a layer at one of the widths.
        BudgetError: If no allocation can meet the budgets; the message has the smallest reachable value.
    """

    def __init__(
        self,
        network: str,
        evaluator: Evaluator,
        backend: HardwareBackend,
        bits: Sequence[int] = DEFAULT_BITS,
        *,
        separate: bool = False,
        activation_bits: int | None = None,
        budgets: Iterable[Budget] = (),
        pins: Mapping[str, Any] | Iterable[str] | None = None,
    ) -> None:
        self.network, self.evaluator, self.backend = network, evaluator, backend
        self._searching = False
        self.free_bits = _check_widths(bits)
        self.pins = parse_pins(pins, self.workload.layer_names)
        self.activation_bits = _check_activation_bits(activation_bits, separate)
        others = [width for pinned in self.pins.values() for width in pinned]
        others += [] if self.activation_bits is None else [self.activation_bits]
        self.bits = tuple(sorted({*self.free_bits, *others}))
        self.separate = separate
        self.capabilities = backend_capabilities(backend)
        self.device_faults = FaultLog()
        self._known_costs: dict[BitAllocation, Cost] = {}
        self._check_device_supports_widths()
        self.budgets = tuple(budgets)
        self.limits = self.resolve_limits(self.budgets)

    @property
    def workload(self) -> Workload:
        """The network's layers."""
        return self.evaluator.workload

    @property
    def device(self) -> str:
        """The device's name."""
        return self.backend.name

    @cached_property
    def precisions(self) -> tuple[Precision, ...]:
        """The P choices, narrow ones first; with separate widths, activations vary fastest. See `choosable`."""
        if self.separate:
            return tuple(Precision(w, a) for w in self.bits for a in self.bits)
        return tuple(sorted({*map(self._precision, self.free_bits), *self.pins.values()}))

    def _precision(self, bits: int) -> Precision:
        """A width of weights, with the width of activations that goes with it where they are not chosen apart."""
        return Precision(bits, bits if self.activation_bits is None else self.activation_bits)

    @cached_property
    def free_choices(self) -> npt.NDArray[np.int64]:
        """The numbers of the precisions from which layers that are not pinned choose, narrow ones first."""
        widths = self.free_bits
        free = {Precision(w, a) for w in widths for a in widths} if self.separate else set(map(self._precision, widths))
        return np.flatnonzero([precision in free for precision in self.precisions])

    @cached_property
    def choosable(self) -> npt.NDArray[np.bool_]:
        """What each layer may choose at all: bool (L, P); a pinned layer has a single choice."""
        choosable = np.zeros((len(self.workload), len(self.precisions)), dtype=bool)
        choosable[:, self.free_choices] = True
        for row, name in enumerate(self.workload.layer_names):
            if name in self.pins:
                choosable[row] = [precision == self.pins[name] for precision in self.precisions]
        return choosable

    @cached_property
    def costs(self) -> dict[str, npt.NDArray[np.float64]]:
        """Metric to the cost of every layer at every choice, float64 (L, P), for the metrics that add up.

        On a device whose costs do not add up these are `weight_kib` and `bops` alone.
        """
        if self.capabilities.additive:
            return precision_costs(self.backend, self.workload, self.precisions)
        table = common_cost_table(self.workload, self.bits, self.bits)
        return {metric: table.column(metric, self.precisions) for metric in table.metrics}

    @cached_property
    def least_costs(self) -> dict[str, npt.NDArray[np.float64]]:
        """Metric to what every layer costs at the least at every choice, float64 (L, P).

        Equal to `costs` for metrics that add up; otherwise the lower bound that the device knows, if any. A sum over
        the layers that exceeds a limit proves that the allocation does.
        """
        if self.capabilities.additive:
            return self.costs
        return lower_bounds(self.backend, self.workload, self.precisions)

    def smallest_known(self, metric: str) -> float | None:
        """A value of a metric that some allocation surely reaches: the least of all where costs add up.

        Elsewhere the least of the uniform allocations; None if the device does not report the metric.
        """
        if metric in self.costs:
            return float(least_choosable(self.costs[metric][None], self.choosable).sum())
        values = [cost.metrics[metric] for cost in self.uniform_costs if metric in cost.metrics]
        return min(values, default=None)

    @cached_property
    def uniform_costs(self) -> list[Cost]:
        """Costs of the uniform allocations, narrow ones first."""
        return self.cost_many([self.allocation(self.uniform_choices(choice)) for choice in self.free_choices])

    @cached_property
    def reference_cost(self) -> Cost | None:
        """Cost of the uniform 8-bit network; None on a device that has no 8 bit."""
        try:
            return self.cost(self.workload.uniform(REFERENCE_BITS))
        except UnsupportedPrecisionError:
            return None

    @cached_property
    def predicted_loss(self) -> npt.NDArray[np.float64]:
        """Predicted loss in nats of every layer at every choice alone: float64 (L, P)."""
        return self.evaluator.predicted_loss(self.precisions)

    @cached_property
    def float_quality(self) -> Quality:
        """Quality of the float network on the search split."""
        return self.evaluator.evaluate(self.workload.uniform(32))

    def quality(self, allocation: BitAllocation, split: Split = "search") -> Quality:
        """Quality of an allocation; `test` is for the final report only.

        Raises:
            InputError: If an agent asks for the test split during its search.
        """
        if self._searching and split != "search":
            raise InputError(
                f"the {split} split is read by the final report only; while it searches, an agent scores allocations "
                "on the search split."
            )
        return self.evaluator.evaluate(allocation, split)

    def uniform(self, bits: int) -> BitAllocation:
        """The same width for every layer that is not pinned, with the task's width of activations if it has one."""
        return self.workload.uniform(bits, self.activation_bits).replace(self.pins)

    def uniform_choices(self, choice: int) -> npt.NDArray[np.int64]:
        """The same precision number for every layer that is not pinned: int64 (L,)."""
        return self.nearest_choosable(np.full(len(self.workload), choice, dtype=np.int64))

    def start_choices(self) -> npt.NDArray[np.int64]:
        """Uniform 8 bit, or the widest precision where layers cannot choose that, but for pinned layers: int64 (L,)."""
        wide = [c for c in self.free_choices if self.precisions[c] == (REFERENCE_BITS, REFERENCE_BITS)]
        return self.uniform_choices(int(wide[0] if wide else self.free_choices[-1]))

    def nearest_choosable(self, choices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Choices in which what a layer may not choose is replaced by the nearest that it may: int64 (L,).

        Of two equally near ones the narrower is taken.
        """
        wanted = np.asarray(choices, dtype=np.int64)
        widths = np.asarray(self.precisions, dtype=np.float64)
        distance = np.abs(widths[wanted][:, None] - widths).sum(axis=2)
        return np.asarray(np.where(self.choosable, distance, np.inf).argmin(axis=1), dtype=np.int64)

    def require_pins(self, allocation: BitAllocation) -> BitAllocation:
        """The same allocation, after checking that it leaves pinned layers as they are.

        Raises:
            AllocationError: If it does not; the first such layer is named.
        """
        for name, pinned in self.pins.items():
            if allocation[name] != pinned:
                raise AllocationError(
                    f"layer {name!r} is pinned to {pinned} in this task but has {allocation[name]}; take "
                    "task.nearest_choosable(choices), or make the task without that pin."
                )
        return allocation

    def cost(self, allocation: BitAllocation) -> Cost:
        """Cost of an allocation on the task's device.

        What a deterministic device answered once is remembered where a call may be slow: where costs do not add up,
        and where the device has a limit on its time.

        Raises:
            BackendError: If the device fails; `device_faults` counts it.
        """
        return self.cost_many([allocation])[0]

    def cost_many(self, allocations: Sequence[BitAllocation]) -> list[Cost]:
        """Costs of allocations, in their order; a device with several workers answers side by side.

        Raises:
            BackendError: If the device fails; `device_faults` counts it.
        """
        slow = not self.capabilities.additive or self.backend.timeout_s is not None
        missing = [a for a in dict.fromkeys(allocations) if a not in self._known_costs]
        log = self.device_faults
        try:
            if len(missing) == 1:
                found = [evaluate_cost(self.backend, self.workload, missing[0], log.add_retry)]
            else:
                found = evaluate_costs(self.backend, self.workload, missing, log.add_retry)
        except BackendError as error:
            log.add(error)
            raise
        if missing:
            log.succeeded()
        answers = dict(zip(missing, found, strict=True))
        costs = [answers[a] if a in answers else self._known_costs[a] for a in allocations]
        if slow and self.capabilities.deterministic:
            if len(self._known_costs) + len(answers) > _REMEMBERED_COSTS:
                self._known_costs.clear()
            self._known_costs.update(answers)
        return costs

    def total_costs(self, allocation: BitAllocation) -> dict[str, float]:
        """Cost of an allocation by metric, without the breakdown.

        Where quality is looked up and costs add up, the sums over `costs` are taken: the same numbers, sooner.
        """
        if not (self.evaluator.looked_up and self.capabilities.additive and self.capabilities.deterministic):
            return dict(self.cost(allocation).metrics)
        columns, known = self._cost_columns
        try:
            choices = [known[allocation[name]] for name in self.workload.layer_names]
        except KeyError:
            return dict(self.cost(allocation).metrics)
        return {metric: fsum(map(getitem, rows, choices)) for metric, rows in columns.items()}

    @cached_property
    def _cost_columns(self) -> tuple[dict[str, list[list[float]]], dict[Precision, int]]:
        columns = {metric: table.tolist() for metric, table in self.costs.items()}
        return columns, {precision: choice for choice, precision in enumerate(self.precisions)}

    @contextmanager
    def search_split_only(self) -> Iterator[None]:
        """While this lasts, an agent is searching: the test split cannot be asked for."""
        self._searching = True
        try:
            yield
        finally:
            self._searching = False

    def measure(self, allocation: BitAllocation) -> Trial:
        """Cost and quality (on the search split) of an allocation."""
        costs = self.total_costs(allocation)
        start = perf_counter()
        quality = self.quality(allocation)
        return Trial(allocation, quality, costs, perf_counter() - start)

    def feasible(self, costs: Mapping[str, float]) -> bool:
        """Whether costs are within the task's budgets."""
        return fits(costs, self.limits)

    def allocation(self, choices: Iterable[int]) -> BitAllocation:
        """The allocation that gives layer i the precision number `choices[i]`."""
        pairs = zip(self.workload.layer_names, choices, strict=True)
        return BitAllocation({name: self.precisions[int(choice)] for name, choice in pairs})

    def choices(self, allocation: BitAllocation) -> npt.NDArray[np.int64]:
        """The number of each layer's precision among `precisions`: int64 (L,).

        Raises:
            AllocationError: If a precision is not one that the layer may choose.
        """
        allocation = allocation.require_layers(self.workload.layer_names, f"network {self.network!r}")
        for choosable, (name, precision) in zip(self.choosable, allocation.items(), strict=True):
            allowed = [self.precisions[choice] for choice in np.flatnonzero(choosable)]
            if precision not in allowed:
                raise AllocationError(
                    f"layer {name!r} has {precision}, which is none of this task's choices for it: "
                    f"{', '.join(map(str, allowed))}."
                )
        return np.asarray([self.precisions.index(precision) for precision in allocation.values()], dtype=np.int64)

    def with_budget(self, budgets: Mapping[str, str | float] | Iterable[str] | None) -> Task:
        """The same task with other budgets; network, tables and caches are shared."""
        task = copy.copy(self)
        task.budgets = parse_budgets(budgets)
        task.limits = task.resolve_limits(task.budgets)
        return task

    def with_device(self, backend: HardwareBackend) -> Task:
        """The same task on another device: network, widths, ties, pins and budgets stay, relative ones are its own.

        Raises:
            UnsupportedPrecisionError: If the device cannot run a layer at one of the widths.
            BudgetError: If no allocation can meet the budgets on it.
        """
        if isinstance(self.backend, TiedDevice) and not isinstance(backend, TiedDevice):
            backend = TiedDevice(backend, self.backend.ties)
        return Task(
            self.network,
            self.evaluator,
            backend,
            self.free_bits,
            separate=self.separate,
            activation_bits=self.activation_bits,
            budgets=self.budgets,
            pins=self.pins,
        )

    def resolve_limits(self, budgets: Iterable[Budget]) -> dict[str, float]:
        """Limits by metric, after checking that an allocation can meet them.

        Raises:
            BudgetError: If none can; the message has the smallest reachable value.
        """
        budgets = tuple(budgets)
        if not budgets:
            return {}
        if any(budget.relative for budget in budgets) and self.reference_cost is None:
            raise BudgetError(
                f"device {self.device!r} has no {REFERENCE_BITS}-bit precision to compare with; give "
                "budgets with a unit, for example latency=2.5ms."
            )
        if self.reference_cost is None:
            reference = dict.fromkeys((*self.costs, *self.capabilities.metrics), 1.0)
        else:
            reference = dict(self.reference_cost.metrics)
        limits = resolve(budgets, reference)
        check_reachable(self, budgets, limits)
        return limits

    def _check_device_supports_widths(self) -> None:
        for layer, choosable in zip(self.workload, self.choosable, strict=True):
            for choice in np.flatnonzero(choosable):
                self.capabilities.require(layer, self.precisions[choice], self.backend.name)

    def __repr__(self) -> str:
        budgets = ", ".join(map(str, self.budgets)) or "none"
        pinned = f", pinned: {pins_text(self.pins)}" if self.pins else ""
        return f"Task({self.network!r}, device={self.device!r}, bits={self.free_bits}, budgets: {budgets}{pinned})"


def _check_activation_bits(bits: int | None, separate: bool) -> int | None:
    if bits is not None and separate:
        raise AllocationError("activation_bits is one width for all activations; leave it out, or leave separate out.")
    return None if bits is None else check_bits(bits, "activation_bits")


def _check_widths(bits: Sequence[int]) -> tuple[int, ...]:
    widths = tuple(check_bits(int(b) if isinstance(b, np.integer) else b, "widths to choose from") for b in bits)
    if len(widths) < 2 or len(set(widths)) != len(widths):
        raise AllocationError(f"widths to choose from are {widths}; give at least two different ones.")
    return tuple(sorted(widths))
