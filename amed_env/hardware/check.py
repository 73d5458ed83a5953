"""The conformance test of devices: whether a backend keeps the promises that the package relies on."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import permutations

import numpy as np
import numpy.typing as npt

from amed_env.errors import AllocationError, AmedError, BackendError, UnsupportedPrecisionError
from amed_env.hardware.choices import every_precision, layer_precisions
from amed_env.hardware.costs import (
    backend_capabilities,
    call_device,
    evaluate_cost,
    evaluate_costs,
    lower_bounds,
    precision_costs,
)
from amed_env.hardware.metrics import METRIC_UNITS
from amed_env.hardware.protocol import Capabilities, Cost, HardwareBackend
from amed_env.problem.allocation import FLOAT_BITS, MAX_BITS, BitAllocation, Precision
from amed_env.problem.workload import KINDS, Layer, Workload
from amed_env.support.text import shortened

_SAMPLE = (
    Layer("conv", "conv", m=64, n=16, k=27, kernel=(3, 3)),
    Layer("depthwise", "depthwise", m=64, n=1, k=9, groups=16, kernel=(3, 3)),
    Layer("pointwise", "conv", m=64, n=32, k=16),
    Layer("linear", "linear", m=1, n=10, k=32),
    Layer("matmul", "matmul", m=8, n=8, k=16),
)
_TOLERANCE = 1e-9  # sums of floats depend on their order

Check = Callable[[HardwareBackend, Capabilities, Workload], None]


def check_hardware(backend: HardwareBackend, workload: Workload | None = None) -> tuple[str, ...]:
    """Test that a backend conforms to the contract of `HardwareBackend`.

    It is evaluated at mixed and at uniform widths of every kind that it supports. Costs that fall as bits
    rise are reported as a `UserWarning`: real devices do that. `amed_env.testing.HardwareConformance` has the same
    checks as a class of tests.

    Args:
        backend: The device.
        workload: A network to test with; by default the device's own `sample_workload`, or a small one with every kind
            of layer that the device supports.

    Returns:
        Names of the checks that passed.

    Raises:
        BackendError: If something fails; all failures are listed.
    """
    workload = conformance_workload(backend, workload)
    passed, failed = run_checks(backend, workload)
    if failed:
        listing = "\n".join(f"- {name}: {failure}" for name, failure in failed.items())
        raise BackendError(f"device {backend.name!r} fails {len(failed)} of {len(CHECKS)} checks:\n{listing}")
    warn_if_not_monotone(backend, backend_capabilities(backend), workload)
    return passed


def run_checks(backend: HardwareBackend, workload: Workload) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names of the checks that pass, and of those that fail with the reason."""
    capabilities = backend_capabilities(backend)
    passed, failed = [], {}
    for name, check in CHECKS.items():
        try:
            check(backend, capabilities, workload)
            passed.append(name)
        except (BrokenPromiseError, AmedError) as failure:
            failed[name] = str(failure)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    return tuple(passed), failed


def conformance_workload(backend: HardwareBackend, workload: Workload | None = None) -> Workload:
    """The network that a device is tested with: the given one, the device's own, or the package's.

    Raises:
        BackendError: If the device supports no kind of layer, or says so of a kind that does not exist.
        UnsupportedPrecisionError: If it does not support a kind of layer of the network.
    """
    capabilities = backend_capabilities(backend)
    _require_kinds(backend, capabilities)
    if workload is None:
        workload = call_device(backend, "sample_workload()", None, backend.sample_workload)
    if workload is not None:
        for layer in workload:
            if not capabilities.precisions(layer.kind):
                raise UnsupportedPrecisionError(
                    f"device {backend.name!r} supports no layers of kind {layer.kind!r}, such as {layer.name!r} of "
                    f"network {workload.name!r}; check it with layers that it supports."
                )
        return workload
    layers = tuple(layer for layer in _SAMPLE if capabilities.precisions(layer.kind))
    if not layers:
        raise BackendError(f"device {backend.name!r} supports no kind of layer; declare some in capabilities().")
    return Workload("conformance", layers)


def _require_kinds(backend: HardwareBackend, capabilities: Capabilities) -> None:
    for field in ("weight_bits", "activation_bits", "pairs"):
        by_kind = getattr(capabilities, field)
        if by_kind is None and field == "pairs":
            continue
        if not isinstance(by_kind, Mapping):
            raise BackendError(
                f"device {backend.name!r}: {field} of capabilities() is {shortened(by_kind)}, expected a mapping of "
                "kinds of layers."
            )
        unknown = [kind for kind in by_kind if kind not in KINDS]
        if unknown:
            raise BackendError(
                f"device {backend.name!r}: {field} of capabilities() has the kind {shortened(unknown[0])}, which no "
                f"layer has; kinds are {', '.join(KINDS)}."
            )


class BrokenPromiseError(AssertionError):
    """A promise that is not kept; becomes a line of the report, or a failing test."""


def _allowed(backend: HardwareBackend, workload: Workload) -> tuple[tuple[Precision, ...], ...]:
    """What each layer can run at, narrow ones first.

    Raises:
        BrokenPromiseError: If a layer can run at nothing.
    """
    allowed = layer_precisions(backend, workload, every_precision(backend, workload))
    for layer, of_layer in zip(workload, allowed, strict=True):
        if not of_layer:
            raise BrokenPromiseError(f"layer {layer.name!r} ({layer.kind}) can run at no precision.")
    return allowed


def _allocations(backend: HardwareBackend, workload: Workload) -> Iterator[BitAllocation]:
    """The narrowest, the widest, and one with neighbouring layers at different widths."""
    choices = list(zip(workload.layer_names, _allowed(backend, workload), strict=True))
    yield BitAllocation({name: precisions[0] for name, precisions in choices})
    yield BitAllocation({name: precisions[-1] for name, precisions in choices})
    yield BitAllocation({name: p[(i * (len(p) // 2 + 1)) % len(p)] for i, (name, p) in enumerate(choices)})


def _check_units(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    if not capabilities.metrics:
        raise BrokenPromiseError("no metric is declared; declare at least latency_ms.")
    for metric, unit in capabilities.metrics.items():
        if not isinstance(unit, str) or not unit:
            raise BrokenPromiseError(f"metric {metric!r} has no unit.")
        if METRIC_UNITS.get(metric, unit) != unit:
            raise BrokenPromiseError(f"metric {metric!r} is in {METRIC_UNITS[metric]} everywhere, not in {unit}.")


def _check_costs(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    for allocation in _allocations(backend, workload):
        evaluate_cost(backend, workload, allocation)


def _check_sum(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    if not capabilities.additive:
        return
    for allocation in _allocations(backend, workload):
        cost = evaluate_cost(backend, workload, allocation)
        for metric in capabilities.metrics if cost.layers else ():
            _require_close(cost[metric], math.fsum(layer.metrics[metric] for layer in cost.layers), metric, allocation)


def _check_table(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    if not (capabilities.additive and capabilities.deterministic):
        return
    precisions, runnable = _runnable(backend, workload)
    table = precision_costs(backend, workload, precisions, runnable)
    for allocation in _allocations(backend, workload):
        choices = [precisions.index(precision) for precision in allocation.values()]
        cost = evaluate_cost(backend, workload, allocation)
        for metric in capabilities.metrics:
            total = math.fsum(table[metric][row, choice] for row, choice in enumerate(choices))
            _require_close(cost[metric], total, metric, allocation)


def _check_many(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    if not capabilities.deterministic:
        return
    allocations = list(_allocations(backend, workload))
    for allocation, cost in zip(allocations, evaluate_costs(backend, workload, allocations), strict=True):
        _require_equal(evaluate_cost(backend, workload, allocation), cost, allocation)


def _check_lower_bound(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    if capabilities.additive:
        return
    precisions, runnable = _runnable(backend, workload)
    bounds = lower_bounds(backend, workload, precisions, runnable)
    everywhere = [precisions[column] for column in np.flatnonzero(runnable.all(axis=0))]
    for allocation in (*_allocations(backend, workload), *(workload.uniform(*precision) for precision in everywhere)):
        choices = [precisions.index(precision) for precision in allocation.values()]
        cost = evaluate_cost(backend, workload, allocation)
        for metric, values in bounds.items():
            least = math.fsum(values[row, choice] for row, choice in enumerate(choices))
            if metric in cost.metrics and least > cost[metric] * (1 + _TOLERANCE):
                raise BrokenPromiseError(
                    f"lower_bound() says that {metric} of {allocation.key()} is at least {least}, evaluate() "
                    f"{cost[metric]}."
                )


def _check_deterministic(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    if not capabilities.deterministic:
        return
    allocations = list(_allocations(backend, workload))
    first = [evaluate_cost(backend, workload, allocation) for allocation in allocations]
    # Backwards, so that a backend that remembers its last call is found out.
    second = [evaluate_cost(backend, workload, allocation) for allocation in reversed(allocations)][::-1]
    for allocation, one, two in zip(allocations, first, second, strict=True):
        _require_equal(one, two, allocation)


def _check_pickle(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    copy = pickle.loads(pickle.dumps(backend))
    if not capabilities.deterministic:
        return
    for allocation in _allocations(backend, workload):
        _require_equal(
            evaluate_cost(backend, workload, allocation), evaluate_cost(copy, workload, allocation), allocation
        )


def _check_refusal(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    layer = workload.layers[0]
    alone = Workload("refusal", (layer,))
    supported = capabilities.precisions(layer.kind)
    widest = supported[-1]
    every_width = (*range(1, MAX_BITS + 1), FLOAT_BITS)
    trials: list[tuple[Workload, Layer, Precision]] = []
    for field in ("weight_bits", "activation_bits"):
        others = [widest._replace(**{field: bits}) for bits in every_width]
        unsupported = [precision for precision in others if precision not in supported]
        if unsupported:
            trials.append((alone, layer, unsupported[-1]))
    for other in _SAMPLE:
        if not capabilities.precisions(other.kind):
            trials.append((Workload("refusal", (other,)), other, widest))
    for network, refused, precision in trials:
        _require_refused(backend, network, network.uniform(*precision), refused, "capabilities() excludes")
    precisions, runnable = _runnable(backend, workload)
    base = next(_allocations(backend, workload))
    for row, column in np.argwhere(~runnable)[:1]:
        refused, precision = workload.layers[row], precisions[column]
        allocation = base.replace({refused.name: precision})
        _require_refused(backend, workload, allocation, refused, "allowed_precisions() excludes")


def _require_refused(
    backend: HardwareBackend, workload: Workload, allocation: BitAllocation, layer: Layer, why: str
) -> None:
    try:
        backend.evaluate(workload, allocation)
    except UnsupportedPrecisionError:
        return
    raise BrokenPromiseError(
        f"evaluate() accepts a {layer.kind} layer at {allocation[layer.name]}, which {why}; raise "
        "UnsupportedPrecisionError (Capabilities.require does)."
    )


def _check_unknown_layers(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    wrong = BitAllocation({f"{layer.name} of another": capabilities.precisions(layer.kind)[0] for layer in workload})
    try:
        backend.evaluate(workload, wrong)
    except AllocationError:
        pass
    else:
        raise BrokenPromiseError(
            "evaluate() accepts an allocation of other layers; raise AllocationError (require_layers does)."
        )
    kind = workload.layers[0].kind
    strange = Workload(
        "unknown", (Layer("a layer that no table has", kind, m=7, n=1 if kind == "depthwise" else 3, k=5, groups=1),)
    )
    try:
        evaluate_cost(backend, strange, strange.uniform(*capabilities.precisions(kind)[0]))
    except UnsupportedPrecisionError:
        return
    except AmedError as error:
        raise BrokenPromiseError(
            f"a layer that it may not know ends in {type(error).__name__}: {error} Raise UnsupportedLayerError."
        ) from error


def _runnable(backend: HardwareBackend, workload: Workload) -> tuple[tuple[Precision, ...], npt.NDArray[np.bool_]]:
    """The P precisions that some layer can run at, narrow ones first, and which layer can: bool (L, P)."""
    allowed = _allowed(backend, workload)
    precisions = tuple(sorted({precision for of_layer in allowed for precision in of_layer}))
    return precisions, np.array([[precision in of_layer for precision in precisions] for of_layer in allowed])


def _require_close(total: float, expected: float, metric: str, allocation: BitAllocation) -> None:
    if not math.isclose(total, expected, rel_tol=_TOLERANCE, abs_tol=0.0):
        raise BrokenPromiseError(
            f"{metric} of {allocation.key()} is {total} by evaluate(), {expected} as a sum over layers."
        )


def _require_equal(one: Cost, two: Cost, allocation: BitAllocation) -> None:
    for metric in one.metrics:
        if one[metric] != two.metrics.get(metric):
            raise BrokenPromiseError(
                f"{metric} of {allocation.key()} is {one[metric]}, then {two.metrics.get(metric)}."
            )


def warn_if_not_monotone(backend: HardwareBackend, capabilities: Capabilities, workload: Workload) -> None:
    """Warn of layers that get cheaper as bits rise, in one operand or, where widths are tied, in both."""
    if not (capabilities.additive and capabilities.deterministic):
        return
    precisions, runnable = _runnable(backend, workload)
    table = precision_costs(backend, workload, precisions, runnable)
    tied = all(precision.weight_bits == precision.activation_bits for precision in precisions)
    steps: dict[str, list[tuple[int, int]]] = {}
    if tied:
        steps["weights and activations"] = [(i, i + 1) for i in range(len(precisions) - 1)]
    else:
        for operands, axis in (("weights", 0), ("activations", 1)):
            steps[operands] = []
            for narrow, wide in permutations(range(len(precisions)), 2):
                is_wider = precisions[narrow][axis] < precisions[wide][axis]
                if is_wider and precisions[narrow][1 - axis] == precisions[wide][1 - axis]:
                    steps[operands].append((narrow, wide))
    # A warning and no failure: real devices are so (depthwise int8 kernels slower than float ones).
    for metric in capabilities.metrics:
        values = table[metric]
        slack = _TOLERANCE * values.max()
        for operands, pairs in steps.items():
            falls = np.zeros(len(workload), dtype=bool)
            for narrow, wide in pairs:
                both = runnable[:, narrow] & runnable[:, wide]
                falls |= both & (values[:, wide] < values[:, narrow] - slack)
            if falls.any():
                names = [workload.layer_names[row] for row in np.flatnonzero(falls)]
                warnings.warn(
                    f"device {backend.name!r}: {metric} falls as {operands} get wider in {', '.join(names)}; "
                    "fewer bits are not always cheaper there.",
                    UserWarning,
                    stacklevel=3,
                )


CHECKS: dict[str, Check] = {
    "declared metrics have units": _check_units,
    "costs are finite, complete and not negative": _check_costs,
    "totals are the sum over the layers": _check_sum,
    "the table equals evaluate": _check_table,
    "many answers equal single ones": _check_many,
    "lower bounds are not above the costs": _check_lower_bound,
    "equal calls give equal answers": _check_deterministic,
    "it can be pickled": _check_pickle,
    "unsupported widths and kinds are refused": _check_refusal,
    "unknown layers are refused or costed": _check_unknown_layers,
}
"""The checks by what they promise; each raises where the promise is broken."""
