"""Layers that share one choice of precision, seen as one: a smaller problem in which every choice is free.

Ties shorten a network's list of decisions (a shortcut gets the widths of the convolution that it is added to). Masks,
agents and repairs would all have to know of them; instead the tied layers become one layer of a smaller workload, and a
device is asked about the network behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from amed_env.errors import AllocationError, UnknownNameError, WorkloadError
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.workload import Layer, Workload


@dataclass(frozen=True)
class Ties:
    """Groups of layers of a network, each with one precision.

    Attributes:
        full: The network's own layers.
        groups: Names of the tied layers, in network order; every layer is in exactly one group.
    """

    full: Workload
    groups: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, workload: Workload, tied: Iterable[Sequence[str]] = ()) -> Ties:
        """Groups from those that have several layers; every other layer is a group by itself.

        Args:
            workload: The network's layers.
            tied: Names of layers that share a choice; the first in network order decides the group's position.

        Raises:
            UnknownNameError: If there is no such layer.
            WorkloadError: If a layer is in two groups.
        """
        group_of: dict[str, tuple[str, ...]] = {}
        for names in tied:
            for name in names:
                if name not in workload.layer_names:
                    raise UnknownNameError("layer to tie", name, workload.layer_names)
            group = tuple(name for name in workload.layer_names if name in names)
            for name in names:
                if name in group_of:
                    raise WorkloadError(f"layer {name!r} is tied twice; name it in one group only.")
                group_of[name] = group
        return cls(workload, tuple(dict.fromkeys(group_of.get(name, (name,)) for name in workload.layer_names)))

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each group: those of its layers, joined by `+`."""
        return tuple("+".join(group) for group in self.groups)

    @property
    def trivial(self) -> bool:
        """Whether no layers are tied."""
        return len(self.groups) == len(self.full)

    def reduced(self) -> Workload:
        """The workload that has one layer for each group."""
        layers = {layer.name: layer for layer in self.full}
        merged = []
        for name, group in zip(self.names, self.groups, strict=True):
            merged.append(_merged(name, [layers[member] for member in group]))
        return Workload(self.full.name, tuple(merged))

    def expand(self, allocation: BitAllocation) -> BitAllocation:
        """The allocation of all layers of an allocation of the groups.

        Raises:
            AllocationError: If it does not have exactly the groups.
        """
        allocation = allocation.require_layers(self.names, f"network {self.full.name!r} with tied layers")
        chosen = {}
        for name, group in zip(self.names, self.groups, strict=True):
            chosen.update(dict.fromkeys(group, allocation[name]))
        return BitAllocation({name: chosen[name] for name in self.full.layer_names})

    def reduce(self, allocation: BitAllocation) -> BitAllocation:
        """The allocation of the groups of an allocation of all layers.

        Raises:
            AllocationError: If it does not have exactly the network's layers, or if tied layers differ.
        """
        allocation = allocation.require_layers(self.full.layer_names, f"network {self.full.name!r}")
        for group in self.groups:
            for name in group[1:]:
                if allocation[name] != allocation[group[0]]:
                    raise AllocationError(
                        f"layers {group[0]!r} and {name!r} are tied in this task but have {allocation[group[0]]} and "
                        f"{allocation[name]}; give them the same precision."
                    )
        return BitAllocation({name: allocation[group[0]] for name, group in zip(self.names, self.groups, strict=True)})


def _merged(name: str, layers: list[Layer]) -> Layer:
    """One layer with the work and the weights of several.

    A shortcut is added to what another layer returns, so together they are one product whose sum is as long as both.

    Raises:
        WorkloadError: If the layers do not have the same output.
    """
    first = layers[0]
    if len(layers) == 1:
        return first
    alike = {(layer.m, layer.n, layer.groups) for layer in layers}
    if len(alike) > 1:
        raise WorkloadError(
            f"layers {', '.join(repr(layer.name) for layer in layers)} cannot be tied: they have different numbers of "
            "output pixels, filters or groups."
        )
    return Layer(
        name,
        first.kind,
        m=first.m,
        n=first.n,
        k=sum(layer.k for layer in layers),
        groups=first.groups,
        input_elements=sum(layer.input_elements for layer in layers),
        weight_elements=sum(layer.weight_elements for layer in layers),
        output_elements=first.output_elements,
        kernel=first.kernel,
        stride=first.stride,
    )
