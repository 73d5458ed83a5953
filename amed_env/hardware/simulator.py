"""An accelerator with an array, buffers and external memory: latency and energy of layers at given widths.

Per layer: compute cycles from the closed forms and the precision model; traffic to external memory from a
tiling into the declared buffers; latency is the larger of compute and traffic / bandwidth, plus declared
overheads; energy is arithmetic, on-chip accesses, external traffic, and leakage if declared. Layers run one
after the other, so that costs add up. `docs/hardware.md` has the formulas, what they were checked against,
and what they leave out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from amed_env.allocation import BitAllocation, Precision
from amed_env.errors import DeviceError
from amed_env.hardware.arrays import make_array
from amed_env.hardware.config import SystolicConfig, load_device_config
from amed_env.hardware.energy import arithmetic_energy_pj, buffer_energy_pj, mac_energy_by_bits
from amed_env.hardware.layer_arrays import LayerArrays
from amed_env.hardware.metrics import sum_over_layers
from amed_env.hardware.precision_models import PrecisionEffect, make_precision_model
from amed_env.hardware.protocol import METRIC_UNITS, Capabilities, Cost, CostTable, HardwareBackend, LayerCost
from amed_env.hardware.systolic import FloatArray, IntArray, float_to_int64
from amed_env.hardware.traffic import DramTraffic, MemorySystem, plan_traffic
from amed_env.workload import KINDS, Layer, Workload

METRICS = ("latency_ms", "energy_uj", "cycles", "compute_cycles", "memory_cycles")
_WHOLE = ("cycles", "compute_cycles", "memory_cycles")
_BITS_PER_KIB = 8 * 1024


class SramTraffic(NamedTuple):
    """Bits that an array moves from and to its buffers for each tensor: float64 arrays."""

    ifmap_read_bits: FloatArray
    weight_read_bits: FloatArray
    ofmap_write_bits: FloatArray


class SystolicBackend(HardwareBackend):
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
        self._array = make_array(config.array)
        self._model = make_precision_model(
            config.precision.model, config.precision.serial_operands, config.precision.serial_lanes
        )
        self._memory = _memory_system(config)
        self._mac_pj = mac_energy_by_bits(config.energy.mac)

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
        precision = self.config.precision
        return Capabilities(
            weight_bits=dict.fromkeys(KINDS, precision.weight_bits),
            activation_bits=dict.fromkeys(KINDS, precision.activation_bits),
            metrics=dict(self.metrics),
        )

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
        precisions = list(allocation.values())
        capabilities = self.capabilities()
        for layer, precision in zip(workload, precisions, strict=True):
            capabilities.require(layer, precision, self.name)
        layers = tuple(
            LayerCost(layer.name, precision, metrics, _bound(metrics))
            for layer, precision, metrics in zip(
                workload, precisions, self._layer_metrics(workload.layers, precisions), strict=True
            )
        )
        totals = {metric: sum_over_layers([layer.metrics[metric] for layer in layers]) for metric in METRICS}
        return Cost(self.name, totals, layers)

    def table(self, workload: Workload, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> CostTable:
        """Costs of every layer at every pair of widths: float64 arrays of shape (L, W, A).

        Raises:
            UnsupportedPrecisionError: If a width is not in the device file.
            WorkloadError: If a layer is so large that its cycles are beyond int64.
        """
        capabilities = self.capabilities()
        first = workload.layers[0]  # every kind has the same widths
        for weight in weight_bits:
            capabilities.require(first, Precision(weight, self.config.precision.activation_bits[0]), self.name)
        for activation in activation_bits:
            capabilities.require(first, Precision(self.config.precision.weight_bits[0], activation), self.name)
        metrics = self._simulate(
            self._arrays(workload.layers, (len(workload), 1, 1)),
            np.array(weight_bits, dtype=np.int64).reshape(1, -1, 1),
            np.array(activation_bits, dtype=np.int64).reshape(1, 1, -1),
        )
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
        accesses = self._array.accesses(self._arrays(layers, (len(layers),)).shapes, effect)
        return SramTraffic(
            accesses.ifmap_reads * activations * effect.ifmap_rereads,
            accesses.weight_reads * weights * effect.weight_rereads,
            accesses.sum_writes * self.config.precision.accumulator_bits,
        )

    def _arrays(self, layers: Sequence[Layer], shape: tuple[int, ...]) -> LayerArrays:
        return LayerArrays.of(layers, shape, self.config.array.im2col_up_to_channels)

    def _layer_metrics(self, layers: Sequence[Layer], precisions: Sequence[Precision]) -> list[dict[str, float]]:
        weight_bits = np.array([precision.weight_bits for precision in precisions], dtype=np.int64)
        activation_bits = np.array([precision.activation_bits for precision in precisions], dtype=np.int64)
        metrics = self._simulate(self._arrays(layers, (len(layers),)), weight_bits, activation_bits)
        columns = {
            metric: (values.astype(np.int64) if metric in _WHOLE else values).tolist()
            for metric, values in metrics.items()
        }
        return [{metric: column[i] for metric, column in columns.items()} for i in range(len(layers))]

    def _simulate(self, layers: LayerArrays, weight_bits: IntArray, activation_bits: IntArray) -> dict[str, FloatArray]:
        """Metrics of layers at widths as float64; all arrays broadcast."""
        config, energy = self.config, self.config.energy
        effect = self._model.effect(weight_bits, activation_bits)
        distinct, place = _distinct_effects(effect)
        compute = place(self._array.cycles(layers.shapes, distinct).astype(np.float64))
        accesses = self._array.accesses(layers.shapes, distinct)
        accesses = accesses._replace(sum_writes=place(accesses.sum_writes))
        traffic = plan_traffic(layers, weight_bits, activation_bits, self._memory)
        total_bits = traffic.total_bits
        memory = np.ceil(total_bits / config.bandwidth_bits_per_cycle)
        busy = compute
        if config.dram.exposed_transfers:
            busy = compute + np.ceil(traffic.resident_bits / config.bandwidth_bits_per_cycle)
        cycles = np.maximum(busy, memory) + config.array.overhead_cycles_per_layer
        float_to_int64("cycles of a layer", cycles.max(initial=0))
        latency_ms = cycles / (config.array.clock_mhz * 1e3)
        energy_pj = (
            arithmetic_energy_pj(layers, weight_bits, activation_bits, self._mac_pj)
            + buffer_energy_pj(
                accesses,
                effect,
                weight_bits,
                activation_bits,
                traffic,
                config.precision.accumulator_bits,
                energy.sram,
            )
            + total_bits * energy.dram.pj_per_bit
        )
        energy_uj = energy_pj * 1e-6
        if energy.leakage is not None:
            energy_uj = energy_uj + latency_ms * energy.leakage.power_mw
        return {
            "latency_ms": latency_ms,
            "energy_uj": energy_uj,
            "cycles": cycles,
            "compute_cycles": compute,
            "memory_cycles": memory,
        }


def _memory_system(config: SystolicConfig) -> MemorySystem:
    buffers, dram = config.buffers, config.dram
    bits_per_kib = _BITS_PER_KIB / (2 if buffers.double_buffered else 1)
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


class _Place:
    """Puts values of distinct effects where the widths are; the identity outside tables."""

    def __init__(self, index: IntArray | None) -> None:
        self._index = index

    def __call__(self, values: FloatArray) -> FloatArray:
        if self._index is None:
            return values
        return np.asarray(values[:, 0, :].take(self._index, axis=1))


def _distinct_effects(effect: PrecisionEffect) -> tuple[PrecisionEffect, _Place]:
    """The effects that differ in cycles, once each: a table of 8 x 8 widths has but a handful of them."""
    if effect.passes.ndim != 3:
        return effect, _Place(None)
    pairs = np.stack([effect.reduction_split.ravel(), effect.passes.ravel()], axis=1)
    _, first, index = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    chosen = PrecisionEffect(*(values.ravel()[first].reshape(1, 1, -1) for values in vars(effect).values()))
    return chosen, _Place(index.reshape(effect.passes.shape[1:]))


def _bound(metrics: Mapping[str, float]) -> str:
    """What held: memory where traffic takes longest, else compute with the transfers that it waits for."""
    longest = metrics["memory_cycles"] > metrics["compute_cycles"]
    return "memory" if longest else "compute"
