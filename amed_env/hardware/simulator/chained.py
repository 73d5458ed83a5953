"""An accelerator that keeps activations on chip between neighbouring layers: an example whose costs do not add up.

It is Bit Fusion with one more buffer and a sixth of the memory bandwidth. What a layer writes stays in the buffer if it
fits, and the next layer reads it from there, so that neither crosses the memory interface. How many bits that is
depends on the width at which the *next* layer reads, so a layer's cost depends on its neighbour's precision, and no
table by layer can hold it. What a layer costs at the least, with the narrowest neighbour, is known beforehand
(`lower_bound`).

A workload is a list without connections, so a layer is taken to read what the layer before it in the list wrote if that
has the channels that it reads and at least as many elements (pooling in between leaves fewer). Branches and additions
of residual networks are not seen; the second reader of a tensor is taken to read it from memory. The extra buffer and
the narrow memory interface are design choices of this example, not parts of any published chip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from amed_env.hardware.files.config import SystolicConfig, parse_device_config
from amed_env.hardware.metrics import METRIC_UNITS
from amed_env.hardware.protocol import Capabilities, Cost, CostTable, HardwareBackend, LayerCost
from amed_env.hardware.simulator.simulator import BITS_PER_KIB, METRICS, SystolicBackend, bound_of
from amed_env.hardware.simulator.systolic import IntArray
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.workload import Workload

_DEVICE = """\
extends: bitfusion
name: bitfusion-chained
dram:
  bandwidth_bits_per_cycle: 32
  source: a choice of this example, where memory decides about many layers
"""


class ChainedBackend(HardwareBackend):
    """Bit Fusion that keeps activations on chip between neighbouring layers where they fit; costs do not add up.

    Args:
        kept_kib: Size of the buffer for activations between layers, in KiB.
    """

    name = "bitfusion-chained"
    description = "bitfusion at 32 bits a cycle that keeps up to 8 KiB on chip from layer to layer; costs do not add up"
    metrics: Mapping[str, str] = {metric: METRIC_UNITS[metric] for metric in METRICS}

    def __init__(self, kept_kib: float = 8.0) -> None:
        self.kept_kib = kept_kib
        config = parse_device_config(_DEVICE, "bitfusion-chained")
        assert isinstance(config, SystolicConfig)  # as bitfusion is
        self._device = SystolicBackend(config)
        self.bits = self._device.bits

    def capabilities(self) -> Capabilities:
        """The widths of the device that it extends; deterministic, not additive."""
        inner = self._device.capabilities()
        return Capabilities(inner.weight_bits, inner.activation_bits, dict(self.metrics), additive=False)

    def evaluate(self, workload: Workload, allocation: BitAllocation) -> Cost:
        """Cost of a network: totals, and for every layer its share under this allocation and the bound that held.

        Raises:
            UnsupportedPrecisionError: If a width is not among those of the device.
            AllocationError: If the allocation does not have exactly the workload's layers.
        """
        allocation = allocation.require_layers(workload.layer_names, f"network {workload.name!r}")
        own = np.array([precision.activation_bits for precision in allocation.values()], dtype=np.int64)
        following = np.append(own[1:], own[-1])  # what the network returns is written at the last layer's own width
        metrics = self._metrics(workload, allocation, own, following)
        layers = []
        for row, (name, precision) in enumerate(allocation.items()):
            of_layer = {metric: values[row].item() for metric, values in metrics.items()}
            layers.append(LayerCost(name, precision, of_layer, bound_of(of_layer)))
        return Cost.of_layers(self.name, layers, METRICS)

    def lower_bound(self, workload: Workload, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> CostTable:
        """What every layer costs if the next one reads at the narrowest of the widths: arrays of shape (L, W, A).

        Fewer bits of a neighbour never cost more here, so no allocation of these widths is below the sum.

        Raises:
            UnsupportedPrecisionError: If a width is not among those of the device.
        """
        shape = (len(workload), len(weight_bits), len(activation_bits))
        bounds = {metric: np.zeros(shape) for metric in METRICS}
        narrowest = np.full(len(workload), min(activation_bits), dtype=np.int64)
        for i, weight in enumerate(weight_bits):
            for j, activation in enumerate(activation_bits):
                own = np.full(len(workload), activation, dtype=np.int64)
                following = narrowest.copy()
                following[-1] = activation
                metrics = self._metrics(workload, workload.uniform(weight, activation), own, following)
                for metric, values in metrics.items():
                    bounds[metric][:, i, j] = values
        return CostTable(workload.layer_names, tuple(weight_bits), tuple(activation_bits), bounds)

    def _metrics(
        self, workload: Workload, allocation: BitAllocation, own: IntArray, following: IntArray
    ) -> dict[str, npt.NDArray[np.generic]]:
        """Metrics of every layer, arrays of shape (L,).

        Args:
            workload: The network.
            allocation: The precisions.
            own: (L,) the width at which a layer reads its input.
            following: (L,) the width at which what it writes will be read.
        """
        config = self._device.config
        alone = self._device.evaluate(workload, allocation)
        weights = np.array([precision.weight_bits for precision in allocation.values()], dtype=np.int64)
        traffic = self._device.dram_traffic(workload.layers, weights, own)
        room = self.kept_kib * BITS_PER_KIB
        outputs = np.array([float(layer.output_elements) for layer in workload])
        # The last layer's output leaves the chip.
        hands_on = np.append(self._follows(workload)[1:], False)
        # A tensor is written at the width of its reader, and so fits or not whichever of the two is asked.
        written = np.where(hands_on & (outputs * following <= room), 0.0, outputs * following)
        before = np.append(0.0, outputs[:-1])
        read = np.where(self._follows(workload) & (before * own <= room), 0.0, traffic.ifmap_bits)
        saved = (traffic.ifmap_bits - read) + (outputs * own - written)
        bits = traffic.total_bits - saved
        compute = np.array([int(layer.metrics["compute_cycles"]) for layer in alone.layers], dtype=np.int64)
        memory = np.ceil(bits / config.bandwidth_bits_per_cycle).astype(np.int64)
        cycles = np.maximum(compute, memory) + config.array.overhead_cycles_per_layer
        energy = np.array([float(layer.metrics["energy_uj"]) for layer in alone.layers])
        return {
            "latency_ms": cycles / (config.array.clock_mhz * 1e3),
            "energy_uj": energy - saved * config.energy.dram.pj_per_bit * 1e-6,
            "cycles": cycles,
            "compute_cycles": compute,
            "memory_cycles": memory,
        }

    @staticmethod
    def _follows(workload: Workload) -> npt.NDArray[np.bool_]:
        """(L,) whether a layer reads what the layer before it wrote."""
        follows = [False]
        for before, layer in pairwise(workload.layers):
            same_channels = before.out_channels == layer.in_channels
            follows.append(same_channels and layer.input_elements <= before.output_elements)
        return np.array(follows)
