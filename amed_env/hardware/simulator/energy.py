"""Energy of arithmetic, on-chip buffers and external memory of an array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from amed_env.hardware.files.device_sections import MacEnergySection, SramEnergySection
from amed_env.hardware.simulator.arrays import ArrayAccesses
from amed_env.hardware.simulator.precision_models import PrecisionEffect
from amed_env.hardware.simulator.systolic import FloatArray, IntArray
from amed_env.hardware.simulator.traffic import DramTraffic

_UJ = 1e-6
"""uJ in a pJ."""


def mac_energy_by_bits(section: MacEnergySection) -> FloatArray:
    """Energy of one multiply-accumulate in pJ for every width from 1 to the widest of the table.

    Returns:
        float64 array, indexed by the width; index 0 is not used.
    """
    widths = np.array(sorted(section.pj_by_bits))
    energies = np.array([section.pj_by_bits[int(width)] for width in widths], dtype=np.float64)
    every_width = np.arange(widths[-1] + 1)
    if section.between == "next":
        return np.asarray(energies[np.searchsorted(widths, every_width)])
    # Energy of a multiplier follows a power of its width, a line in log-log scale. np.interp keeps the end values
    # outside the table, which is the stated rule below the narrowest width.
    return np.asarray(np.exp(np.interp(np.log(np.maximum(every_width, 1)), np.log(widths), np.log(energies))))


@dataclass(frozen=True)
class EnergyModel:
    """Energies of an array, its buffers and its external memory.

    Attributes:
        mac_pj: pJ of a multiply-accumulate by width, as `mac_energy_by_bits` answers.
        sram: Energies of the on-chip buffers.
        dram_pj_per_bit: Energy of moving a bit to or from external memory.
        accumulator_bits: Width of a sum.
    """

    mac_pj: FloatArray
    sram: SramEnergySection
    dram_pj_per_bit: float
    accumulator_bits: int

    def sums_uj(self, sum_writes: FloatArray) -> FloatArray:
        """Energy in uJ of sums in their buffer: written, and read once, to be added to or to leave the chip."""
        # Sums stay at accumulator width whatever the operands: narrow operands do not make them cheaper.
        per_sum = self.accumulator_bits * (self.sram.ofmap_read_pj_per_bit + self.sram.ofmap_write_pj_per_bit)
        return np.asarray(sum_writes * (per_sum * _UJ))

    def add_uj(
        self,
        energy: FloatArray,
        macs: FloatArray,
        accesses: ArrayAccesses,
        traffic: DramTraffic,
        effect: PrecisionEffect,
        weight_bits: IntArray,
        activation_bits: IntArray,
    ) -> None:
        """Add to `energy`, in uJ, that of arithmetic, operands and external memory; all arrays broadcast to it.

        A pair of widths costs the geometric mean of the two equal pairs: a multiplier's energy grows with the
        product of its operand widths, so that E(w, a) = sqrt(E(w, w) E(a, a)). What comes from external memory is
        written into its buffer. Sums on the chip are those of `sums_uj`.
        """
        sram, dram = self.sram, self.dram_pj_per_bit
        per_mac = np.sqrt(self.mac_pj[weight_bits] * self.mac_pj[activation_bits])
        per_ifmap = activation_bits * effect.ifmap_rereads * sram.ifmap_read_pj_per_bit
        per_weight = weight_bits * effect.weight_rereads * sram.weight_read_pj_per_bit
        outputs = traffic.stored_bits * (dram * _UJ)
        outputs = outputs + traffic.loaded_bits * ((sram.ofmap_write_pj_per_bit + dram) * _UJ)
        term = np.empty_like(energy)
        for values, picojoule in (
            (macs, per_mac),
            (traffic.ifmap_bits, sram.ifmap_write_pj_per_bit + dram),
            (traffic.weight_bits, sram.weight_write_pj_per_bit + dram),
        ):
            energy += np.multiply(values, picojoule * _UJ, out=term)
        # These often depend on fewer widths, so that little is computed for them.
        energy += accesses.ifmap_reads * (per_ifmap * _UJ) + outputs
        energy += accesses.weight_reads * (per_weight * _UJ)
        # Half of the spilled bits are written into the buffer when they come back; all of them cross the interface.
        if traffic.spilled_bits.any():
            energy += np.multiply(traffic.spilled_bits, (sram.ofmap_write_pj_per_bit / 2 + dram) * _UJ, out=term)
