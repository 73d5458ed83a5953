"""What may be chosen: the precisions of a task, and which of them each layer may have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from amed_env.errors import AllocationError
from amed_env.problem.allocation import BitAllocation, Precision, check_bits
from amed_env.problem.objective import REFERENCE_BITS
from amed_env.problem.pins import parse_pins
from amed_env.problem.workload import Workload


class SearchSpace:
    """The allocations of a network that a task allows, by number and by name.

    Args:
        workload: The layers; layers that share one choice are one layer here (see `problem.ties`).
        bits: Widths to choose from.
        separate: Whether weights and activations are chosen apart; otherwise both get the same width.
        activation_bits: One width for all activations, so that those of weights alone are chosen; 32 leaves activations
            in float.
        pins: Layers that keep a width; see `problem.pins.parse_pins`.

    Attributes:
        free_bits: Widths that layers choose from which are not pinned, narrow ones first.
        bits: These, the widths of pinned layers, and that of all activations.
        pins: Precision by pinned layer.

    Raises:
        AllocationError: If widths or pins are malformed.
        UnknownNameError: If a pinned layer does not exist.
    """

    def __init__(
        self,
        workload: Workload,
        bits: Sequence[int],
        *,
        separate: bool = False,
        activation_bits: int | None = None,
        pins: Mapping[str, Any] | Iterable[str] | None = None,
    ) -> None:
        self.workload, self.separate = workload, separate
        self.free_bits = _check_widths(bits)
        self.pins = parse_pins(pins, workload.layer_names)
        self.activation_bits = _check_activation_bits(activation_bits, separate)
        fixed = [width for pinned in self.pins.values() for width in pinned]
        if self.activation_bits is not None:
            fixed.append(self.activation_bits)
        self.bits = tuple(sorted({*self.free_bits, *fixed}))

    @cached_property
    def precisions(self) -> tuple[Precision, ...]:
        """The P choices, narrow ones first; with separate widths, activations vary fastest. See `choosable`."""
        if self.separate:
            return tuple(Precision(w, a) for w in self.bits for a in self.bits)
        return tuple(sorted({*map(self._tied_precision, self.free_bits), *self.pins.values()}))

    def _tied_precision(self, bits: int) -> Precision:
        """A width of weights, with the width of activations that goes with it where they are not chosen apart."""
        return Precision(bits, bits if self.activation_bits is None else self.activation_bits)

    @cached_property
    def free_choices(self) -> npt.NDArray[np.int64]:
        """The numbers of the precisions from which layers that are not pinned choose, narrow ones first."""
        widths = self.free_bits
        if self.separate:
            free = {Precision(w, a) for w in widths for a in widths}
        else:
            free = set(map(self._tied_precision, widths))
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

    def allocation(self, choices: Iterable[int]) -> BitAllocation:
        """The allocation that gives layer i the precision number `choices[i]`."""
        pairs = zip(self.workload.layer_names, choices, strict=True)
        return BitAllocation({name: self.precisions[int(choice)] for name, choice in pairs})

    def choices(self, allocation: BitAllocation) -> npt.NDArray[np.int64]:
        """The number of each layer's precision among `precisions`: int64 (L,).

        Raises:
            AllocationError: If a precision is not one that the layer may choose.
        """
        allocation = allocation.require_layers(self.workload.layer_names, f"network {self.workload.name!r}")
        for choosable, (name, precision) in zip(self.choosable, allocation.items(), strict=True):
            allowed = [self.precisions[choice] for choice in np.flatnonzero(choosable)]
            if precision not in allowed:
                raise AllocationError(
                    f"layer {name!r} has {precision}, which is none of this task's choices for it: "
                    f"{', '.join(map(str, allowed))}."
                )
        return np.asarray([self.precisions.index(precision) for precision in allocation.values()], dtype=np.int64)

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

        Of two equally near ones the narrower is taken: it is the cheaper one on most devices.
        """
        requested = np.asarray(choices, dtype=np.int64)
        widths = np.asarray(self.precisions, dtype=np.float64)
        distance = np.abs(widths[requested][:, None] - widths).sum(axis=2)
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
