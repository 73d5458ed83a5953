"""Tables of costs: what every layer of one network costs at every precision, as a device."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from amed_env.errors import BackendError, DeviceError, UnsupportedLayerError, UnsupportedPrecisionError
from amed_env.hardware.choices import layer_precisions
from amed_env.hardware.costs import backend_capabilities, precision_costs
from amed_env.hardware.protocol import Capabilities, Cost, CostTable, HardwareBackend, LayerCost, require_allowed
from amed_env.problem.allocation import FLOAT_BITS, BitAllocation, Precision
from amed_env.problem.workload import KINDS, Layer, Workload
from amed_env.support.text import first_few, repeated

FloatArray = npt.NDArray[np.float64]
Interpolation = Literal["none", "linear"]


@dataclass(frozen=True)
class LookupTable:
    """Costs of L layers at P precisions.

    Attributes:
        where: File or other origin, for messages.
        layers: Names of the layers, or None where they are known by their position alone.
        precisions: The P precisions that some layer has.
        metrics: Metric name to float64 array of shape (L, P), NaN where the layer cannot run at the precision.
        units: Metric name to unit.
        original_names: Names that the layers had when the table was made, by name, where they were changed.
        provenance: Where the numbers come from: `device`, `network`, `workload` (a digest of its shapes) and so on.

    Raises:
        DeviceError: If shapes do not agree, a precision or a layer is repeated, a number is negative or infinite, or
            is missing although the layer has another metric at that precision, or a layer has no precision.
    """

    where: str
    layers: tuple[str, ...] | None
    precisions: tuple[Precision, ...]
    metrics: Mapping[str, FloatArray]
    units: Mapping[str, str]
    provenance: Mapping[str, str] = field(default_factory=dict)
    original_names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.metrics or not self.precisions or not len(self):
            raise DeviceError(f"{self.where}: the table is empty.")
        if self.layers is not None and "" in self.layers:
            raise DeviceError(f"{self.where}: layer number {self.layers.index('')} has no name.")
        for axis, names in (("layer", self.layers or ()), ("precision", self.precisions)):
            twice = repeated(map(str, names))
            if twice:
                raise DeviceError(f"{self.where}: {axis} {first_few(twice)} is repeated.")
        for metric, values in self.metrics.items():
            if values.ndim != 2 or values.shape != (len(self), len(self.precisions)):
                raise DeviceError(
                    f"{self.where}: {metric} has shape {values.shape}, expected {(len(self), len(self.precisions))}."
                )
            wrong = np.argwhere(np.where(self.runnable, ~np.isfinite(values) | (values < 0), False))
            if len(wrong):
                row, column = wrong[0]
                raise DeviceError(
                    f"{self.where}: {metric} of layer {self.layer_name(row)} at {self.precisions[column]} is "
                    f"{values[row, column]}, expected a finite number that is not negative."
                )

        empty = np.flatnonzero(~self.runnable.any(axis=1))
        if len(empty):
            raise DeviceError(f"{self.where}: layer {self.layer_name(int(empty[0]))} has no precision.")

    @cached_property
    def runnable(self) -> npt.NDArray[np.bool_]:
        """At which precisions each layer has costs: bool (L, P)."""
        first = next(iter(self.metrics.values()))
        return np.asarray(np.any([~np.isnan(v) for v in self.metrics.values() if v.shape == first.shape], axis=0))

    def __len__(self) -> int:
        return len(self.layers) if self.layers is not None else len(next(iter(self.metrics.values())))

    def layer_name(self, row: int) -> str:
        """A layer in a message: its name, or its number."""
        return repr(self.layers[row]) if self.layers is not None else f"number {row}"


class TableBackend(HardwareBackend):
    """A table as a device; it knows the layers of one network and nothing else.

    Layers are matched by name where the table has names, otherwise by position. A network whose layers are not exactly
    those of the table is refused, as is one of other shapes than the table was made for, where it says so.

    Args:
        table: The table.
        name: Name of the device; by default that of the file.
        description: One line; by default where the numbers come from.
        interpolation: `linear` also answers for integer widths up to 16 between those of the table, along a grid of
            weights and activations or along equal widths; every such layer has the bound `interpolated`.
    """

    def __init__(
        self,
        table: LookupTable,
        name: str | None = None,
        description: str | None = None,
        interpolation: Interpolation = "none",
    ) -> None:
        self.lookup, self.interpolation = table, interpolation
        self.name = name or table.provenance.get("device", "table")
        origin = ", ".join(f"{key} {value}" for key, value in table.provenance.items() if key in ("device", "network"))
        self.description = description or f"Table of costs from {origin or table.where}"
        if interpolation != "none":
            self.description += f"; {interpolation} interpolation between its widths"
        self.metrics: Mapping[str, str] = dict(table.units)
        self._columns = {precision: column for column, precision in enumerate(table.precisions)}
        self._offered = self._offer()
        self._weights, self._activations = map(tuple, precision_axes(self._offered))
        self.bits = tuple(sorted({*self._weights, *self._activations}))
        self._is_grid = len(self._offered) == len(self._weights) * len(self._activations)

    def __repr__(self) -> str:
        return f"TableBackend({self.lookup.where!r}, {len(self.lookup)} layers)"

    def _offer(self) -> tuple[Precision, ...]:
        """Every precision that can be answered."""
        listed = self.lookup.precisions
        if self.interpolation == "none":
            return listed
        if not self.lookup.runnable.all():
            raise DeviceError(
                f"{self.lookup.where}: its layers have different precisions, so nothing can be interpolated between "
                "them; leave the option out."
            )
        weights, activations = precision_axes(listed)
        if all(p.weight_bits == p.activation_bits for p in listed):
            return tuple(Precision(bits, bits) for bits in _between(weights))
        if len(listed) != len(weights) * len(activations):
            raise DeviceError(
                f"{self.lookup.where}: it can be interpolated only with all pairs of its widths, or with equal widths "
                "of weights and activations; leave the option out, or add the missing rows."
            )
        return tuple(Precision(*pair) for pair in product(_between(weights), _between(activations)))

    def capabilities(self) -> Capabilities:
        """Every kind of layer at the precisions of the table, and at those between them if that was asked for."""
        pairs = None if self._is_grid else dict.fromkeys(KINDS, tuple(tuple(pair) for pair in self._offered))
        return Capabilities.same_for_kinds(KINDS, self._weights, self._activations, self.metrics, pairs=pairs)

    def allowed_precisions(
        self, workload: Workload, precisions: Sequence[Precision]
    ) -> Sequence[Collection[Precision]]:
        """The precisions that each layer has rows for, and those between them if that was asked for.

        Raises:
            UnsupportedLayerError: If the network's layers are not those of the table.
            DeviceError: If the table was made for other shapes.
        """
        if self.interpolation != "none":
            return [self._offered] * len(self._rows(workload))
        runnable = self.lookup.runnable[self._rows(workload)]
        return [[self._offered[column] for column in np.flatnonzero(of_layer)] for of_layer in runnable]

    def evaluate(self, workload: Workload, allocation: BitAllocation) -> Cost:
        """Cost of the table's network.

        Raises:
            UnsupportedLayerError: If the network's layers are not those of the table.
            UnsupportedPrecisionError: If the table lacks a precision.
            DeviceError: If the table was made for other shapes.
        """
        allocation = allocation.require_layers(workload.layer_names, f"network {workload.name!r}")
        require_allowed(self, workload, allocation)
        layers = []
        for layer, row in zip(workload, self._rows(workload), strict=True):
            precision = allocation[layer.name]
            shares = self._mix(precision)
            metrics = {metric: _mixed(values[row], shares) for metric, values in self.lookup.metrics.items()}
            bound = None if precision in self._columns else "interpolated"
            layers.append(LayerCost(layer.name, precision, metrics, bound))
        return Cost.of_layers(self.name, layers, self.metrics)

    def table(self, workload: Workload, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> CostTable:
        """Costs of every layer at every pair of widths.

        Raises:
            UnsupportedLayerError: If the network's layers are not those of the table.
            UnsupportedPrecisionError: If the table lacks a pair, or has it not for all layers.
        """
        self.capabilities().require_table(workload, weight_bits, activation_bits, self.name)
        rows = self._rows(workload)
        if not self.lookup.runnable.all():
            for pair in product(weight_bits, activation_bits):
                require_allowed(self, workload, workload.uniform(*pair))
        metrics = {m: np.zeros((len(rows), len(weight_bits), len(activation_bits))) for m in self.lookup.metrics}
        for (i, weight), (j, activation) in product(enumerate(weight_bits), enumerate(activation_bits)):
            precision = Precision(weight, activation)
            shares = self._mix(precision)
            for metric, values in self.lookup.metrics.items():
                metrics[metric][:, i, j] = [_mixed(values[row], shares) for row in rows]
        return CostTable(workload.layer_names, tuple(weight_bits), tuple(activation_bits), metrics)

    def sample_workload(self) -> Workload:
        """The layers of the table; their shapes are unknown and replaced by 1 x 1 products."""
        names = self.lookup.layers or [f"layer{row}" for row in range(len(self.lookup))]
        return Workload(self.name, tuple(Layer(name, "conv", m=1, n=1, k=1) for name in names))

    def _rows(self, workload: Workload) -> list[int]:
        """The row of every layer of a network."""
        table, names = self.lookup, workload.layer_names
        if table.layers is None:
            if len(names) != len(table):
                raise UnsupportedLayerError(
                    f"{table.where}: the table has {len(table)} layers without names, network {workload.name!r} has "
                    f"{len(names)}; they are matched by position, so their numbers must be equal."
                )
            self._check_shapes(workload)
            return list(range(len(names)))
        known = {name: row for row, name in enumerate(table.layers)}
        missing = [name for name in names if name not in known]
        spare = [name for name in table.layers if name not in set(names)]
        if missing or spare:
            faults = []
            if missing:
                faults.append(f"the table lacks {', '.join(map(repr, missing))}")
            if spare:
                faults.append(f"the network lacks {', '.join(map(repr, spare))}")
            raise UnsupportedLayerError(
                f"{table.where}: the table's {len(table)} layers are not the {len(names)} of network "
                f"{workload.name!r}: {'; '.join(faults)}. If these are other names for the same layers, name the table "
                "in a YAML file (format: amed-table/1) with 'layers: {name in the table: name in the network, …}', "
                "null for those that are not used."
            )
        self._check_shapes(workload)
        return [known[name] for name in names]

    def _check_shapes(self, workload: Workload) -> None:
        made_for = self.lookup.provenance.get("workload")
        given = workload_digest(workload, self.lookup.original_names)
        if made_for in (None, given) or workload == self.sample_workload():
            return
        raise DeviceError(
            f"{self.lookup.where}: the table was made for other shapes than those of {workload.name!r} (provenance "
            "'workload' differs); build it again with `amed table`."
        )

    def _mix(self, precision: Precision) -> list[tuple[int, float]]:
        """Columns of the table and their shares, whose mixture answers for a precision."""
        if precision in self._columns:
            return [(self._columns[precision], 1.0)]
        if self.interpolation == "none":
            raise UnsupportedPrecisionError(f"{self.lookup.where}: the table has no row for {precision}.")
        weights, activations = precision_axes(self.lookup.precisions)
        if all(p.weight_bits == p.activation_bits for p in self.lookup.precisions):
            return [(self._columns[Precision(b, b)], share) for b, share in _neighbours(weights, precision[0])]
        mix = []  # bilinear
        for weight, weight_share in _neighbours(weights, precision.weight_bits):
            for activation, activation_share in _neighbours(activations, precision.activation_bits):
                mix.append((self._columns[Precision(weight, activation)], weight_share * activation_share))
        return mix


def build_table(
    backend: HardwareBackend, workload: Workload, precisions: Sequence[Precision], provenance: Mapping[str, str]
) -> LookupTable:
    """The table of a device for a network.

    Args:
        backend: A device whose costs add up over the layers.
        workload: The network.
        precisions: What the table shall have, of layers that can run at them.
        provenance: Further facts for the file; device, network and the digest of the shapes are added.

    Raises:
        BackendError: If the costs do not add up, or the device fails.
        UnsupportedPrecisionError: If a layer can run at none of the precisions.
    """
    capabilities = backend_capabilities(backend)
    if not capabilities.additive:
        raise BackendError(
            f"device {backend.name!r} cannot be written as a table: its costs do not add up over the layers."
        )
    allowed = layer_precisions(backend, workload, precisions)
    runnable = np.array([[precision in of_layer for precision in precisions] for of_layer in allowed])
    without = [name for name, of_layer in zip(workload.layer_names, allowed, strict=True) if not of_layer]
    if without:
        raise UnsupportedPrecisionError(
            f"device {backend.name!r} can run layer {without[0]!r} at none of {', '.join(map(str, precisions))}."
        )
    costs = precision_costs(backend, workload, precisions, runnable)
    facts: dict[str, Any] = {
        "device": backend.name,
        "network": workload.name,
        "workload": workload_digest(workload),
        "deterministic": str(capabilities.deterministic).lower(),
        **provenance,
    }
    metrics = {metric: np.where(runnable, costs[metric], np.nan) for metric in capabilities.metrics}
    return LookupTable(
        backend.name, workload.layer_names, tuple(precisions), metrics, dict(capabilities.metrics), facts
    )


def precision_axes(precisions: Sequence[Precision]) -> tuple[list[int], list[int]]:
    """The different widths of weights, and those of activations, in rising order."""
    weights = {precision.weight_bits for precision in precisions}
    activations = {precision.activation_bits for precision in precisions}
    return sorted(weights), sorted(activations)


def workload_digest(workload: Workload, names: Mapping[str, str] | None = None) -> str:
    """Twelve hexadecimal digits that change with the names and shapes of the layers; some may have other names."""
    if names:
        layers = (replace(layer, name=names.get(layer.name, layer.name), shares_weights_with="") for layer in workload)
        workload = Workload(workload.name, tuple(layers))
    return hashlib.sha256(workload.to_csv().encode()).hexdigest()[:12]


def _between(widths: Sequence[int]) -> list[int]:
    """Every integer width from the narrowest to the widest, but none between the widest integer and float."""
    integers = [bits for bits in widths if bits != FLOAT_BITS]
    filled = list(range(min(integers), max(integers) + 1)) if integers else []
    return [*filled, *(bits for bits in widths if bits == FLOAT_BITS)]


def _neighbours(widths: Sequence[int], bits: int) -> list[tuple[int, float]]:
    """The listed widths below and above, with the share of each on the line between them."""
    if bits in widths:
        return [(bits, 1.0)]
    below, above = max(w for w in widths if w < bits), min(w for w in widths if w > bits)
    share = (bits - below) / (above - below)
    return [(below, 1.0 - share), (above, share)]


def _mixed(row: FloatArray, shares: Sequence[tuple[int, float]]) -> float:
    return float(sum(share * row[column] for column, share in shares))
