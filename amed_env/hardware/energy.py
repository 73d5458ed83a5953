"""Energy of arithmetic and on-chip buffers of an array, in pJ."""

from __future__ import annotations

import numpy as np

from amed_env.hardware.arrays import ArrayAccesses
from amed_env.hardware.device_sections import MacEnergySection, SramEnergySection
from amed_env.hardware.layer_arrays import LayerArrays
from amed_env.hardware.precision_models import PrecisionEffect
from amed_env.hardware.systolic import FloatArray, IntArray
from amed_env.hardware.traffic import DramTraffic


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


def arithmetic_energy_pj(
    layers: LayerArrays, weight_bits: IntArray, activation_bits: IntArray, pj_by_bits: FloatArray
) -> FloatArray:
    """Energy of arithmetic; a pair of widths costs the geometric mean of the two equal pairs.

    A multiplier's energy grows with the product of its operand widths, so that
    E(w, a) = sqrt(E(w, w) E(a, a)).
    """
    shapes = layers.shapes
    macs = shapes.m.astype(np.float64) * shapes.n * shapes.k * shapes.groups
    return np.asarray(macs * np.sqrt(pj_by_bits[weight_bits] * pj_by_bits[activation_bits]))


def buffer_energy_pj(
    accesses: ArrayAccesses,
    effect: PrecisionEffect,
    weight_bits: IntArray,
    activation_bits: IntArray,
    traffic: DramTraffic,
    accumulator_bits: int,
    sram: SramEnergySection,
) -> FloatArray:
    """Energy of the on-chip buffers: what the array reads and writes, and what external memory fills in.

    Every sum that is written is read once: to be added to, or to leave the chip.
    """
    per_ifmap = activation_bits * effect.ifmap_rereads * sram.ifmap_read_pj_per_bit
    per_weight = weight_bits * effect.weight_rereads * sram.weight_read_pj_per_bit
    per_sum = accumulator_bits * (sram.ofmap_read_pj_per_bit + sram.ofmap_write_pj_per_bit)
    return np.asarray(
        accesses.ifmap_reads * per_ifmap
        + accesses.weight_reads * per_weight
        + accesses.sum_writes * per_sum
        + traffic.ifmap_bits * sram.ifmap_write_pj_per_bit
        + traffic.weight_bits * sram.weight_write_pj_per_bit
        + traffic.ofmap_read_bits * sram.ofmap_write_pj_per_bit
    )
