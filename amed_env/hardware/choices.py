"""What the layers of a network can run at on a device, and the allocation that relative costs refer to."""

from __future__ import annotations

from collections.abc import Sequence

from amed_env.errors import BackendError, UnsupportedPrecisionError
from amed_env.hardware.costs import backend_capabilities, call_device, with_retries
from amed_env.hardware.protocol import HardwareBackend
from amed_env.problem.allocation import BitAllocation, Precision, at_least
from amed_env.problem.objective import REFERENCE_BITS
from amed_env.problem.workload import Workload


def layer_precisions(
    backend: HardwareBackend, workload: Workload, precisions: Sequence[Precision]
) -> tuple[tuple[Precision, ...], ...]:
    """What each layer of a network can run at, checked; see `HardwareBackend.allowed_precisions`.

    Args:
        backend: The device.
        workload: The network.
        precisions: The precisions that matter.

    Returns:
        For every layer those of the precisions that it can run at, in their order.

    Raises:
        BackendError: If the device fails, or answers something else.
    """
    capabilities = backend_capabilities(backend)

    def answer() -> list[set[tuple[int, ...]]]:
        allowed = backend.allowed_precisions(workload, tuple(precisions))
        return [{tuple(precision) for precision in of_layer} for of_layer in allowed]

    answered = with_retries(backend, lambda: call_device(backend, "allowed_precisions()", workload, answer), None)
    if len(answered) != len(workload):
        raise BackendError(
            f"device {backend.name!r}: allowed_precisions() answered for {len(answered)} layers, but network "
            f"{workload.name!r} has {len(workload)}."
        )
    found = []
    for layer, of_layer in zip(workload, answered, strict=True):
        # Never more than what the capabilities say, by which every evaluation is checked.
        possible = of_layer.intersection(capabilities.precisions(layer.kind))
        found.append(tuple(precision for precision in precisions if precision in possible))
    return tuple(found)


def every_precision(backend: HardwareBackend, workload: Workload) -> tuple[Precision, ...]:
    """All precisions that a device has for some kind of layer of a network, narrow ones first."""
    capabilities = backend_capabilities(backend)
    kinds = {layer.kind for layer in workload}
    return tuple(sorted({precision for kind in kinds for precision in capabilities.precisions(kind)}))


def reference_allocation(backend: HardwareBackend, workload: Workload) -> BitAllocation:
    """What relative costs are factors of: uniform 8 bit, and for layers that cannot run at that what stands for it.

    Raises:
        UnsupportedPrecisionError: If the device can run a layer at no precision.
        BackendError: If the device fails to say.
    """
    reference = Precision(REFERENCE_BITS, REFERENCE_BITS)
    chosen = layer_precisions(backend, workload, (reference,))
    if not all(chosen):
        everything = layer_precisions(backend, workload, every_precision(backend, workload))
        for layer, of_layer in zip(workload, everything, strict=True):
            if not of_layer:
                raise UnsupportedPrecisionError(
                    f"device {backend.name!r} cannot run layer {layer.name!r} ({layer.kind}) at any precision."
                )
        chosen = tuple((at_least(reference, of_layer),) for of_layer in everything)
    return BitAllocation({name: of_layer[0] for name, of_layer in zip(workload.layer_names, chosen, strict=True)})
