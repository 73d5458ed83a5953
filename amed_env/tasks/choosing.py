"""Which precisions the layers of a task choose from: what the device allows and the user leaves.

The user leaves widths (`bits`), one width for all activations, and pins. Without widths these are 2, 3, 4 and 8 bits,
for the weights at least, where the device allows a layer two of them; else all that it allows. Weights and activations
of a layer have the same width where the device allows that at every width which the layer's weights may have; where it
does not (weights of 4 bits run with activations of 8 only), the layer chooses from all pairs that are left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amed_env.errors import AllocationError, UnsupportedPrecisionError
from amed_env.hardware.choices import every_precision, layer_precisions
from amed_env.hardware.costs import backend_capabilities
from amed_env.hardware.protocol import HardwareBackend
from amed_env.problem.allocation import DEFAULT_BITS, Precision, check_bits
from amed_env.problem.pins import parse_pins
from amed_env.problem.workload import Layer, Workload
from amed_env.tasks.search_space import SearchSpace


@dataclass(frozen=True)
class Wishes:
    """What a user leaves of a device's precisions.

    Attributes:
        bits: Widths to choose from, narrow ones first; None for the default.
        separate: Whether weights and activations are chosen apart, so that every pair of widths counts.
        activation_bits: One width for all activations, so that those of weights alone are chosen; 32 leaves activations
            in float.
        pins: Precision by pinned layer.
        known: The only precisions whose quality is known, where it is looked up.
    """

    bits: tuple[int, ...] | None
    separate: bool
    activation_bits: int | None
    pins: Mapping[str, Precision]
    known: tuple[Precision, ...] | None = None

    @classmethod
    def of(
        cls,
        layers: Sequence[str],
        bits: Sequence[int] | None,
        separate: bool,
        activation_bits: int | None,
        pins: Mapping[str, Any] | Iterable[str] | None,
        known: tuple[Precision, ...] | None,
    ) -> Wishes:
        """Wishes as they are given to a task, checked; `layers` are the names of its layers.

        Raises:
            AllocationError: If widths or pins are malformed.
            UnknownNameError: If a pinned layer does not exist.
        """
        widths = None if bits is None else _check_widths(bits)
        return cls(widths, separate, _check_activation_bits(activation_bits, separate), parse_pins(pins, layers), known)

    def leaves(self, precision: Precision) -> bool:
        """Whether a precision is left to layers that are not pinned."""
        if self.known is not None and precision not in self.known:
            return False
        if self.activation_bits is not None:
            return precision.activation_bits == self.activation_bits and self._has(precision.weight_bits)
        return self._has(precision.weight_bits) and self._has(precision.activation_bits)

    def _has(self, bits: int) -> bool:
        return self.bits is None or bits in self.bits

    def choices(self, allowed: Collection[Precision]) -> tuple[Precision, ...]:
        """What a layer that is not pinned chooses from, of what the device allows it; see the module's text."""
        left = [precision for precision in allowed if self.leaves(precision)]
        if self.bits is None:
            left = _by_default(left, both=self.separate)
        tied = [precision for precision in left if precision.weight_bits == precision.activation_bits]
        apart = self.separate or self.activation_bits is not None
        if not apart and {p.weight_bits for p in tied} == {p.weight_bits for p in left}:
            left = tied
        return tuple(sorted(left))

    def usual(self, precision: Precision) -> bool:
        """Whether layers choose from a precision unless the device wants something else of them."""
        widths = DEFAULT_BITS if self.bits is None else self.bits
        if self.activation_bits is not None:
            return precision.weight_bits in widths
        tied = precision.weight_bits == precision.activation_bits
        return set(precision) <= set(widths) and (self.separate or tied)

    def text(self) -> str:
        """What is left, for messages."""
        parts = []
        if self.bits is not None:
            parts.append(f"widths {', '.join(map(str, self.bits))}")
        if self.activation_bits is not None:
            parts.append(f"activations of {self.activation_bits} bits")
        if self.known is not None:
            parts.append(f"the precisions of the task's table ({', '.join(map(str, self.known))})")
        return " and ".join(parts) or "every width"


def search_space(backend: HardwareBackend, workload: Workload, wishes: Wishes) -> SearchSpace:
    """The search space of a network on a device.

    Raises:
        UnsupportedPrecisionError: If a layer is left with no precision, or a width that was asked for is none of any
            layer.
    """
    allowed = _allowed(backend, workload, wishes)
    chosen = []
    for layer, of_layer in zip(workload, allowed, strict=True):
        pinned = wishes.pins.get(layer.name)
        choices = wishes.choices(of_layer) if pinned is None else tuple(p for p in of_layer if p == pinned)
        if not choices:
            raise _nothing_left(backend, workload, layer, wishes)
        chosen.append(choices)
    _check_widths_are_used(backend, workload, wishes, allowed)
    return SearchSpace(
        workload,
        chosen,
        allowed,
        separate=wishes.separate,
        activation_bits=wishes.activation_bits,
        pins=wishes.pins,
    )


def _allowed(backend: HardwareBackend, workload: Workload, wishes: Wishes) -> list[tuple[Precision, ...]]:
    """What each layer can run at, of what can matter.

    Asking a device may be slow, so it is asked first about what most layers of most devices choose from, and about the
    rest only where a layer needs it.
    """
    pinned = set(wishes.pins.values())
    asked = [p for p in every_precision(backend, workload) if wishes.leaves(p) or p in pinned]
    first = [precision for precision in asked if wishes.usual(precision) or precision in pinned]
    allowed = layer_precisions(backend, workload, first)
    capabilities = backend_capabilities(backend)
    for layer, of_layer in zip(workload, allowed, strict=True):
        possible = [p for p in asked if capabilities.runs(layer.kind, p) and wishes.leaves(p)]
        if layer.name not in wishes.pins and wishes.choices(of_layer) != wishes.choices(possible):
            break
    else:
        return list(allowed)
    rest = layer_precisions(backend, workload, [precision for precision in asked if precision not in first])
    return [(*one, *other) for one, other in zip(allowed, rest, strict=True)]


def _nothing_left(
    backend: HardwareBackend, workload: Workload, layer: Layer, wishes: Wishes
) -> UnsupportedPrecisionError:
    here = f"device {backend.name!r} cannot run layer {layer.name!r} ({layer.kind})"
    every = layer_precisions(backend, workload, every_precision(backend, workload))
    allowed = every[workload.layer_names.index(layer.name)]
    if not allowed:
        return UnsupportedPrecisionError(f"{here}: it has no support for kind {layer.kind!r}.")
    listed = ", ".join(map(str, allowed))
    pinned = wishes.pins.get(layer.name)
    if pinned is not None:
        return UnsupportedPrecisionError(f"{here} at {pinned}, to which it is pinned; it supports {listed}.")
    return UnsupportedPrecisionError(
        f"{here} at what is left to choose from: it supports {listed}, and {wishes.text()} leave none of these."
    )


def _check_widths_are_used(
    backend: HardwareBackend, workload: Workload, wishes: Wishes, allowed: Sequence[Collection[Precision]]
) -> None:
    """A width that was asked for and that no layer can have is a mistake, and not just left out."""
    if wishes.bits is None:
        return
    left = {precision for of_layer in allowed for precision in of_layer if wishes.leaves(precision)}
    used = {bits for precision in left for bits in precision[: 1 if wishes.activation_bits is not None else 2]}
    unused = [bits for bits in wishes.bits if bits not in used]
    if unused and len(wishes.pins) < len(workload):
        activation_bits = unused[0] if wishes.activation_bits is None else wishes.activation_bits
        wanted = Precision(unused[0], activation_bits)
        backend_capabilities(backend).require(workload.layers[0], wanted, backend.name)
        raise UnsupportedPrecisionError(
            f"device {backend.name!r} runs no layer of {workload.name!r} at {unused[0]} bits; leave that width out."
        )


def _by_default(left: list[Precision], both: bool) -> list[Precision]:
    """Precisions of the default widths, of weights or of both operands; all of them where these leave no choice."""
    of_default = [p for p in left if set(p if both else p[:1]) <= set(DEFAULT_BITS)]
    return of_default if len({p.weight_bits for p in of_default}) > 1 else left


def _check_activation_bits(bits: int | None, separate: bool) -> int | None:
    if bits is None:
        return None
    if separate:
        raise AllocationError("activation_bits is one width for all activations; leave it out, or leave separate out.")
    return check_bits(bits, "activation_bits")


def _check_widths(bits: Sequence[int]) -> tuple[int, ...]:
    plain = [int(width) if isinstance(width, np.integer) else width for width in bits]
    widths = tuple(check_bits(width, "widths to choose from") for width in plain)
    if len(widths) < 2 or len(set(widths)) != len(widths):
        raise AllocationError(f"widths to choose from are {widths}; give at least two different ones.")
    return tuple(sorted(widths))
