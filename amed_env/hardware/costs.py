"""How the package asks a device: checks before and after, and the metrics that need no device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from amed_env.errors import AmedError, BackendError, InputError, UnsupportedPrecisionError
from amed_env.hardware.metrics import checked_metrics, sum_over_layers
from amed_env.hardware.protocol import Capabilities, Cost, CostTable, HardwareBackend, LayerCost
from amed_env.problem.allocation import BitAllocation, Precision
from amed_env.problem.workload import Layer, Workload, bops, flash_kib, weight_kib

logger = logging.getLogger(__name__)

T = TypeVar("T")
OnRetry = Callable[[BackendError], None]
"""Is told of every failed call that is made again."""

COMMON_METRICS = ("weight_kib", "bops", "flash_kib")
"""Metrics of layers that follow from the network alone; added where a backend does not give them."""
RAM = "ram_kib"
"""The most that results of layers take at one time, where the network's operations are known: no sum over layers."""


def backend_capabilities(backend: HardwareBackend) -> Capabilities:
    """What a backend says that it can do, after checking that it says so properly.

    Raises:
        BackendError: If `capabilities()` raises, or does not answer `Capabilities`.
    """
    capabilities = call_device(backend, "capabilities()", None, backend.capabilities)
    if not isinstance(capabilities, Capabilities):
        raise BackendError(
            f"device {backend.name!r}: capabilities() answered {type(capabilities).__name__}, expected Capabilities."
        )
    return capabilities


def evaluate_cost(
    backend: HardwareBackend, workload: Workload, allocation: BitAllocation, on_retry: OnRetry | None = None
) -> Cost:
    """Cost of a network on a device under an allocation; a call that fails is made again `backend.retries` times.

    Args:
        backend: The device.
        workload: The network.
        allocation: A precision for every layer, in any order.
        on_retry: Is told of every failure that is followed by another try.

    Returns:
        The checked cost, with `weight_kib` and `flash_kib` (KiB) and `bops` (bit operations) in the totals and, where
        the device gives a breakdown, in every layer; `ram_kib` in the totals, if the network's operations are known.

    Raises:
        AllocationError: If the allocation does not have exactly the workload's layers.
        UnsupportedPrecisionError: If a layer cannot run at its precision.
        BackendError: If the backend fails, or answers something that is no cost; the message names the
            device, and the layer and metric at fault.
    """
    allocation = allocation.require_layers(workload.layer_names, f"network {workload.name!r}")
    capabilities = backend_capabilities(backend)
    capabilities.require_allocation(workload, allocation, backend.name)

    def call() -> Cost:
        cost = call_device(backend, "evaluate()", workload, lambda: backend.evaluate(workload, allocation))
        return _checked_cost(backend, capabilities, workload, allocation, cost)

    return with_retries(backend, call, on_retry)


def evaluate_costs(
    backend: HardwareBackend, workload: Workload, allocations: Sequence[BitAllocation], on_retry: OnRetry | None = None
) -> list[Cost]:
    """Costs under many allocations, in their order; devices with several workers answer side by side.

    Args, errors: as `evaluate_cost`; the first failure that no retry mends is raised.
    """
    if type(backend).evaluate_many is HardwareBackend.evaluate_many:
        return [evaluate_cost(backend, workload, allocation, on_retry) for allocation in allocations]
    ordered = [a.require_layers(workload.layer_names, f"network {workload.name!r}") for a in allocations]
    capabilities = backend_capabilities(backend)
    for allocation in ordered:
        capabilities.require_allocation(workload, allocation, backend.name)

    def call() -> list[Cost]:
        costs = call_device(backend, "evaluate_many()", workload, lambda: backend.evaluate_many(workload, ordered))
        if len(costs) != len(ordered):
            raise BackendError(
                f"device {backend.name!r}: evaluate_many() answered {len(costs)} costs for {len(ordered)} allocations."
            )
        return [
            _checked_cost(backend, capabilities, workload, allocation, cost)
            for allocation, cost in zip(ordered, costs, strict=True)
        ]

    return with_retries(backend, call, on_retry) if ordered else []


def precision_costs(
    backend: HardwareBackend,
    workload: Workload,
    precisions: Sequence[Precision],
    runnable: npt.NDArray[np.bool_] | None = None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Metric to the cost of every layer at every precision, float64 (L, P), for a device whose costs add up.

    Only what is asked for is evaluated: for widths that are tied a slow device is not called for the others.

    Args:
        backend: The device.
        workload: The network.
        precisions: P precisions.
        runnable: bool (L, P), what each layer can run at, at least one each; everything by default. Elsewhere the cost
            is that of the layer's nearest precision, so that every number is finite.

    Errors: as `cost_table`.
    """
    if runnable is not None and not runnable.all():
        return _costs_where_runnable(backend, workload, precisions, runnable)
    weights = tuple(dict.fromkeys(p.weight_bits for p in precisions))
    activations = tuple(dict.fromkeys(p.activation_bits for p in precisions))
    if len(weights) * len(activations) == len(set(precisions)):
        table = cost_table(backend, workload, weights, activations)
        return {metric: table.column(metric, precisions) for metric in table.metrics}
    tables = [cost_table(backend, workload, (p.weight_bits,), (p.activation_bits,)) for p in precisions]
    return {
        metric: np.column_stack([table.metrics[metric][:, 0, 0] for table in tables]) for metric in tables[0].metrics
    }


def _costs_where_runnable(
    backend: HardwareBackend, workload: Workload, precisions: Sequence[Precision], runnable: npt.NDArray[np.bool_]
) -> dict[str, npt.NDArray[np.float64]]:
    """As `precision_costs`: as many evaluations of the network as some layer has precisions, each one its next."""
    capabilities = backend_capabilities(backend)
    _require_additive(backend, capabilities)
    own = [np.flatnonzero(of_layer).tolist() for of_layer in runnable]
    turns = [[of_layer[min(turn, len(of_layer) - 1)] for of_layer in own] for turn in range(max(map(len, own)))]
    allocations = []
    for choices in turns:
        pairs = zip(workload.layer_names, choices, strict=True)
        allocations.append(BitAllocation({name: precisions[choice] for name, choice in pairs}))
    metrics: dict[str, npt.NDArray[np.float64]] = {}
    for choices, cost in zip(turns, evaluate_costs(backend, workload, allocations), strict=True):
        for row, (choice, layer) in enumerate(zip(choices, _breakdown(backend, cost), strict=True)):
            for metric in (*capabilities.metrics, *COMMON_METRICS):
                metrics.setdefault(metric, np.zeros(runnable.shape))[row, choice] = layer.metrics[metric]
    stand_ins = nearest_choices(precisions, runnable)
    return {metric: np.take_along_axis(values, stand_ins, axis=1) for metric, values in metrics.items()}


def nearest_choices(precisions: Sequence[Precision], runnable: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """For every layer and precision the number of the nearest precision that the layer can run at: int64 (L, P).

    Of two equally near ones the first counts, which is the narrower one where precisions are sorted: it is the cheaper
    one on most devices.
    """
    widths = np.asarray(precisions, dtype=np.float64)
    distance = np.abs(widths[:, None] - widths).sum(axis=2)
    return np.asarray(np.where(runnable[:, None, :], distance, np.inf).argmin(axis=2), dtype=np.int64)


def lower_bounds(
    backend: HardwareBackend,
    workload: Workload,
    precisions: Sequence[Precision],
    runnable: npt.NDArray[np.bool_] | None = None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Metric to what every layer costs at the least at every precision, float64 (L, P).

    For a device whose costs add up these are the costs themselves. Otherwise `weight_kib` and `bops`, and what the
    device's `lower_bound` knows.

    Args:
        backend: The device.
        workload: The network.
        precisions: P precisions.
        runnable: bool (L, P), what each layer can run at; everything by default. Numbers mean nothing elsewhere.

    Raises:
        BackendError: If the device fails, or answers something that is no cost table.
    """
    capabilities = backend_capabilities(backend)
    if capabilities.additive:
        return precision_costs(backend, workload, precisions, runnable)
    weights = tuple(dict.fromkeys(p.weight_bits for p in precisions))
    activations = tuple(dict.fromkeys(p.activation_bits for p in precisions))
    common = _common_metrics(workload, weights, activations, capabilities.granule_bytes)
    # A device may count one of them itself, and less of it: compilers compress weights.
    metrics = {metric: values for metric, values in common.items() if metric not in capabilities.metrics}

    def bounds() -> CostTable | None:
        return backend.lower_bound(workload, weights, activations)

    try:
        bound = with_retries(backend, lambda: call_device(backend, "lower_bound()", workload, bounds), None)
    except UnsupportedPrecisionError:
        if runnable is None or runnable.all():
            raise
        bound = None  # it only knows bounds of widths that every layer has
    if bound is not None:
        known = replace(capabilities, metrics={})
        metrics = {**_checked_table(backend, known, workload, weights, activations, bound), **metrics}
    table = CostTable(workload.layer_names, weights, activations, metrics)
    return {metric: table.column(metric, precisions) for metric in metrics}


def with_retries(backend: HardwareBackend, call: Callable[[], T], on_retry: OnRetry | None) -> T:
    """Make a call until it succeeds, at most `backend.retries` times more than once."""
    # Only here, for every device, and only after a failure of the device: an error of input stays one.
    for tries_left in range(max(0, int(backend.retries)), -1, -1):
        try:
            return call()
        except BackendError as error:
            if not tries_left:
                raise
            logger.warning("%s It is tried again.", error)
            if on_retry is not None:
                on_retry(error)
    raise AssertionError("unreachable: the last try returns or raises")


def cost_table(
    backend: HardwareBackend, workload: Workload, weight_bits: Sequence[int], activation_bits: Sequence[int]
) -> CostTable:
    """Costs of every layer of a network at every pair of widths.

    Args:
        backend: A device whose costs add up over the layers.
        workload: The network.
        weight_bits: W different widths of weights.
        activation_bits: A different widths of activations.

    Returns:
        The checked table, float64 arrays of shape (L, W, A), with `weight_kib` and `bops` among the metrics.

    Raises:
        InputError: If a list of widths is empty or repeats one.
        UnsupportedPrecisionError: If a layer cannot run at one of the widths.
        BackendError: If the device's costs do not add up over the layers, if it fails, or if it answers
            something that is no cost table.
    """
    weights = _checked_widths("weight", weight_bits)
    activations = _checked_widths("activation", activation_bits)
    capabilities = backend_capabilities(backend)
    _require_additive(backend, capabilities)
    capabilities.require_table(workload, weights, activations, backend.name)

    def call() -> dict[str, npt.NDArray[np.float64]] | None:
        table = call_device(backend, "table()", workload, lambda: backend.table(workload, weights, activations))
        if table is None:
            return None
        return _checked_table(backend, capabilities, workload, weights, activations, table)

    metrics = with_retries(backend, call, None)
    if metrics is None:
        metrics = _tabulate(backend, capabilities, workload, weights, activations)
    for metric, values in _common_metrics(workload, weights, activations, capabilities.granule_bytes).items():
        metrics.setdefault(metric, values)
    return CostTable(workload.layer_names, weights, activations, metrics)


def call_device(backend: HardwareBackend, what: str, workload: Workload | None, function: Callable[[], T]) -> T:
    """Call into a backend; whatever it raises that is not ours becomes a `BackendError`."""
    try:
        return function()
    except AmedError:
        raise
    except (Exception, SystemExit) as error:  # a simulator may call sys.exit()
        network = "" if workload is None else f" for network {workload.name!r} with {len(workload)} layers"
        raise BackendError(
            f"device {backend.name!r}: {what} failed{network}: {type(error).__name__}: {error}."
        ) from error


def _checked_cost(
    backend: HardwareBackend, capabilities: Capabilities, workload: Workload, allocation: BitAllocation, cost: object
) -> Cost:
    here = f"device {backend.name!r}"
    if not isinstance(cost, Cost):
        raise BackendError(f"{here}: evaluate() answered {type(cost).__name__}, expected Cost.")
    totals = checked_metrics(cost.metrics, capabilities.metrics, f"{here}, total")
    layers = _checked_layers(here, capabilities, workload, allocation, cost) if cost.layers else ()
    granule = capabilities.granule_bytes
    common = [_common_of_layer(layer, allocation[layer.name], granule) for layer in workload]
    for metric in COMMON_METRICS:
        totals.setdefault(metric, sum_over_layers([values[metric] for values in common]))
    if workload.memory is not None and RAM not in totals:
        totals[RAM] = workload.memory.bytes(allocation) / 1024
    return Cost(backend.name, totals, layers)


def _checked_layers(
    here: str, capabilities: Capabilities, workload: Workload, allocation: BitAllocation, cost: Cost
) -> tuple[LayerCost, ...]:
    """The breakdown of a cost by layer, with the common metrics added."""
    if not all(isinstance(layer, LayerCost) for layer in cost.layers):
        raise BackendError(f"{here}: the breakdown by layer holds something that is no LayerCost.")
    names = tuple(layer.name for layer in cost.layers)
    if names != workload.layer_names:
        raise BackendError(
            f"{here}: the breakdown has the layers {', '.join(names)}; "
            f"expected {', '.join(workload.layer_names)}, in this order."
        )
    # Costs that do not add up may be shared by layers, so that a layer has no part of its own.
    required = tuple(capabilities.metrics) if capabilities.additive else ()
    layers = []
    for layer, entry in zip(workload, cost.layers, strict=True):
        where = f"{here}, layer {layer.name!r}"
        if entry.precision != allocation[layer.name]:
            raise BackendError(f"{where}: evaluated at {entry.precision}, expected {allocation[layer.name]}.")
        metrics = checked_metrics(entry.metrics, required, where)
        for metric, value in _common_of_layer(layer, entry.precision, capabilities.granule_bytes).items():
            metrics.setdefault(metric, value)
        layers.append(replace(entry, metrics=metrics))
    return tuple(layers)


def _checked_table(
    backend: HardwareBackend,
    capabilities: Capabilities,
    workload: Workload,
    weights: tuple[int, ...],
    activations: tuple[int, ...],
    table: object,
) -> dict[str, npt.NDArray[np.float64]]:
    here = f"device {backend.name!r}"
    if not isinstance(table, CostTable):
        raise BackendError(f"{here}: table() answered {type(table).__name__}, expected CostTable or None.")
    for axis, answered, asked in (
        ("layers", table.layers, workload.layer_names),
        ("weight widths", table.weight_bits, weights),
        ("activation widths", table.activation_bits, activations),
    ):
        if tuple(answered) != tuple(asked):
            raise BackendError(f"{here}: the table has the {axis} {tuple(answered)}, expected {tuple(asked)}.")
    missing = [metric for metric in capabilities.metrics if metric not in table.metrics]
    if missing:
        raise BackendError(f"{here}: declared metrics are missing in the table: {', '.join(missing)}.")
    shape = (len(workload), len(weights), len(activations))
    checked = {}
    for metric, values in table.metrics.items():
        try:
            array = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise BackendError(f"{here}: metric {metric!r} of the table holds no numbers: {error}.") from error
        if array.shape != shape:
            raise BackendError(f"{here}: metric {metric!r} of the table has shape {array.shape}, expected {shape}.")
        wrong = np.argwhere(~np.isfinite(array) | (array < 0))
        if len(wrong):
            layer, weight, activation = wrong[0]
            at = Precision(weights[weight], activations[activation])
            where = f"layer {workload.layer_names[layer]!r} at {at}"
            raise BackendError(
                f"{here}, {where}: metric {metric!r} is {array[layer, weight, activation]}, "
                "expected a finite number that is not negative."
            )
        checked[metric] = array
    return checked


def _tabulate(
    backend: HardwareBackend,
    capabilities: Capabilities,
    workload: Workload,
    weights: tuple[int, ...],
    activations: tuple[int, ...],
) -> dict[str, npt.NDArray[np.float64]]:
    """The table of a backend without a fast way: one evaluation of the network for every pair of widths."""
    shape = (len(workload), len(weights), len(activations))
    metrics: dict[str, npt.NDArray[np.float64]] = {}
    pairs = list(product(range(len(weights)), range(len(activations))))
    uniform = [workload.uniform(weights[i], activations[j]) for i, j in pairs]
    for (i, j), cost in zip(pairs, evaluate_costs(backend, workload, uniform), strict=True):
        for row, layer in enumerate(_breakdown(backend, cost)):
            for metric in (*capabilities.metrics, *COMMON_METRICS):
                metrics.setdefault(metric, np.zeros(shape))[row, i, j] = layer.metrics[metric]
    return metrics


def _require_additive(backend: HardwareBackend, capabilities: Capabilities) -> None:
    if not capabilities.additive:
        raise BackendError(
            f"device {backend.name!r} has no cost table: its costs do not add up over the layers; "
            "evaluate whole allocations instead."
        )


def _breakdown(backend: HardwareBackend, cost: Cost) -> tuple[LayerCost, ...]:
    if not cost.layers:
        raise BackendError(
            f"device {backend.name!r} has no cost table: evaluate() gives no breakdown by layer; "
            "return one, or declare additive=False in its capabilities."
        )
    return cost.layers


def common_cost_table(
    workload: Workload, weight_bits: Sequence[int], activation_bits: Sequence[int], granule_bytes: int = 1
) -> CostTable:
    """The metrics that need no device, `weight_kib`, `flash_kib` and `bops`, of every layer at every pair of widths."""
    weights, activations = tuple(weight_bits), tuple(activation_bits)
    metrics = _common_metrics(workload, weights, activations, granule_bytes)
    return CostTable(workload.layer_names, weights, activations, metrics)


def _common_of_layer(layer: Layer, precision: Precision, granule_bytes: int) -> dict[str, float]:
    return {
        "weight_kib": weight_kib(layer, precision.weight_bits),
        "bops": float(bops(layer, *precision)),
        "flash_kib": flash_kib(layer, precision.weight_bits, granule_bytes),
    }


def _common_metrics(
    workload: Workload, weights: tuple[int, ...], activations: tuple[int, ...], granule_bytes: int
) -> dict[str, npt.NDArray[np.float64]]:
    shape = (len(workload), len(weights), len(activations))
    macs = np.array([float(layer.macs) for layer in workload]).reshape(-1, 1, 1)
    elements = np.array([float(layer.stored_weights) for layer in workload]).reshape(-1, 1, 1)
    flash = np.array([[flash_kib(layer, bits, granule_bytes) for bits in weights] for layer in workload])
    weight = np.array(weights, dtype=np.float64).reshape(1, -1, 1)
    activation = np.array(activations, dtype=np.float64).reshape(1, 1, -1)
    return {
        "weight_kib": np.broadcast_to(elements * weight / 8 / 1024, shape).copy(),
        "bops": macs * weight * activation,
        "flash_kib": np.broadcast_to(flash[:, :, None], shape).copy(),
    }


def _checked_widths(what: str, bits: Sequence[int]) -> tuple[int, ...]:
    widths = tuple(bits)
    if not widths or len(set(widths)) != len(widths):
        raise InputError(f"a cost table needs {what} widths without repetition; found {list(widths)}.")
    return widths
