"""Processors that run layers in software, and plain proxies: devices whose cost follows from few figures."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import numpy as np

from amed_env.hardware.files.config import ProcessorConfig, ProxyConfig
from amed_env.hardware.files.device_sections import ThroughputSection
from amed_env.hardware.files.layer_choices import LayerwiseBackend
from amed_env.hardware.metrics import METRIC_UNITS
from amed_env.hardware.protocol import Capabilities, Cost, CostTable, LayerCost, require_allowed
from amed_env.hardware.simulator.systolic import FloatArray, IntArray
from amed_env.problem.allocation import BitAllocation, Precision
from amed_env.problem.operations import operations_between
from amed_env.problem.workload import BASIC_KINDS, KINDS, Layer, Workload


class _ScaledBackend(LayerwiseBackend):
    """A device whose layers cost (fixed part + work x factor of the widths); subclasses say how much."""

    def layer_cost(self, layer: Layer, precision: Precision) -> Mapping[str, float]:
        """Cost of one layer at one precision."""
        self.capabilities().require(layer, precision, self.name)
        return self._cost(layer, precision, 0.0)

    def evaluate(self, workload: Workload, allocation: BitAllocation) -> Cost:
        """Cost of a network, with what is computed between its layers."""
        allocation = allocation.require_layers(workload.layer_names, f"network {workload.name!r}")
        require_allowed(self, workload, allocation)
        further = self._between(workload)
        layers = []
        for layer, cycles in zip(workload, further.flat, strict=True):
            precision = allocation[layer.name]
            layers.append(LayerCost(layer.name, precision, self._cost(layer, precision, float(cycles))))
        return Cost.of_layers(self.name, layers, self.metrics)

    def _cost(self, layer: Layer, precision: Precision, further: float) -> dict[str, float]:
        weight_bits, activation_bits = (np.array([[[bits]]], dtype=np.int64) for bits in precision)
        metrics = self._simulate([layer], weight_bits, activation_bits, _column([further]))
        return {metric: float(values[0, 0, 0]) for metric, values in metrics.items()}

    def _between(self, workload: Workload) -> FloatArray:
        """Cycles of what is computed between the layers, for the layer before: float64 (L, 1, 1)."""
        return np.zeros((len(workload), 1, 1))

    def table(self, workload: Workload, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> CostTable:
        """Costs of every layer at every pair of widths: float64 arrays of shape (L, W, A).

        Raises:
            UnsupportedPrecisionError: If a kind of layer or a width is not supported.
        """
        self.capabilities().require_table(workload, weight_bits, activation_bits, self.name)
        metrics = self._simulate(
            workload.layers,
            np.array(weight_bits, dtype=np.int64).reshape(1, -1, 1),
            np.array(activation_bits, dtype=np.int64).reshape(1, 1, -1),
            self._between(workload),
        )
        return CostTable(workload.layer_names, tuple(weight_bits), tuple(activation_bits), metrics)

    @abc.abstractmethod
    def _simulate(
        self, layers: Sequence[Layer], weight_bits: IntArray, activation_bits: IntArray, further: FloatArray
    ) -> dict[str, FloatArray]:
        """Metrics of layers at widths as float64 of shape (L, W, A); `further` are cycles (L, 1, 1) on top."""


class ProcessorBackend(_ScaledBackend):
    """A processor, as a device file describes it.

    cycles = overhead + outputs x cycles per output + MACs x cycles per MAC, the last from a table by widths or
    by kind of layer, and cycles for every value of the operations between the layers; energy = power x latency, if a
    power is declared.

    Args:
        config: The device description.
    """

    def __init__(self, config: ProcessorConfig) -> None:
        self.config = config
        self.name = config.name
        self.description = config.description
        throughput = config.throughput
        self.bits = tuple(sorted({*throughput.weight_bits, *throughput.activation_bits}))
        names = ("latency_ms", "cycles") if config.energy is None else ("latency_ms", "energy_uj", "cycles")
        self.metrics = {metric: METRIC_UNITS[metric] for metric in names}
        self.layer_pairs = throughput.layers or {}
        self._cycles_per_mac = cycles_per_mac_by_bits(throughput)

    def capabilities(self) -> Capabilities:
        """The kinds of layers and the widths of the device file; deterministic and additive."""
        throughput = self.config.throughput
        return self.config.limited(throughput.capabilities(throughput.kinds, self.metrics))

    def _between(self, workload: Workload) -> FloatArray:
        """See `_ScaledBackend`."""
        cycles = dict.fromkeys(workload.layer_names, 0.0)
        rates = self.config.throughput.cycles_per_element
        if rates:
            for operation, layer in operations_between(workload):
                cycles[layer] += operation.elements * rates.get(operation.kind, 0.0)
        return _column(list(cycles.values()))

    def _simulate(
        self, layers: Sequence[Layer], weight_bits: IntArray, activation_bits: IntArray, further: FloatArray
    ) -> dict[str, FloatArray]:
        config, by_kind = self.config, self.config.throughput.cycles_per_mac or {}
        cycles_of = {kind: by_kind.get(kind, by_kind.get(basic, 1.0)) for kind, basic in BASIC_KINDS.items()}
        work = _column([float(layer.macs) * cycles_of[layer.kind] for layer in layers])
        fixed = _column(
            [
                config.processor.overhead_cycles_per_layer
                + float(layer.output_elements) * config.throughput.cycles_per_output
                for layer in layers
            ]
        )
        cycles = fixed + work * self._cycles_per_mac[weight_bits, activation_bits] + further
        # Memory is not modelled: the published rates are those of whole kernels, loads and stores included.
        latency_ms = cycles / (config.processor.clock_mhz * 1e3)
        metrics = {"latency_ms": latency_ms, "cycles": cycles}
        if config.energy is not None:
            metrics["energy_uj"] = latency_ms * config.energy.power_mw
        return {metric: metrics[metric] for metric in self.metrics}


class ProxyBackend(_ScaledBackend):
    """Bit operations, or bits of weights, taken for latency.

    Args:
        config: The device description.
    """

    metrics: Mapping[str, str] = {"latency_ms": METRIC_UNITS["latency_ms"]}

    def __init__(self, config: ProxyConfig) -> None:
        self.config = config
        self.name = config.name
        self.description = config.description
        self.bits = tuple(sorted({*config.proxy.weight_bits, *config.proxy.activation_bits}))
        self.layer_pairs = config.proxy.layers or {}

    def capabilities(self) -> Capabilities:
        """All kinds of layers at the widths of the device file; deterministic and additive."""
        return self.config.limited(self.config.proxy.capabilities(KINDS, self.metrics))

    def _simulate(
        self, layers: Sequence[Layer], weight_bits: IntArray, activation_bits: IntArray, further: FloatArray
    ) -> dict[str, FloatArray]:
        if self.config.proxy.metric == "bops":
            figures = _column([float(layer.macs) for layer in layers]) * (weight_bits * activation_bits)
        else:
            figures = _column([float(layer.stored_weights) for layer in layers]) * weight_bits
            figures = figures * np.ones_like(activation_bits)
        return {"latency_ms": figures / self.config.proxy.per_ms}


def cycles_per_mac_by_bits(section: ThroughputSection) -> FloatArray:
    """Cycles of one multiply-accumulate by weight width and activation width.

    Returns:
        float64 array, indexed by both widths; index 0 is not used. Without a table by widths it is 1.
    """
    table = section.macs_per_cycle
    if table is None:
        return np.ones((section.weight_bits[-1] + 1, section.activation_bits[-1] + 1))
    weights, activations = sorted(table), sorted(next(iter(table.values())))
    cycles = np.array([[1 / table[weight][activation] for activation in activations] for weight in weights])
    # A kernel for the next wider width runs a narrower operand unpacked; below the narrowest entry it is that one.
    rows = np.searchsorted(weights, np.arange(weights[-1] + 1))
    columns = np.searchsorted(activations, np.arange(activations[-1] + 1))
    return np.asarray(cycles[np.ix_(rows, columns)])


def _column(values: list[float]) -> FloatArray:
    return np.array(values, dtype=np.float64).reshape(-1, 1, 1)
