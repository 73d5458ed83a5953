"""The conformance test of devices: whether a backend keeps the promises that the package relies on."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable, Iterator

from amed_env.allocation import FLOAT_BITS, MAX_BITS, BitAllocation, Precision
from amed_env.errors import AmedError, BackendError, UnsupportedPrecisionError
from amed_env.hardware.costs import backend_capabilities, cost_table, evaluate_cost
from amed_env.hardware.protocol import METRIC_UNITS, Capabilities, Cost, HardwareBackend
from amed_env.workload import Layer, Workload

_SAMPLE = (
    Layer("conv", "conv", m=64, n=16, k=27, kernel=(3, 3)),
    Layer("depthwise", "depthwise", m=64, n=1, k=9, groups=16, kernel=(3, 3)),
    Layer("pointwise", "conv", m=64, n=32, k=16),
    Layer("linear", "linear", m=1, n=10, k=32),
    Layer("matmul", "matmul", m=8, n=8, k=16),
)
_TOLERANCE = 1e-9


def check_hardware(backend: HardwareBackend, workload: Workload | None = None) -> tuple[str, ...]:
    """Test that a backend conforms to the contract of `HardwareBackend`.

    It is evaluated at mixed and at uniform widths of every kind that it supports. Costs that fall as bits
    rise are reported as a `UserWarning`: real devices do that.

    Args:
        backend: The device.
        workload: A network to test with; by default a small one with every kind of layer that the device
            supports.

    Returns:
        Names of the checks that passed.

    Raises:
        BackendError: If something fails; all failures are listed.
    """
    capabilities = backend_capabilities(backend)
    if workload is None:
        layers = tuple(layer for layer in _SAMPLE if capabilities.weight_bits.get(layer.kind))
        if not layers:
            raise BackendError(f"device {backend.name!r} supports no kind of layer; declare some in capabilities().")
        workload = Workload("conformance", layers)
    checks: list[tuple[str, Callable[[HardwareBackend, Capabilities, Workload], None]]] = [
        ("declared metrics have units", _check_units),
        ("costs are finite, complete and not negative", _check_costs),
        ("totals are the sum over the layers", _check_sum),
        ("the table equals evaluate", _check_table),
        ("equal calls give equal answers", _check_deterministic),
        ("it can be pickled", _check_pickle),
        ("unsupported widths and kinds are refused", _check_refusal),
    ]
    passed, failed = [], []
    for name, check in checks:
        try:
            check(backend, capabilities, workload)
            passed.append(name)
        except _BrokenPromiseError as failure:
            failed.append(f"{name}: {failure}")
        except AmedError as error:
            failed.append(f"{name}: {error}")
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
    if failed:
        listing = "\n".join(f"- {line}" for line in failed)
        raise BackendError(f"device {backend.name!r} fails {len(failed)} of {len(checks)} checks:\n{listing}")
    _warn_if_not_monotone(backend, capabilities, workload)
    return tuple(passed)


class _BrokenPromiseError(Exception):
    """A promise that is not kept; becomes a line of the report."""


def _allocations(capabilities: Capabilities, workload: Workload) -> Iterator[BitAllocation]:
    """The narrowest, the widest, and one with neighbouring layers at different widths."""

    def allocation(choose: Callable[[int, tuple[int, ...]], int]) -> BitAllocation:
        return BitAllocation(
            {
                layer.name: Precision(
                    choose(i, tuple(sorted(capabilities.weight_bits[layer.kind]))),
                    choose(i + 1, tuple(sorted(capabilities.activation_bits[layer.kind]))),
                )
                for i, layer in enumerate(workload)
            }
        )

    yield allocation(lambda _, bits: bits[0])
    yield allocation(lambda _, bits: bits[-1])
    yield allocation(lambda i, bits: bits[i % len(bits)])


def _check_units(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    if not capabilities.metrics:
        raise _BrokenPromiseError("no metric is declared; declare at least latency_ms.")
    for metric, unit in capabilities.metrics.items():
        if not isinstance(unit, str) or not unit:
            raise _BrokenPromiseError(f"metric {metric!r} has no unit.")
        if METRIC_UNITS.get(metric, unit) != unit:
            raise _BrokenPromiseError(f"metric {metric!r} is in {METRIC_UNITS[metric]} everywhere, not in {unit}.")


def _check_costs(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    for allocation in _allocations(capabilities, workload):
        evaluate_cost(backend, workload, allocation)


def _check_sum(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    if not capabilities.additive:
        return
    for allocation in _allocations(capabilities, workload):
        cost = evaluate_cost(backend, workload, allocation)
        for metric in capabilities.metrics if cost.layers else ():
            _require_close(cost[metric], math.fsum(layer.metrics[metric] for layer in cost.layers), metric, allocation)


def _check_table(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    if not (capabilities.additive and capabilities.deterministic):
        return
    weights, activations = _common_widths(capabilities, workload)
    if not weights or not activations:
        return  # the kinds of layers share no width, so that no table of all of them exists
    table = cost_table(backend, workload, weights, activations)
    chosen = {
        layer.name: Precision(weights[i % len(weights)], activations[(i + 1) % len(activations)])
        for i, layer in enumerate(workload)
    }
    for allocation in (
        workload.uniform(weights[0], activations[0]),
        workload.uniform(weights[-1], activations[-1]),
        BitAllocation(chosen),
    ):
        cost, totals = evaluate_cost(backend, workload, allocation), table.totals(allocation)
        for metric in capabilities.metrics:
            _require_close(cost[metric], totals[metric], metric, allocation)


def _check_deterministic(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    if not capabilities.deterministic:
        return
    allocations = list(_allocations(capabilities, workload))
    first = [evaluate_cost(backend, workload, allocation) for allocation in allocations]
    # Backwards, so that a backend that remembers its last call is found out.
    second = [evaluate_cost(backend, workload, allocation) for allocation in reversed(allocations)][::-1]
    for allocation, one, two in zip(allocations, first, second, strict=True):
        _require_equal(one, two, allocation)


def _check_pickle(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    copy = pickle.loads(pickle.dumps(backend))
    if not capabilities.deterministic:
        return
    for allocation in _allocations(capabilities, workload):
        _require_equal(
            evaluate_cost(backend, workload, allocation),
            evaluate_cost(copy, workload, allocation),
            allocation,
        )


def _check_refusal(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    layer = workload.layers[0]
    alone = Workload("refusal", (layer,))
    widest = Precision(max(capabilities.weight_bits[layer.kind]), max(capabilities.activation_bits[layer.kind]))
    every_width = (*range(1, MAX_BITS + 1), FLOAT_BITS)
    trials = []
    for field, table in (
        ("weight_bits", capabilities.weight_bits),
        ("activation_bits", capabilities.activation_bits),
    ):
        unsupported = [bits for bits in every_width if bits not in table[layer.kind]]
        if unsupported:
            trials.append((alone, widest._replace(**{field: unsupported[-1]})))
    for other in _SAMPLE:
        if not capabilities.weight_bits.get(other.kind):
            trials.append((Workload("refusal", (other,)), widest))
    for network, precision in trials:
        try:
            backend.evaluate(network, network.uniform(*precision))
        except UnsupportedPrecisionError:
            continue
        kind = network.layers[0].kind
        raise _BrokenPromiseError(
            f"evaluate() accepts a {kind} layer at {precision}, which capabilities() excludes; "
            "raise UnsupportedPrecisionError (Capabilities.require does)."
        )


def _common_widths(capabilities: Capabilities, workload: Workload) -> tuple[tuple[int, ...], tuple[int, ...]]:
    kinds = {layer.kind for layer in workload}
    weights = set.intersection(*(set(capabilities.weight_bits[kind]) for kind in kinds))
    activations = set.intersection(*(set(capabilities.activation_bits[kind]) for kind in kinds))
    return tuple(sorted(weights)), tuple(sorted(activations))


def _require_close(found: float, expected: float, metric: str, allocation: BitAllocation) -> None:
    if not math.isclose(found, expected, rel_tol=_TOLERANCE, abs_tol=0.0):
        raise _BrokenPromiseError(
            f"{metric} of {allocation.key()} is {found} by evaluate(), {expected} as a sum over layers."
        )


def _require_equal(one: Cost, two: Cost, allocation: BitAllocation) -> None:
    for metric in one.metrics:
        if one[metric] != two.metrics.get(metric):
            raise _BrokenPromiseError(
                f"{metric} of {allocation.key()} is {one[metric]}, then {two.metrics.get(metric)}."
            )


def _warn_if_not_monotone(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    if not (capabilities.additive and capabilities.deterministic):
        return
    weights, activations = _common_widths(capabilities, workload)
    if not weights or not activations:
        return
    table = cost_table(backend, workload, weights, activations)
    for metric in capabilities.metrics:
        values = table.metrics[metric]
        slack = _TOLERANCE * values.max()
        for axis, what in ((1, "weights"), (2, "activations")):
            falls = (
                values.take(range(1, values.shape[axis]), axis)
                < values.take(range(values.shape[axis] - 1), axis) - slack
            ).any(axis=(1, 2))
            names = [name for name, fall in zip(table.layers, falls, strict=True) if fall]
            if names:
                warnings.warn(
                    f"device {backend.name!r}: {metric} falls as {what} get wider in {', '.join(names)}; "
                    "fewer bits are not always cheaper there.",
                    UserWarning,
                    stacklevel=3,
                )
