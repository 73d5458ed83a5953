"""Devices whose layers can run at different precisions, in every way in which a device can say so."""

import math
from pathlib import Path

import numpy as np

from amed_env import Precision
from amed_env.errors import UnsupportedLayerError, UnsupportedPrecisionError
from amed_env.hardware import Capabilities, Cost, CostTable, HardwareBackend
from amed_env.hardware.protocol import require_allowed

FOLDER = Path(__file__).parents[1] / "hardware" / "devices"
ETHOS_LIKE, HAILO_LIKE = FOLDER / "ethos-like.yaml", FOLDER / "hailo-like.yaml"


class Dataflow(HardwareBackend):
    """FPGA with all layers at once: the slowest one decides about the frame time, look-up tables add up."""

    name = "dataflow"
    metrics = {"frame_time": "ms", "luts": "LUT"}  # noqa: RUF012

    def capabilities(self):
        weights = {"conv": (2, 4, 8), "depthwise": (4, 8), "linear": (2, 4, 8), "matmul": (8,)}
        activations = {"conv": (2, 4, 8), "depthwise": (4, 8), "linear": (8,), "matmul": (8,)}
        return Capabilities(weights, activations, dict(self.metrics), additive=False)

    def of_layer(self, layer, precision):
        frame_time = layer.macs / 6.4e6 * max(precision) / 4
        return frame_time, 64 * (1.1 * precision.weight_bits * precision.activation_bits + 20)

    def evaluate(self, workload, allocation):
        allocation = allocation.require_layers(workload.layer_names, workload.name)
        self.capabilities().require_allocation(workload, allocation, self.name)
        times, luts = zip(*(self.of_layer(layer, allocation[layer.name]) for layer in workload), strict=True)
        return Cost(self.name, {"frame_time": max(times), "luts": math.fsum(luts)})


class BoundedDataflow(Dataflow):
    """The same, and it knows beforehand what layers cost at the least."""

    name = "bounded-dataflow"

    def lower_bound(self, workload, weight_bits, activation_bits):
        shape = (len(workload), len(weight_bits), len(activation_bits))
        bounds = {metric: np.zeros(shape) for metric in self.metrics}
        for row, layer in enumerate(workload):
            for i, weight in enumerate(weight_bits):
                for j, activation in enumerate(activation_bits):
                    frame_time, luts = self.of_layer(layer, Precision(weight, activation))
                    # The largest of L numbers is never below their mean.
                    bounds["frame_time"][row, i, j] = frame_time / len(workload)
                    bounds["luts"][row, i, j] = luts
        return CostTable(workload.layer_names, tuple(weight_bits), tuple(activation_bits), bounds)


class _Sets(HardwareBackend):
    """A device that lets each layer have a set of precisions, in the order of the network.

    Args:
        sets: A set of pairs for every layer.
        factors: Cost of a bit operation for every layer; negative ones make narrow widths the dearer ones.
    """

    name = "sets"
    metrics = {"latency_ms": "ms", "luts": "LUT"}  # noqa: RUF012

    def __init__(self, sets, factors=None):
        self.sets = [[Precision(*pair) for pair in pairs] for pairs in sets]
        self.factors = factors or [1.0] * len(self.sets)
        self.bits = tuple(sorted({bits for pairs in self.sets for pair in pairs for bits in pair}))
        self.asked = []

    def row(self, layer):
        number = layer.name.removeprefix("layer")
        if not number.isdecimal() or int(number) >= len(self.sets):
            raise UnsupportedLayerError(f"{self.name} does not know {layer.name!r}")
        return int(number)

    def cost_of(self, layer, precision):
        row, bits = self.row(layer), precision.weight_bits * precision.activation_bits
        factor = self.factors[row]
        latency = layer.macs * (factor * bits if factor > 0 else -factor * (300 - bits)) * 1e-6
        return {"latency_ms": latency, "luts": 10.0 * sum(precision) + row}


class RaisingSets(_Sets):
    """It says so by raising alone."""

    def layer_cost(self, layer, precision):
        self.asked.append((layer.name, precision))
        if precision not in self.sets[self.row(layer)]:
            raise UnsupportedPrecisionError(f"{layer.name} cannot run at {precision}")
        return self.cost_of(layer, precision)


class DeclaringSets(_Sets):
    """It says so in `allowed_precisions`, and never raises."""

    def allowed_precisions(self, workload, precisions):
        return [self.sets[self.row(layer)] for layer in workload]

    def layer_cost(self, layer, precision):
        return self.cost_of(layer, precision)


class WholeSets(DeclaringSets):
    """It says so, and tells the costs of whole networks only: the latency is that of the slowest layer."""

    def capabilities(self):
        return Capabilities.same_for_all_kinds(self.bits, self.metrics, additive=False)

    def evaluate(self, workload, allocation):
        allocation = allocation.require_layers(workload.layer_names, workload.name)
        require_allowed(self, workload, allocation)
        costs = [self.cost_of(layer, allocation[layer.name]) for layer in workload]
        return Cost(
            self.name,
            {
                "latency_ms": max(cost["latency_ms"] for cost in costs),
                "luts": math.fsum(cost["luts"] for cost in costs),
            },
        )
