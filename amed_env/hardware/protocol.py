"""The contract between the package and a device: capabilities, costs, cost tables and `HardwareBackend`."""

from __future__ import annotations

import abc
import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from amed_env.errors import PluginError, UnsupportedPrecisionError
from amed_env.hardware.metrics import checked_metrics, sum_over_layers
from amed_env.hardware.refusals import Question, without_refused
from amed_env.problem.allocation import BitAllocation, Precision
from amed_env.problem.workload import BASIC_KINDS, KINDS, Layer, Workload

T = TypeVar("T")
_BASIC_KINDS: Mapping[str, str] = {kind: basic for kind, basic in BASIC_KINDS.items()}  # noqa: C416 (other types)


@dataclass(frozen=True)
class Capabilities:
    """What a device can run and what it reports.

    Attributes:
        weight_bits: Widths that weights may have, by kind of layer.
        activation_bits: Widths that activations may have, by kind of layer.
        metrics: Metric name to unit, for example `{"latency_ms": "ms"}`.
        deterministic: Whether equal calls give equal answers.
        additive: Whether the cost of a network is the sum over its layers.
        pairs: The pairs (weight bits, activation bits) that run, by kind of layer, where not every weight width
            goes with every activation width; kinds that are not named have no such limit.
        limits: What the device has of a metric, in the metric's unit: a budget of every search that gives none on it.
        granule_bytes: Weights of a layer take a multiple of this in flash.
    """

    weight_bits: Mapping[str, tuple[int, ...]]
    activation_bits: Mapping[str, tuple[int, ...]]
    metrics: Mapping[str, str]
    deterministic: bool = True
    additive: bool = True
    pairs: Mapping[str, tuple[tuple[int, int], ...]] | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    granule_bytes: int = 1

    @classmethod
    def same_for_all_kinds(
        cls,
        bits: Sequence[int],
        metrics: Mapping[str, str],
        *,
        deterministic: bool = True,
        additive: bool = True,
        limits: Mapping[str, float] | None = None,
        granule_bytes: int = 1,
    ) -> Capabilities:
        """Capabilities of a device that treats every kind of layer, weights and activations alike."""
        options = {"deterministic": deterministic, "additive": additive, "granule_bytes": granule_bytes}
        return cls.same_for_kinds(KINDS, bits, bits, metrics, limits=limits or {}, **options)

    @classmethod
    def same_for_kinds(
        cls,
        kinds: Iterable[str],
        weight_bits: Sequence[int],
        activation_bits: Sequence[int],
        metrics: Mapping[str, str],
        **options: Any,
    ) -> Capabilities:
        """Capabilities of a device that treats some kinds of layers alike; options are the further attributes."""
        kinds = tuple(kinds)
        weights, activations = dict.fromkeys(kinds, tuple(weight_bits)), dict.fromkeys(kinds, tuple(activation_bits))
        return cls(weights, activations, dict(metrics), **options)

    def require(self, layer: Layer, precision: Precision, device: str) -> None:
        """Check that a layer can run at a precision.

        Raises:
            UnsupportedPrecisionError: If not; the message names layer, kind, width and what is supported.
        """
        for operand, bits, widths in (
            ("weights", precision.weight_bits, self.weight_bits),
            ("activations", precision.activation_bits, self.activation_bits),
        ):
            allowed = _of_kind(widths, layer.kind, ())
            if not allowed:
                raise UnsupportedPrecisionError(
                    f"device {device!r} cannot run layer {layer.name!r}: it has no support for kind {layer.kind!r}."
                )
            if bits not in allowed:
                raise UnsupportedPrecisionError(
                    f"device {device!r} cannot run layer {layer.name!r} ({layer.kind}) with {bits}-bit "
                    f"{operand}; it supports {', '.join(map(str, allowed))} bits."
                )
        pairs = _of_kind(self.pairs or {}, layer.kind, None)
        if pairs is not None and tuple(precision) not in pairs:
            raise UnsupportedPrecisionError(
                f"device {device!r} cannot run layer {layer.name!r} ({layer.kind}) at {precision}; it supports "
                f"{', '.join(str(Precision(*pair)) for pair in pairs)}."
            )

    def require_allocation(self, workload: Workload, allocation: BitAllocation, device: str) -> None:
        """`require` for every layer of a network under an allocation."""
        for layer in workload:
            self.require(layer, allocation[layer.name], device)

    def require_table(
        self, workload: Workload, weight_bits: Sequence[int], activation_bits: Sequence[int], device: str
    ) -> None:
        """`require` for every kind of layer of a network at every pair of widths."""
        pairs = list(product(weight_bits, activation_bits))
        if self.pairs is None:  # then weights and activations are checked apart, each width once
            pairs = [(weight, activation_bits[0]) for weight in weight_bits]
            pairs += [(weight_bits[0], activation) for activation in activation_bits]
        first_of_kind: dict[str, Layer] = {}
        for layer in workload:
            first_of_kind.setdefault(layer.kind, layer)
        for layer in first_of_kind.values():
            for pair in pairs:
                self.require(layer, Precision(*pair), device)

    def runs(self, kind: str, precision: Precision) -> bool:
        """Whether a kind of layer can run at a precision."""
        weights, activations = (_of_kind(widths, kind, ()) for widths in (self.weight_bits, self.activation_bits))
        pairs = _of_kind(self.pairs or {}, kind, None)
        within = precision.weight_bits in weights and precision.activation_bits in activations
        return within and (pairs is None or tuple(precision) in pairs)

    def precisions(self, kind: str) -> tuple[Precision, ...]:
        """Every precision that a kind of layer can run at, narrow ones first."""
        weights = sorted(_of_kind(self.weight_bits, kind, ()))
        activations = sorted(_of_kind(self.activation_bits, kind, ()))
        every = [Precision(*pair) for pair in product(weights, activations)]
        return tuple(precision for precision in every if self.runs(kind, precision))


def _of_kind(by_kind: Mapping[str, T], kind: str, absent: T) -> T:
    """What is declared for a kind of layer, or else for the basic kind that it is taken for."""
    return by_kind.get(kind, by_kind.get(_BASIC_KINDS.get(kind, kind), absent))


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs: its precision, metrics by name, and the bound that held (`compute`, `memory`)."""

    name: str
    precision: Precision
    metrics: Mapping[str, float]
    bound: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The layer as a flat JSON object."""
        weight_bits, activation_bits = self.precision
        entry = {"name": self.name, "w_bits": weight_bits, "a_bits": activation_bits, **_plain(self.metrics)}
        return entry if self.bound is None else {**entry, "bound": self.bound}


@dataclass(frozen=True)
class Cost:
    """What a network costs under an allocation: totals by metric, and the breakdown by layer if any."""

    device: str
    metrics: Mapping[str, float]
    layers: tuple[LayerCost, ...] = field(default_factory=tuple)

    @classmethod
    def of_layers(cls, device: str, layers: Sequence[LayerCost], metrics: Iterable[str]) -> Cost:
        """The cost whose totals are the sums over the layers."""
        totals = {}
        for metric in metrics:
            totals[metric] = sum_over_layers([layer.metrics[metric] for layer in layers])
        return cls(device, totals, tuple(layers))

    def __getitem__(self, metric: str) -> float:
        return self.metrics[metric]

    def to_json(self) -> dict[str, Any]:
        """`{"device", "total": {metric: value}, "layers": [...]}`."""
        return {
            "device": self.device,
            "total": _plain(self.metrics),
            "layers": [layer.to_json() for layer in self.layers],
        }


@dataclass(frozen=True)
class CostTable:
    """What every layer costs at every precision.

    Attributes:
        layers: L layer names, in network order.
        weight_bits: W widths of weights.
        activation_bits: A widths of activations.
        metrics: Metric name to float64 array of shape (L, W, A), in the metric's unit.
    """

    layers: tuple[str, ...]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    metrics: Mapping[str, npt.NDArray[np.float64]]

    def column(self, metric: str, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """Costs of every layer at the given precisions: float64 of shape (L, len(precisions))."""
        weights, activations = self._positions(precisions)
        return np.asarray(self.metrics[metric][:, weights, activations])

    def totals(self, allocation: BitAllocation) -> dict[str, float]:
        """Costs of the network under an allocation: metric name to the sum over its layers.

        Raises:
            AllocationError: If the allocation does not have exactly the table's layers.
            UnsupportedPrecisionError: If the table lacks a width.
        """
        allocation = allocation.require_layers(self.layers, "the cost table")
        for name, precision in allocation.items():
            for bits, widths in zip(precision, (self.weight_bits, self.activation_bits), strict=True):
                if bits not in widths:
                    raise UnsupportedPrecisionError(
                        f"layer {name!r}: the cost table has no {bits} bits; it has {', '.join(map(str, widths))}."
                    )
        chosen = (np.arange(len(self.layers)), *self._positions(list(allocation.values())))
        return {metric: float(sum_over_layers(values[chosen].tolist())) for metric, values in self.metrics.items()}

    def _positions(self, precisions: Sequence[Precision]) -> tuple[list[int], list[int]]:
        """Positions of precisions on the axes of weight widths and of activation widths."""
        weights = [self.weight_bits.index(precision.weight_bits) for precision in precisions]
        activations = [self.activation_bits.index(precision.activation_bits) for precision in precisions]
        return weights, activations


class AnswerStore(Protocol):
    """Where a slow device keeps its answers, by a digest of all that they depend on; a `TrialStore` is one."""

    def answer(self, question: str) -> str | None:
        """The answer to a question, or None."""

    def add_answer(self, question: str, answer: str) -> None:
        """Keep an answer."""


class HardwareBackend(abc.ABC):  # noqa: B024 (which method a device overrides depends on the device)
    """A device, or a simulator of one. Subclass it, and register the class with `amed_env.register_hardware`.

    The least that a device needs is `metrics` and `layer_cost`; costs then add up over the layers. A device
    whose costs do not add up overrides `evaluate` and `capabilities`; a fast one overrides `table` with
    vectorised code; one that can run some layers at fewer precisions than others of their kind overrides
    `allowed_precisions`.

    Attributes:
        name: The device's name, as in `amed devices`.
        metrics: Metric name to unit of what `layer_cost` returns. `weight_kib` and `bops` need not be given:
            the package adds them, they do not depend on a device.
        bits: Widths that weights and activations of every kind of layer may have.
        timeout_s: Seconds that one call may take. With a number the device runs in a process of its own, which is
            killed when time is up (see `amed_env.hardware.external.isolation`); None calls it in this process and
            waits.
        retries: How often a call that failed is made again before it counts as a fault.
        limits_itself: Whether the device keeps to `timeout_s` on its own and needs no process for it.
    """

    name: str = "unnamed"
    metrics: Mapping[str, str] = {"latency_ms": "ms"}
    bits: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8, 16)
    timeout_s: float | None = None
    retries: int = 1
    limits_itself: bool = False

    def capabilities(self) -> Capabilities:
        """What the device can run and what it reports."""
        return Capabilities.same_for_all_kinds(self.bits, self.metrics)

    def allowed_precisions(
        self, workload: Workload, precisions: Sequence[Precision]
    ) -> Sequence[Collection[Precision]]:
        """What each layer of a network can run at: the choices of a search are among these.

        By default what `capabilities` says of the layer's kind, without what the device refuses by
        `UnsupportedPrecisionError` when it is asked: about each layer at each precision by `layer_cost`, or where it
        only has `evaluate`, about the network at each precision, and layer by layer only where that is refused. A
        device with an own `table` is not asked. Override it to say what a layer can run at, and narrow what this
        default returns, which then asks nothing.

        Args:
            workload: The network.
            precisions: The precisions that matter; only these are asked about.

        Returns:
            For every layer, in network order, those of the precisions that it can run at.
        """
        capabilities = self.capabilities()
        allowed = [[p for p in precisions if capabilities.runs(layer.kind, p)] for layer in workload]
        return without_refused(self, workload, allowed, question_to(type(self)))

    def layer_cost(self, layer: Layer, precision: Precision) -> Mapping[str, float]:
        """Cost of one layer at one precision: metric name to value, in the declared units.

        Raises:
            UnsupportedPrecisionError: If this very layer cannot run at it.
        """
        raise TypeError(f"{type(self).__name__} must override layer_cost(), or evaluate() if its costs do not add up.")

    def evaluate(self, workload: Workload, allocation: BitAllocation) -> Cost:
        """Cost of a network under an allocation.

        Raises:
            UnsupportedPrecisionError: If a layer cannot run at its precision.
            AllocationError: If the allocation does not have exactly the workload's layers.
            BackendError: If `layer_cost` answers no finite, non-negative number for a declared metric.
        """
        allocation = allocation.require_layers(workload.layer_names, f"network {workload.name!r}")
        require_allowed(self, workload, allocation)
        layers = []
        for layer in workload:
            precision = allocation[layer.name]
            where = f"device {self.name!r}, layer {layer.name!r} at {precision}"
            metrics = checked_metrics(self.layer_cost(layer, precision), self.metrics, where)
            layers.append(LayerCost(layer.name, precision, metrics))
        return Cost.of_layers(self.name, layers, self.metrics)

    def table(self, workload: Workload, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> CostTable | None:
        """Costs of every layer at every pair of widths, or None if the device has no fast way to them.

        Args:
            workload: The network.
            weight_bits: Widths of weights.
            activation_bits: Widths of activations.
        """
        return None

    def evaluate_many(self, workload: Workload, allocations: Sequence[BitAllocation]) -> list[Cost]:
        """Costs of a network under many allocations, in their order; a device with several workers overrides it."""
        return [self.evaluate(workload, allocation) for allocation in allocations]

    def lower_bound(
        self, workload: Workload, weight_bits: Sequence[int], activation_bits: Sequence[int]
    ) -> CostTable | None:
        """For costs that do not add up: what every layer costs at the least, or None if nothing is known.

        The sum over the layers must never exceed the cost of the whole allocation. The environment forbids by it
        what no choice of the other layers could make up for. Metrics for which nothing is known are left out.

        Args:
            workload: The network.
            weight_bits: Widths of weights that the other layers may have too.
            activation_bits: Widths of activations that the other layers may have too.
        """
        return None

    def keep_answers(self, store: AnswerStore | None) -> None:  # noqa: B027 - most devices have nothing to keep
        """Take a place where answers outlive this process; only devices that are slow and deterministic make use of it.

        Args:
            store: Has answers of earlier searches and keeps new ones; None is ignored.
        """

    def sample_workload(self) -> Workload | None:
        """A network for `check_hardware`, for devices that know certain layers only; None takes the package's own."""
        return None


def question_to(device: type[HardwareBackend]) -> Question | None:
    """How a class of devices is asked what it refuses; None for one that declares it, or answers in tables."""

    def has_own(name: str) -> bool:
        return getattr(device, name) is not getattr(HardwareBackend, name)

    if has_own("allowed_precisions") or has_own("table"):
        return None
    if has_own("layer_cost"):
        return "layers"
    return "networks" if has_own("evaluate") else None


def require_allowed(backend: HardwareBackend, workload: Workload, allocation: BitAllocation) -> None:
    """Check that a device can run every layer of a network under an allocation, by all that it declares.

    Raises:
        UnsupportedPrecisionError: If not; the message names layer, precision and what is supported.
    """
    backend.capabilities().require_allocation(workload, allocation, backend.name)
    if type(backend).allowed_precisions is HardwareBackend.allowed_precisions:
        return  # it declares no more than that
    asked = tuple(dict.fromkeys(allocation.values()))
    for layer, allowed in zip(workload, backend.allowed_precisions(workload, asked), strict=True):
        if allocation[layer.name] not in allowed:
            every = backend.capabilities().precisions(layer.kind)
            supported = backend.allowed_precisions(workload, every)[workload.layer_names.index(layer.name)]
            raise UnsupportedPrecisionError(
                f"device {backend.name!r} cannot run layer {layer.name!r} ({layer.kind}) at {allocation[layer.name]}; "
                f"it supports {', '.join(map(str, supported)) or 'no precision'} there."
            )


def changed_copy(backend: HardwareBackend, **attributes: Any) -> HardwareBackend:
    """A shallow copy of a device with other attributes; the device itself if it has these values already.

    Whoever gives a device another name, limit or number of retries uses this, as the device belongs to the caller.

    Raises:
        PluginError: If the device cannot be copied, or a copy that is deleted would release what the device holds.
    """
    if all(getattr(backend, name) == value for name, value in attributes.items()):
        return backend
    try:
        if hasattr(backend, "__del__"):
            raise TypeError("it has a method __del__, which would run for the copy too")
        changed = copy.copy(backend)
    except Exception as error:  # a device is code of the user
        raise PluginError(
            f"device {backend.name!r} cannot be copied to set {', '.join(attributes)}: {error}. Set that in its class."
        ) from error
    for name, value in attributes.items():
        setattr(changed, name, value)
    return changed


def _plain(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Metrics as numbers that JSON can carry: integers (cycles) stay integers."""
    return {
        name: int(value) if isinstance(value, int | np.integer) else float(value) for name, value in metrics.items()
    }
