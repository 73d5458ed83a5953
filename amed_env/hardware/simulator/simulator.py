"""An accelerator with an array, buffers and external memory: latency and energy of layers at given widths.

Per layer: compute cycles from the closed forms and the precision model; traffic to external memory from a
tiling into the declared buffers; latency is the larger of compute and traffic / bandwidth, plus declared
overheads; energy is arithmetic, on-chip accesses, external traffic, and leakage if declared. Layers run one
after the other, so that costs add up. `docs/hardware.md` has the formulas, what they were checked against,
and what they leave out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from amed_env.errors import DeviceError
from amed_env.hardware.files.config import SystolicConfig, load_device_config
from amed_env.hardware.files.layer_choices import LayerwiseBackend
from amed_env.hardware.metrics import METRIC_UNITS
from amed_env.hardware.protocol import Capabilities, Cost, CostTable, LayerCost, require_allowed
from amed_env.hardware.simulator.arrays import ArrayAccesses, make_array
from amed_env.hardware.simulator.energy import EnergyModel, mac_energy_by_bits
from amed_env.hardware.simulator.layer_arrays import LayerArrays
from amed_env.hardware.simulator.precision_models import PrecisionEffect, make_precision_model
from amed_env.hardware.simulator.systolic import FloatArray, IntArray, float_to_int64
from amed_env.hardware.simulator.traffic import DramTraffic, MemorySystem, plan_traffic
from amed_env.problem.allocation import BitAllocation, Precision
from amed_env.problem.workload import KINDS, Layer, Workload

METRICS = ("latency_ms", "energy_uj", "cycles", "compute_cycles", "memory_cycles")
_WHOLE = ("cycles", "compute_cycles", "memory_cycles")
BITS_PER_KIB = 8 * 1024
_BLOCK = 32768
"""Places of a table that are computed at a time: small enough for the caches, large enough for numpy."""


class SramTraffic(NamedTuple):
    """Bits that an array moves from and to its buffers for each tensor: float64 arrays."""

    ifmap_read_bits: FloatArray
    weight_read_bits: FloatArray
    ofmap_write_bits: FloatArray


class SystolicBackend(LayerwiseBackend):
    """A simulated accelerator, as a device file describes it.

    Args:
        config: The device description.

    Raises:
        DeviceError: If it describes something else.
    """

    metrics: Mapping[str, str] = {metric: METRIC_UNITS[metric] for metric in METRICS}

    def __init__(self, config: SystolicConfig) -> None:
        if not isinstance(config, SystolicConfig):
            raise DeviceError(f"device {config.name!r} is of kind {config.kind!r}, expected 'systolic'.")
        self.config = config
        self.name = config.name
        self.description = config.description
        self.bits = tuple(sorted({*config.precision.weight_bits, *config.precision.activation_bits}))
        self.layer_pairs = config.precision.layers or {}
        self._array = make_array(config.array)
        self._model = make_precision_model(
            config.precision.model, config.precision.serial_operands, config.precision.serial_lanes
        )
        self._memory = _memory_system(config)
        self._energy = EnergyModel(
            mac_energy_by_bits(config.energy.mac),
            config.energy.sram,
            config.energy.dram.pj_per_bit,
            config.precision.accumulator_bits,
        )

    @classmethod
    def from_file(cls, path: str | Path) -> SystolicBackend:
        """The accelerator of a device file.

        Raises:
            DeviceError: If the file cannot be read, is malformed, or describes something else.
        """
        config = load_device_config(path)
        if not isinstance(config, SystolicConfig):
            raise DeviceError(f"{path} describes a device of kind {config.kind!r}; load_device() loads all kinds.")
        return cls(config)

    def __repr__(self) -> str:
        array = self.config.array
        return f"SystolicBackend({self.name!r}, {array.rows} x {array.cols}, {array.dataflow!r})"

    def capabilities(self) -> Capabilities:
        """All kinds of layers at the widths of the device file; deterministic and additive."""
        return self.config.limited(self.config.precision.capabilities(KINDS, self.metrics))

    def layer_cost(self, layer: Layer, precision: Precision) -> Mapping[str, float]:
        """Cost of one layer at one precision."""
        self.capabilities().require(layer, precision, self.name)
        return self._layer_metrics([layer], [precision])[0]

    def evaluate(self, workload: Workload, allocation: BitAllocation) -> Cost:
        """Cost of a network: totals, and for every layer its metrics and the bound that held.

        Raises:
            UnsupportedPrecisionError: If a width is not in the device file.
            AllocationError: If the allocation does not have exactly the workload's layers.
            WorkloadError: If a layer is so large that its cycles are beyond int64.
        """
        allocation = allocation.require_layers(workload.layer_names, f"network {workload.name!r}")
        require_allowed(self, workload, allocation)
        metrics_of_layers = self._layer_metrics(workload.layers, list(allocation.values()))
        layers = [
            LayerCost(name, precision, metrics, bound_of(metrics))
            for (name, precision), metrics in zip(allocation.items(), metrics_of_layers, strict=True)
        ]
        return Cost.of_layers(self.name, layers, METRICS)

    def table(self, workload: Workload, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> CostTable:
        """Costs of every layer at every pair of widths: float64 arrays of shape (L, W, A).

        Raises:
            UnsupportedPrecisionError: If a width is not in the device file.
            WorkloadError: If a layer is so large that its cycles are beyond int64.
        """
        self.capabilities().require_table(workload, weight_bits, activation_bits, self.name)
        # Layers lie along the last axis while it is computed, so that numpy's inner loops are long, and are
        # computed in blocks that stay in the caches.
        weights = np.array(weight_bits, dtype=np.int64).reshape(-1, 1, 1)
        activations = np.array(activation_bits, dtype=np.int64).reshape(1, -1, 1)
        pairs = weights.size * activations.size
        work = self._work(self._arrays(workload.layers, (1, 1, len(workload))), weights, activations)
        # One piece of memory for all metrics is large enough for large pages of the system.
        values = np.empty((len(METRICS), weights.size, activations.size, len(workload)))
        blocks = max(1, round(len(workload) * pairs / _BLOCK))
        size = -(-len(workload) // blocks)  # rounded up, so that blocks are of about the same size
        for start in range(0, len(workload), size):
            block = slice(start, start + size)
            self._simulate(work[block], weights, activations, values[..., block])
        metrics = dict(zip(METRICS, np.moveaxis(values, -1, 1), strict=True))
        return CostTable(workload.layer_names, tuple(weight_bits), tuple(activation_bits), metrics)

    def dram_traffic(
        self, layers: Sequence[Layer], weight_bits: npt.ArrayLike, activation_bits: npt.ArrayLike
    ) -> DramTraffic:
        """External traffic of layers, each at its own widths: arrays of shape (L,)."""
        weights, activations = np.asarray(weight_bits, np.int64), np.asarray(activation_bits, np.int64)
        return plan_traffic(self._arrays(layers, (len(layers),)), weights, activations, self._memory)

    def sram_traffic(
        self, layers: Sequence[Layer], weight_bits: npt.ArrayLike, activation_bits: npt.ArrayLike
    ) -> SramTraffic:
        """What the array moves from and to its buffers, each layer at its own widths: arrays of shape (L,)."""
        weights, activations = np.asarray(weight_bits, np.int64), np.asarray(activation_bits, np.int64)
        effect = self._model.effect(weights, activations)
        accesses = self._array.accesses(self._arrays(layers, (len(layers),)).shapes, effect.reduction_split)
        return SramTraffic(
            accesses.ifmap_reads * activations * effect.ifmap_rereads,
            accesses.weight_reads * weights * effect.weight_rereads,
            accesses.sum_writes * effect.passes * self.config.precision.accumulator_bits,
        )

    def peak_macs_per_cycle(self, precisions: Sequence[Precision]) -> FloatArray:
        """Multiply-accumulates in a cycle with every processing element busy, at each precision: float64 (P,)."""
        bits = np.array(precisions, dtype=np.int64).reshape(-1, 2)
        effect = self._model.effect(bits[:, 0], bits[:, 1])
        return np.asarray(self.config.array.rows * self.config.array.cols * effect.reduction_split / effect.passes)

    def _arrays(self, layers: Sequence[Layer], shape: tuple[int, ...]) -> LayerArrays:
        return LayerArrays.of(layers, shape, self.config.array.im2col_up_to_channels)

    def _layer_metrics(self, layers: Sequence[Layer], precisions: Sequence[Precision]) -> list[dict[str, float]]:
        weight_bits = np.array([precision.weight_bits for precision in precisions], dtype=np.int64)
        activation_bits = np.array([precision.activation_bits for precision in precisions], dtype=np.int64)
        work = self._work(self._arrays(layers, (len(layers),)), weight_bits, activation_bits)
        values = np.empty((len(METRICS), len(layers)))
        self._simulate(work, weight_bits, activation_bits, values)
        columns = []
        for metric, column in zip(METRICS, values, strict=True):
            columns.append((column.astype(np.int64) if metric in _WHOLE else column).tolist())
        return [dict(zip(METRICS, of_layer, strict=True)) for of_layer in zip(*columns, strict=True)]

    def _work(self, layers: LayerArrays, weight_bits: IntArray, activation_bits: IntArray) -> _Work:
        effect = self._model.effect(weight_bits, activation_bits)
        split, index = effect.reduction_split, None
        if split.ndim == 3:  # a table of 8 x 8 widths has but a handful of them
            distinct, index = np.unique(split, return_inverse=True)
            split, index = distinct.reshape(-1, 1, 1), index.reshape(split.shape[:2])
            effect = PrecisionEffect(*map(_narrowed, vars(effect).values()))
        cycles = self._array.cycles(layers.shapes, split).astype(np.float64)
        return _Work(layers, effect, index, cycles, self._array.accesses(layers.shapes, split))

    def _simulate(self, work: _Work, weight_bits: IntArray, activation_bits: IntArray, out: FloatArray) -> None:
        """Write the metrics of layers at widths; all arrays broadcast.

        Args:
            work: What the layers ask of the array.
            weight_bits: Widths of weights.
            activation_bits: Widths of activations.
            out: One array for each of `METRICS`.

        Raises:
            WorkloadError: If the cycles of a layer are beyond int64.
        """
        config = self.config
        latency_ms, energy_uj, cycles, compute, memory = out
        work.at_widths(work.cycles, compute)
        traffic = plan_traffic(work.layers, weight_bits, activation_bits, self._memory)
        np.divide(traffic.total_bits, config.bandwidth_bits_per_cycle, out=memory)
        np.ceil(memory, out=memory)
        # Traffic and compute overlap, so that the longer of the two counts. The published simulator of Bit Fusion adds
        # what nothing hides: tensors that fit as a whole are loaded before the first product and stored after the last.
        if config.dram.exposed_transfers:
            exposed = np.ceil(traffic.resident_bits / config.bandwidth_bits_per_cycle)
            np.maximum(np.add(compute, exposed, out=cycles), memory, out=cycles)
        else:
            np.maximum(compute, memory, out=cycles)
        if config.array.overhead_cycles_per_layer:
            cycles += config.array.overhead_cycles_per_layer
        float_to_int64("cycles of a layer", cycles.max())  # whole cycles are reported as integers
        np.divide(cycles, config.array.clock_mhz * 1e3, out=latency_ms)
        work.at_widths(self._energy.sums_uj(work.accesses.sum_writes), energy_uj)
        self._energy.add_uj(
            energy_uj, work.layers.macs, work.accesses, traffic, work.effect, weight_bits, activation_bits
        )
        if config.energy.leakage is not None:
            energy_uj += latency_ms * config.energy.leakage.power_mw


@dataclass(frozen=True)
class _Work:
    """What layers ask of the array.

    Attributes:
        layers: The layers.
        effect: The effect of the widths.
        index: Where the widths of a table are found among the distinct splits of K; None outside tables.
        cycles: Compute cycles of one pass by distinct split.
        accesses: Accesses of the on-chip buffers in one pass by distinct split.
    """

    layers: LayerArrays
    effect: PrecisionEffect
    index: IntArray | None
    cycles: FloatArray
    accesses: ArrayAccesses

    def __getitem__(self, block: slice) -> _Work:
        accesses = ArrayAccesses(*(values[..., block] for values in self.accesses))
        return _Work(self.layers[block], self.effect, self.index, self.cycles[..., block], accesses)

    def at_widths(self, values: FloatArray, out: FloatArray) -> None:
        """Write what all passes take, where the widths are, from values of one pass by distinct split."""
        if self.index is not None and len(values) > 1:
            values = values[:, 0, :].take(self.index, axis=0)
        np.multiply(values, self.effect.passes, out=out)


def _narrowed(values: IntArray) -> IntArray:
    """Values by (weight width, activation width, 1), without the axes along which they are all equal."""
    if (values == values[:1]).all():
        values = values[:1]
    return values[:, :1] if (values == values[:, :1]).all() else values


def _memory_system(config: SystolicConfig) -> MemorySystem:
    buffers, dram = config.buffers, config.dram
    # One half works while the other is filled, so a tile is at most half a buffer.
    bits_per_kib = BITS_PER_KIB / (2 if buffers.double_buffered else 1)
    return MemorySystem(
        ifmap_room=buffers.ifmap_kib * bits_per_kib,
        weight_room=buffers.weight_kib * bits_per_kib,
        ofmap_room=buffers.ofmap_kib * bits_per_kib,
        cols=config.array.cols,
        accumulator_bits=config.precision.accumulator_bits,
        writes_sums=dram.outputs == "sums",
        loads_sums=dram.loads_sums,
        whole_columns=dram.whole_columns,
    )


def bound_of(metrics: Mapping[str, float]) -> str:
    """What held: memory where traffic takes longest, else compute with the transfers that it waits for."""
    longest = metrics["memory_cycles"] > metrics["compute_cycles"]
    return "memory" if longest else "compute"
