"""A task: a network with its data, a device, the widths to choose from and the budgets."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from amed_env.errors import InputError, UnsupportedPrecisionError
from amed_env.evaluation.quality import Evaluator, Quality, Split
from amed_env.evaluation.store import Trial
from amed_env.hardware.faults import FaultLog
from amed_env.hardware.protocol import Capabilities, Cost, HardwareBackend
from amed_env.hardware.tied import TiedDevice
from amed_env.problem.allocation import BitAllocation, Precision
from amed_env.problem.objective import REFERENCE_BITS, Budget, fits, parse_budgets
from amed_env.problem.pins import pins_text
from amed_env.problem.score import Score
from amed_env.problem.workload import Workload
from amed_env.tasks.choosing import Wishes, search_space
from amed_env.tasks.device_costs import DeviceCosts
from amed_env.tasks.reachability import check_reachable
from amed_env.tasks.search_space import SearchSpace

_searching: ContextVar[bool] = ContextVar("searching", default=False)
"""Whether an agent searches: of the whole context and not of one task, as an agent can make copies of its task."""


class Task:
    """A named, reproducible problem: which allocation has the best score within the budgets on this device?

    It holds what may be chosen (`space`), what that costs (`device_costs`) and how good it is (`evaluator`). What an
    agent needs of the first two has a name here too.

    Args:
        network: Name of the network, part of every file that is written.
        evaluator: Measures quality; it is shared by tasks that differ only in device or budget.
        backend: The device.
        bits: Widths to choose from, as far as the device runs them; None takes those of `tasks.choosing`.
        separate: Whether weights and activations are chosen apart; otherwise both get the same width, but where the
            device wants different ones.
        activation_bits: One width for all activations, so that those of weights alone are chosen; 32 leaves activations
            in float.
        budgets: Limits on the cost.
        pins: Layers that keep a width; see `problem.pins.parse_pins`.

    Attributes:
        space: What may be chosen.
        device_costs: What it costs; shared by the copies that `with_budget` makes.
        budgets: The budgets as they were given.
        limits: Their limits by metric.

    Raises:
        AllocationError: If widths or pins are malformed.
        UnknownNameError: If a pinned layer does not exist.
        UnsupportedPrecisionError: If the device and what is given leave a layer no precision.
        BudgetError: If no allocation can meet the budgets; the message has the smallest reachable value.
    """

    def __init__(
        self,
        network: str,
        evaluator: Evaluator,
        backend: HardwareBackend,
        bits: Sequence[int] | None = None,
        *,
        separate: bool = False,
        activation_bits: int | None = None,
        budgets: Iterable[Budget] = (),
        pins: Mapping[str, Any] | Iterable[str] | None = None,
    ) -> None:
        self.network, self.evaluator = network, evaluator
        backend = device_of(evaluator, backend)
        self._asked_bits = bits
        self.space = space_of(evaluator, backend, bits, separate, activation_bits, pins)
        self.device_costs = DeviceCosts(backend, self.space)
        self.budgets = self._in_own_units(budgets)
        self.limits = self.resolve_limits(self.budgets)

    def _in_own_units(self, budgets: Iterable[Budget]) -> tuple[Budget, ...]:
        """Budgets whose absolute values are in the units of their metrics, and what the device itself limits."""
        given = tuple(budget.in_unit(self.device_costs.unit(budget.metric)) for budget in budgets)
        limited = {budget.metric for budget in given}
        return (*given, *(budget for budget in self.device_costs.own_budgets if budget.metric not in limited))

    # What may be chosen.

    @property
    def workload(self) -> Workload:
        """The network's layers."""
        return self.space.workload

    @property
    def free_bits(self) -> tuple[int, ...]:
        """Widths of weights that layers choose from which are not pinned."""
        return self.space.free_bits

    @property
    def bits(self) -> tuple[int, ...]:
        """All widths, those of pinned layers and of activations included."""
        return self.space.bits

    @property
    def activation_bits(self) -> int | None:
        """One width for all activations, or None."""
        return self.space.activation_bits

    @property
    def separate(self) -> bool:
        """Whether weights and activations are chosen apart."""
        return self.space.separate

    @property
    def pins(self) -> dict[str, Precision]:
        """Precision by pinned layer."""
        return self.space.pins

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The P choices, narrow ones first; see `SearchSpace.precisions`."""
        return self.space.precisions

    @property
    def choosable(self) -> npt.NDArray[np.bool_]:
        """What each layer may choose at all: bool (L, P)."""
        return self.space.choosable

    def allocation(self, choices: Iterable[int]) -> BitAllocation:
        """The allocation that gives layer i the precision number `choices[i]`."""
        return self.space.allocation(choices)

    def choices(self, allocation: BitAllocation) -> npt.NDArray[np.int64]:
        """The number of each layer's precision among `precisions`: int64 (L,); see `SearchSpace.choices`."""
        return self.space.choices(allocation)

    def nearest_choosable(self, choices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Choices in which what a layer may not choose is replaced by the nearest that it may: int64 (L,)."""
        return self.space.nearest_choosable(choices)

    def uniform(self, bits: int) -> BitAllocation:
        """The same width for every layer that is not pinned, with the task's width of activations if it has one."""
        return self.space.uniform(bits)

    # What it costs.

    @property
    def backend(self) -> HardwareBackend:
        """The device."""
        return self.device_costs.backend

    @property
    def device(self) -> str:
        """The device's name."""
        return self.backend.name

    @property
    def capabilities(self) -> Capabilities:
        """What the device can run and reports."""
        return self.device_costs.capabilities

    @property
    def device_faults(self) -> FaultLog:
        """Counts the failing calls of the device; shared by the copies that `with_budget` makes."""
        return self.device_costs.faults

    @property
    def costs(self) -> dict[str, npt.NDArray[np.float64]]:
        """Metric to the cost of every layer at every choice, float64 (L, P); see `DeviceCosts.table`."""
        return self.device_costs.table

    @property
    def reference_cost(self) -> Cost:
        """Cost of the uniform 8-bit network, or of what stands for it on the device; see `DeviceCosts.reference`."""
        return self.device_costs.reference

    def cost(self, allocation: BitAllocation) -> Cost:
        """Cost of an allocation on the task's device.

        Raises:
            BackendError: If the device fails; `device_faults` counts it.
        """
        return self.device_costs.evaluate(allocation)

    def total_costs(self, allocation: BitAllocation) -> dict[str, float]:
        """Cost of an allocation by metric, without the breakdown."""
        # Where quality is evaluated, one call of the device is nothing, and a slow device need not fill a table first.
        sums = self.device_costs.sums(allocation) if self.evaluator.looked_up else None
        return dict(self.cost(allocation).metrics) if sums is None else sums

    def resolve_limits(self, budgets: Iterable[Budget]) -> dict[str, float]:
        """Limits by metric, after checking that an allocation can meet them.

        Raises:
            BudgetError: If none can; the message has the smallest reachable value.
        """
        budgets = tuple(budgets)
        limits = self.device_costs.resolve(budgets)
        if limits:
            check_reachable(self.device_costs, budgets, limits)
        return limits

    def feasible(self, costs: Mapping[str, float]) -> bool:
        """Whether costs are within the task's budgets."""
        return fits(costs, self.limits)

    # How good it is.

    @cached_property
    def predicted_loss(self) -> npt.NDArray[np.float64]:
        """Predicted loss in nats of every layer at every choice alone: float64 (L, P)."""
        return self.evaluator.predicted_loss(self.precisions)

    @property
    def score(self) -> Score:
        """What is optimised, and whether more or less of it is better."""
        return self.evaluator.score

    @cached_property
    def reference_score(self) -> float:
        """What scores are compared with on the search split: the score of the float network.

        Of a score that compares with the float network itself, that of uniform 8 bit (or of the widest choice, if the
        evaluator has no 8 bit).
        """
        if not self.score.against_float:
            return self.float_quality.score
        try:
            return self.evaluator.evaluate(self.workload.uniform(REFERENCE_BITS)).score
        except UnsupportedPrecisionError:
            return self.evaluator.evaluate(self.uniform(max(self.free_bits))).score

    def gain(self, quality: Quality) -> float:
        """What a quality is worth: the log-ratio of the reference's error to its own; see `Score.gain`."""
        return self.score.gain(quality.score, self.reference_score)

    @cached_property
    def float_quality(self) -> Quality:
        """Quality of the float network on the search split."""
        return self.evaluator.evaluate(self.workload.uniform(32))

    def quality(self, allocation: BitAllocation, split: Split = "search") -> Quality:
        """Quality of an allocation; `test` is for the final report only.

        Raises:
            InputError: If an agent asks for the test split during its search.
        """
        if split != "search" and _searching.get():
            raise InputError(
                f"the {split} split is read by the final report only; while it searches, an agent scores allocations "
                "on the search split."
            )
        return self.evaluator.evaluate(allocation, split)

    def measure(self, allocation: BitAllocation, learn: bool = True) -> Trial:
        """Cost and quality (on the search split) of an allocation.

        Args:
            allocation: The allocation.
            learn: Whether this is a trial of a search, for which a network in training is trained first.
        """
        costs = self.total_costs(allocation)
        if self.evaluator.learns:
            _ = self.reference_score  # of the network before it is trained, whenever it is asked for
        start = perf_counter()
        quality = self.evaluator.trial_quality(allocation) if learn else self.evaluator.evaluate(allocation)
        return Trial(allocation, quality.lean, costs, perf_counter() - start)

    # Other tasks from this one.

    def with_budget(self, budgets: Mapping[str, str | float] | Iterable[str] | None) -> Task:
        """The same task with other budgets; network, tables and caches are shared.

        Raises:
            BudgetError: If no allocation can meet the budgets.
        """
        task = copy.copy(self)
        task.budgets = self._in_own_units(parse_budgets(budgets))
        task.limits = task.resolve_limits(task.budgets)
        return task

    def with_device(self, backend: HardwareBackend) -> Task:
        """The same task on another device: network, widths, ties, pins and budgets stay, relative ones are its own.

        Raises:
            UnsupportedPrecisionError: If the device and the task's widths and pins leave a layer no precision.
            BudgetError: If no allocation can meet the budgets on it.
        """
        return self._with(backend, self.pins)

    def with_pins(self, pins: Mapping[str, Any] | Iterable[str] | None) -> Task:
        """The same task with other pins; faults of the device are counted together with this one's.

        Raises:
            AllocationError: If pins are malformed.
            UnknownNameError: If a pinned layer does not exist.
            BudgetError: If no allocation can meet the budgets then.
        """
        task = self._with(self.backend, pins)
        task.device_costs.faults = self.device_faults
        return task

    def _with(self, backend: HardwareBackend, pins: Mapping[str, Any] | Iterable[str] | None) -> Task:
        return Task(
            self.network,
            self.evaluator,
            backend,
            self._asked_bits,
            separate=self.separate,
            activation_bits=self.activation_bits,
            budgets=self.budgets,
            pins=pins,
        )

    def __repr__(self) -> str:
        budgets = ", ".join(map(str, self.budgets)) or "none"
        pinned = f", pinned: {pins_text(self.pins)}" if self.pins else ""
        return f"Task({self.network!r}, device={self.device!r}, bits={self.free_bits}, budgets: {budgets}{pinned})"


def device_of(evaluator: Evaluator, backend: HardwareBackend) -> HardwareBackend:
    """A device as it looks from an evaluator's workload, in which layers may be tied."""
    ties = evaluator.ties
    return backend if ties is None or isinstance(backend, TiedDevice) else TiedDevice(backend, ties)


def space_of(
    evaluator: Evaluator,
    backend: HardwareBackend,
    bits: Sequence[int] | None,
    separate: bool,
    activation_bits: int | None,
    pins: Mapping[str, Any] | Iterable[str] | None,
) -> SearchSpace:
    """The search space of a task; arguments and errors are those of `Task`."""
    table = evaluator.complete_table() if evaluator.looked_up else None
    known = None if table is None else table.precisions
    workload = evaluator.workload
    wishes = Wishes.of(workload.layer_names, bits, separate, activation_bits, pins, known)
    return search_space(device_of(evaluator, backend), workload, wishes)


@contextmanager
def search_split_only() -> Iterator[None]:
    """While this lasts, an agent is searching: no task's test split can be asked for."""
    before = _searching.set(True)
    try:
        yield
    finally:
        _searching.reset(before)
