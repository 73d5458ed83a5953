"""What may be chosen: the precisions of a task, and which of them each layer may have."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from amed_env.errors import AllocationError
from amed_env.hardware.costs import nearest_choices
from amed_env.problem.allocation import BitAllocation, Precision, at_least
from amed_env.problem.objective import REFERENCE_BITS
from amed_env.problem.workload import Workload


class SearchSpace:
    """The allocations of a network that a task allows, by number and by name.

    Layers may choose from different precisions. The P precisions are those of all layers together and are numbered
    once; what a single layer may choose of them is in `choosable`.

    Args:
        workload: The layers; layers that share one choice are one layer here (see `problem.ties`).
        layer_choices: The precisions that each layer chooses from, at least one.
        runnable: The precisions that each layer can run at at all, whether it may choose them or not.
        separate: Whether weights and activations are chosen apart: then the precisions are all pairs of `bits`.
        activation_bits: One width for all activations, if there is one.
        pins: Precision by pinned layer.

    Attributes:
        layer_choices: As given, narrow ones first.
        pins: Precision by pinned layer.
        free_bits: Widths of weights that layers choose from which are not pinned, narrow ones first.
        bits: All widths, those of pinned layers and of activations included.
        precisions: The P choices, narrow ones first; with separate widths, activations vary fastest.
        choosable: What each layer may choose: bool (L, P); a pinned layer has a single choice.
        runnable: What each layer can run at: bool (L, P).
        free_choices: The numbers of the precisions from which some layer chooses that is not pinned.
    """

    def __init__(
        self,
        workload: Workload,
        layer_choices: Sequence[Collection[Precision]],
        runnable: Sequence[Collection[Precision]],
        *,
        separate: bool = False,
        activation_bits: int | None = None,
        pins: Mapping[str, Precision],
    ) -> None:
        self.workload, self.separate, self.activation_bits = workload, separate, activation_bits
        self.pins = dict(pins)
        self.layer_choices = tuple(tuple(sorted(of_layer)) for of_layer in layer_choices)
        named = zip(workload.layer_names, self.layer_choices, strict=True)
        free = {precision for name, of_layer in named if name not in self.pins for precision in of_layer}
        used = {precision for of_layer in self.layer_choices for precision in of_layer}
        self.free_bits = tuple(sorted({precision.weight_bits for precision in free or used}))
        self.bits = tuple(sorted({bits for precision in used for bits in precision}))
        grid = (Precision(w, a) for w in self.bits for a in self.bits)
        self.precisions: tuple[Precision, ...] = tuple(grid) if separate else tuple(sorted(used))
        self.choosable = self._mask(self.layer_choices)
        self.runnable = self._mask(runnable) | self.choosable
        self.free_choices = np.flatnonzero([precision in (free or used) for precision in self.precisions])

    @property
    def text(self) -> str:
        """What layers choose from, for messages: widths, or pairs where these differ."""
        if self.separate or all(p.activation_bits in (p.weight_bits, self.activation_bits) for p in self.precisions):
            return f"widths {', '.join(map(str, self.free_bits))}"
        return f"the pairs {', '.join(map(str, self.precisions))}"

    @property
    def differing_choices(self) -> dict[str, list[str]]:
        """What each layer that is not pinned chooses from, by name; empty where all of them choose from the same."""
        named = zip(self.workload.layer_names, self.layer_choices, strict=True)
        free = {name: choices for name, choices in named if name not in self.pins}
        if len(set(free.values())) < 2:
            return {}
        return {name: [str(precision) for precision in choices] for name, choices in free.items()}

    def _mask(self, of_layers: Sequence[Collection[Precision]]) -> npt.NDArray[np.bool_]:
        return np.array([[precision in of_layer for precision in self.precisions] for of_layer in of_layers])

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
        for allowed, (name, precision) in zip(self.layer_choices, allocation.items(), strict=True):
            if precision not in allowed:
                raise AllocationError(
                    f"layer {name!r} has {precision}, which is none of this task's choices for it: "
                    f"{', '.join(map(str, allowed))}."
                )
        return np.asarray([self._number_of[precision] for precision in allocation.values()], dtype=np.int64)

    @cached_property
    def _number_of(self) -> dict[Precision, int]:
        return {precision: number for number, precision in enumerate(self.precisions)}

    def uniform(self, bits: int) -> BitAllocation:
        """The same width for every layer that is not pinned, with the task's width of activations if it has one.

        A layer that cannot choose it has the next width instead, if others can; see `problem.allocation.at_least`. A
        width of weights that is no choice of any layer (32, for float) is taken as it is given: evaluators know more
        widths than a search chooses from.
        """
        wanted = Precision(bits, bits if self.activation_bits is None else self.activation_bits)
        if bits not in self.free_bits:
            return self.workload.uniform(*wanted).replace(self.pins)
        return self._uniform(wanted)

    def _uniform(self, wanted: Precision) -> BitAllocation:
        chosen = [at_least(wanted, of_layer) for of_layer in self.layer_choices]
        return BitAllocation(dict(zip(self.workload.layer_names, chosen, strict=True)))

    def uniform_widths(self) -> dict[int, BitAllocation]:
        """`uniform` by width of the weights, narrow ones first; of widths that come to the same the widest stands."""
        of_allocation = {self.uniform(bits): bits for bits in self.free_bits}
        return {bits: allocation for allocation, bits in of_allocation.items()}

    def uniform_choices(self, choice: int) -> npt.NDArray[np.int64]:
        """The same precision number for every layer, or what stands for it; see `uniform`: int64 (L,)."""
        return self.choices(self._uniform(self.precisions[choice]))

    def start_choices(self) -> npt.NDArray[np.int64]:
        """Uniform 8 bit, or what stands for it where layers cannot choose that: int64 (L,)."""
        return self.choices(self._uniform(Precision(REFERENCE_BITS, REFERENCE_BITS)))

    def nearest_choosable(self, choices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Choices in which what a layer may not choose is replaced by the nearest that it may: int64 (L,).

        Of two equally near ones the narrower is taken: it is the cheaper one on most devices.
        """
        requested = np.asarray(choices, dtype=np.int64)
        return self._nearest[np.arange(len(self.workload)), requested]

    @cached_property
    def _nearest(self) -> npt.NDArray[np.int64]:
        return nearest_choices(self.precisions, self.choosable)

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
