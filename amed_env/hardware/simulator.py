"""A systolic accelerator with buffers and external memory: latency and energy of layers at given widths.

Per layer: compute cycles from the closed forms and the precision model; traffic to external memory from a
tiling into the declared buffers; latency is the larger of compute and traffic / bandwidth, plus a declared
overhead; energy is arithmetic, on-chip accesses and external traffic. Layers run one after the other, so that
costs add up. `docs/hardware.md` has the formulas, what they were checked against, and what they leave out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amed_env.allocation import BitAllocation, Precision
from amed_env.hardware.config import DeviceConfig, MacEnergySection, load_device_config
from amed_env.hardware.metrics import sum_over_layers
from amed_env.hardware.precision_models import (
    GemmShapes,
    PrecisionEffect,
    SystolicArray,
    make_precision_model,
)
from amed_env.hardware.protocol import (
    METRIC_UNITS,
    Capabilities,
    Cost,
    CostTable,
    HardwareBackend,
    LayerCost,
)
from amed_env.hardware.systolic import (
    FloatArray,
    IntArray,
    ceil_divide,
    checked_sum,
    float_to_int64,
    gemm_sram_accesses,
)
from amed_env.workload import KINDS, Layer, Workload

METRICS = ("latency_ms", "energy_uj", "cycles", "compute_cycles", "memory_cycles")
_BITS_PER_KIB = 8 * 1024


@dataclass(frozen=True)
class DramTraffic:
    """Bits that cross the memory interface for each tensor: float64 arrays."""

    ifmap_bits: FloatArray
    weight_bits: FloatArray
    ofmap_bits: FloatArray

    @property
    def total_bits(self) -> FloatArray:
        """All three tensors."""
        return self.ifmap_bits + self.weight_bits + self.ofmap_bits


@dataclass(frozen=True)
class _LayerArrays:
    """The layers of a workload as int64 arrays of one shape."""

    shapes: GemmShapes
    input_elements: IntArray
    weight_elements: IntArray
    output_elements: IntArray

    @classmethod
    def of(cls, layers: Sequence[Layer], shape: tuple[int, ...]) -> _LayerArrays:
        def values(attribute: str) -> IntArray:
            numbers = [getattr(layer, attribute) for layer in layers]
            # Element counts that a layer derives from its shape can leave int64 (2^40 in each dimension).
            return float_to_int64(f"{attribute} of a layer", numbers).reshape(shape)

        shapes = GemmShapes(values("m"), values("n"), values("k"), values("groups"))
        return cls(shapes, values("input_elements"), values("weight_elements"), values("output_elements"))


class SystolicBackend(HardwareBackend):
    """A simulated systolic accelerator, as a device file describes it.

    Args:
        config: The device description.
    """

    metrics: Mapping[str, str] = {metric: METRIC_UNITS[metric] for metric in METRICS}

    def __init__(self, config: DeviceConfig) -> None:
        self.config = config
        self.name = config.name
        self.description = config.description
        self.bits = tuple(sorted({*config.precision.weight_bits, *config.precision.activation_bits}))
        self._array = SystolicArray(config.array.rows, config.array.cols, config.array.dataflow)
        self._model = make_precision_model(config.precision.model)
        self._mac_pj = mac_energy_by_bits(config.energy.mac)

    @classmethod
    def from_file(cls, path: str | Path) -> SystolicBackend:
        """The accelerator of a device file.

        Raises:
            DeviceError: If the file cannot be read or is malformed.
        """
        return cls(load_device_config(path))

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
        layers = _LayerArrays.of(workload.layers, (len(workload), 1, 1))
        metrics = self._simulate(
            layers,
            np.array(weight_bits, dtype=np.int64).reshape(1, -1, 1),
            np.array(activation_bits, dtype=np.int64).reshape(1, 1, -1),
        )
        table = {metric: np.asarray(values, dtype=np.float64) for metric, values in metrics.items()}
        return CostTable(workload.layer_names, tuple(weight_bits), tuple(activation_bits), table)

    def dram_traffic(
        self, layers: Sequence[Layer], weight_bits: npt.ArrayLike, activation_bits: npt.ArrayLike
    ) -> DramTraffic:
        """External traffic of layers, each at its own widths: arrays of shape (L,)."""
        return self._dram_traffic(
            _LayerArrays.of(layers, (len(layers),)),
            np.asarray(weight_bits, dtype=np.int64),
            np.asarray(activation_bits, dtype=np.int64),
        )

    def _layer_metrics(self, layers: Sequence[Layer], precisions: Sequence[Precision]) -> list[dict[str, float]]:
        weight_bits = np.array([precision.weight_bits for precision in precisions], dtype=np.int64)
        activation_bits = np.array([precision.activation_bits for precision in precisions], dtype=np.int64)
        metrics = self._simulate(_LayerArrays.of(layers, (len(layers),)), weight_bits, activation_bits)
        columns = {metric: values.tolist() for metric, values in metrics.items()}
        return [{metric: column[i] for metric, column in columns.items()} for i in range(len(layers))]

    def _simulate(
        self, layers: _LayerArrays, weight_bits: IntArray, activation_bits: IntArray
    ) -> dict[str, IntArray | FloatArray]:
        """Metrics of layers at widths; all arrays broadcast. Cycles are int64, the others float64."""
        effect = self._model.effect(weight_bits, activation_bits)
        compute = self._model.compute_cycles(layers.shapes, weight_bits, activation_bits, self._array)
        traffic = self._dram_traffic(layers, weight_bits, activation_bits)
        memory = float_to_int64(
            "memory cycles of a layer", np.ceil(traffic.total_bits / self.config.bandwidth_bits_per_cycle)
        )
        overhead = self.config.array.overhead_cycles_per_layer
        cycles = checked_sum("cycles of a layer", np.maximum(compute, memory), overhead)
        energy_pj = (
            self._mac_energy_pj(layers, weight_bits, activation_bits)
            + self._sram_energy_pj(layers, effect, weight_bits, activation_bits, traffic)
            + traffic.total_bits * self.config.energy.dram.pj_per_bit
        )
        return {
            "latency_ms": cycles / (self.config.array.clock_mhz * 1e3),
            "energy_uj": energy_pj * 1e-6,
            "cycles": cycles,
            "compute_cycles": compute,
            "memory_cycles": memory,
        }

    def _dram_traffic(self, layers: _LayerArrays, weight_bits: IntArray, activation_bits: IntArray) -> DramTraffic:
        """External traffic in bits, by the better of two loop orders.

        "Weights stay": as many filters as the weight buffer holds are kept while all inputs stream by; inputs
        that do not fit their buffer are read again for every such tile. "Inputs stay": as many output pixels
        as the input and output buffers hold are kept while all weights stream by; weights that do not fit are
        read again for every such tile. Groups are independent and follow each other. Outputs are written
        once, at the activation width of the layer: the width at which the next layer reads them is not known
        here, and costs must add up.
        """
        buffers, shapes = self.config.buffers, layers.shapes
        inputs = layers.input_elements.astype(np.float64) * activation_bits
        weights = layers.weight_elements.astype(np.float64) * weight_bits
        outputs = layers.output_elements.astype(np.float64) * activation_bits
        group_inputs, group_weights = inputs / shapes.groups, weights / shapes.groups
        ifmap_room, weight_room, ofmap_room = (
            kib * _BITS_PER_KIB for kib in (buffers.ifmap_kib, buffers.weight_kib, buffers.ofmap_kib)
        )
        sums_of_a_pixel = np.minimum(shapes.n, self._array.cols) * self.config.precision.accumulator_bits
        filters_kept = np.maximum(1, np.floor(weight_room * shapes.n / group_weights))
        pixels_kept = np.maximum(
            1, np.floor(np.minimum(ifmap_room * shapes.m / group_inputs, ofmap_room / sums_of_a_pixel))
        )
        input_reads = np.where(group_inputs <= ifmap_room, 1, np.ceil(shapes.n / filters_kept))
        weight_reads = np.where(group_weights <= weight_room, 1, np.ceil(shapes.m / pixels_kept))
        weights_stay = inputs * input_reads + weights <= inputs + weights * weight_reads
        shape = weights_stay.shape
        return DramTraffic(
            ifmap_bits=np.where(weights_stay, inputs * input_reads, inputs),
            weight_bits=np.where(weights_stay, weights, weights * weight_reads),
            ofmap_bits=np.broadcast_to(outputs, shape),
        )

    def _mac_energy_pj(self, layers: _LayerArrays, weight_bits: IntArray, activation_bits: IntArray) -> FloatArray:
        """Energy of arithmetic in pJ; a pair of widths costs the geometric mean of the two equal pairs.

        A multiplier's energy grows with the product of its operand widths, so that
        E(w, a) = sqrt(E(w, w) E(a, a)).
        """
        shapes = layers.shapes
        macs = shapes.m.astype(np.float64) * shapes.n * shapes.k * shapes.groups
        return np.asarray(macs * np.sqrt(self._mac_pj[weight_bits] * self._mac_pj[activation_bits]))

    def _sram_energy_pj(
        self,
        layers: _LayerArrays,
        effect: PrecisionEffect,
        weight_bits: IntArray,
        activation_bits: IntArray,
        traffic: DramTraffic,
    ) -> FloatArray:
        """Energy of the on-chip buffers in pJ.

        Reads of the array follow the closed forms; operands that are cut into parts are read again for every
        pass over the other operand. Partial sums move at accumulator width, and each that is written is read
        once: to be added to, or to leave the chip. What comes from external memory is written into its
        buffer.
        """
        sram, shapes, array = self.config.energy.sram, layers.shapes, self._array
        reads = gemm_sram_accesses(shapes.m, shapes.n, shapes.k, array.rows, array.cols, array.dataflow)
        k = ceil_divide(shapes.k, effect.reduction_split)
        sums = gemm_sram_accesses(shapes.m, shapes.n, k, array.rows, array.cols, array.dataflow).ofmap_writes
        groups = shapes.groups.astype(np.float64)
        ifmap_bits = groups * reads.ifmap_reads * activation_bits * effect.weight_passes
        weight_bits_read = groups * reads.weight_reads * weight_bits * effect.activation_passes
        sum_bits = groups * sums * effect.passes * self.config.precision.accumulator_bits
        return np.asarray(
            ifmap_bits * sram.ifmap_read_pj_per_bit
            + traffic.ifmap_bits * sram.ifmap_write_pj_per_bit
            + weight_bits_read * sram.weight_read_pj_per_bit
            + traffic.weight_bits * sram.weight_write_pj_per_bit
            + sum_bits * (sram.ofmap_read_pj_per_bit + sram.ofmap_write_pj_per_bit)
        )


def mac_energy_by_bits(section: MacEnergySection) -> FloatArray:
    """Energy of one multiply-accumulate in pJ for every width from 1 to the widest of the table.

    Returns:
        float64 array, indexed by the width; index 0 is not used.
    """
    widths = np.array(sorted(section.pj_by_bits))
    energies = np.array([section.pj_by_bits[int(width)] for width in widths], dtype=np.float64)
    wanted = np.arange(widths[-1] + 1)
    if section.between == "next":
        return np.asarray(energies[np.searchsorted(widths, wanted)])
    # np.interp keeps the end values outside the table, which is the stated rule below the narrowest width.
    return np.asarray(np.exp(np.interp(np.log(np.maximum(wanted, 1)), np.log(widths), np.log(energies))))


def _bound(metrics: Mapping[str, float]) -> str:
    return "memory" if metrics["memory_cycles"] > metrics["compute_cycles"] else "compute"
