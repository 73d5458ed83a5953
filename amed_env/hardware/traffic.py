"""Traffic between external memory and the on-chip buffers: tiling of matrix products into declared sizes.

Every layer takes the cheapest of a few loop orders, width by width. The numbers that a tile size depends on
are those of the weights or those of the activations alone, so that all but the final choice is computed on
arrays of layers x weight widths or layers x activation widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from amed_env.hardware.layer_arrays import LayerArrays
from amed_env.hardware.systolic import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MemorySystem:
    """Buffers and the habits of an accelerator's memory side.

    Attributes:
        ifmap_room: Bits of activations that the on-chip buffer holds at a time.
        weight_room: The same for weights.
        ofmap_room: The same for sums.
        cols: Columns of the array; sums of so many filters are made together.
        accumulator_bits: Width of a sum.
        writes_sums: Whether outputs leave as sums at accumulator width instead of requantized.
        loads_sums: Whether sums are loaded from external memory before the first product is added.
        whole_columns: Whether sums of a last, partly used group of columns count in full.
    """

    ifmap_room: float
    weight_room: float
    ofmap_room: float
    cols: int
    accumulator_bits: int
    writes_sums: bool = False
    loads_sums: bool = False
    whole_columns: bool = False


@dataclass(frozen=True)
class DramTraffic:
    """Bits that cross the memory interface: float64 arrays that broadcast.

    Attributes:
        ifmap_bits: Activations read.
        weight_bits: Weights read.
        ofmap_read_bits: Sums read back, to be added to.
        ofmap_write_bits: Outputs and sums written.
        resident_bits: The share that is loaded before the first and stored after the last product: tensors
            that fit their buffer as a whole.
    """

    ifmap_bits: FloatArray
    weight_bits: FloatArray
    ofmap_read_bits: FloatArray
    ofmap_write_bits: FloatArray
    resident_bits: FloatArray

    @property
    def ofmap_bits(self) -> FloatArray:
        """Sums and outputs, read and written."""
        return self.ofmap_read_bits + self.ofmap_write_bits

    @property
    def read_bits(self) -> FloatArray:
        """Everything that is read."""
        return self.ifmap_bits + self.weight_bits + self.ofmap_read_bits

    @property
    def total_bits(self) -> FloatArray:
        """All three tensors."""
        return self.ifmap_bits + self.weight_bits + self.ofmap_bits


class _Order(NamedTuple):
    """A loop order: bits of activations, of weights, and of sums that leave and come back."""

    ifmap: FloatArray
    weight: FloatArray
    spilled: FloatArray


def plan_traffic(
    layers: LayerArrays, weight_bits: IntArray, activation_bits: IntArray, memory: MemorySystem
) -> DramTraffic:
    """Traffic of layers at given widths, by the cheapest loop order of each.

    Groups follow each other and are tiled one by one. Q filters are worked on together, Q being one, two,
    four ... column groups of the array, up to all filters. The orders, for one group:

    - *sums stay*: the sums of Q filters and of as many pixels as the output buffer holds; K streams by.
      Activations are read for every Q filters, weights for every such tile of pixels.
    - *weights stay*: as much of K of Q filters as the weight buffer holds; all pixels stream by. Activations
      are read for every Q filters; sums leave and come back for every further part of K. A second form keeps
      whole filters, as many as fit.
    - *activations stay*: as many pixels as the activation buffer holds and one column group of sums; weights
      stream by for every such tile. A second form keeps all pixels and a part of K, and sums leave and come
      back.

    A tensor that fits its buffer is read once in any order; sums that fit never leave in between.

    Args:
        layers: The layers.
        weight_bits: Widths of weights; broadcasts with the layers.
        activation_bits: Widths of activations; broadcasts with both.
        memory: Buffers and habits.
    """
    shapes = layers.shapes
    groups, m, n = (values.astype(np.float64) for values in (shapes.groups, shapes.m, shapes.n))
    inputs = layers.input_elements / groups * activation_bits
    weights = layers.weight_elements / groups * weight_bits
    elements = layers.output_elements / groups
    if memory.whole_columns:
        elements = elements / n * np.ceil(n / memory.cols) * memory.cols
    sums = elements * memory.accumulator_bits
    spills = np.where(sums <= memory.ofmap_room, 0.0, 2 * sums)
    tensors = _Tensors(m, n, shapes.k.astype(np.float64), inputs, weights, spills, memory)
    best = _cheapest(tensors.orders(weight_bits))
    once = sums if memory.writes_sums else elements * activation_bits
    read_back = best.spilled / 2
    first = sums if memory.loads_sums else np.zeros_like(sums)
    resident = (
        np.where(tensors.inputs_fit, inputs, 0)
        + np.where(tensors.weights_fit, weights, 0)
        + np.where(sums <= memory.ofmap_room, once + first, 0)
    )
    return DramTraffic(
        ifmap_bits=groups * best.ifmap,
        weight_bits=groups * best.weight,
        ofmap_read_bits=groups * (read_back + first),
        ofmap_write_bits=groups * (read_back + once),
        resident_bits=resident,
    )


@dataclass(frozen=True)
class _Tensors:
    """One group of each layer in bits, and the orders in which it can be worked on."""

    m: FloatArray
    n: FloatArray
    k: FloatArray
    inputs: FloatArray
    weights: FloatArray
    spills: FloatArray
    memory: MemorySystem

    @property
    def inputs_fit(self) -> BoolArray:
        return self.inputs <= self.memory.ifmap_room

    @property
    def weights_fit(self) -> BoolArray:
        return self.weights <= self.memory.weight_room

    def orders(self, weight_bits: IntArray) -> Iterator[_Order]:
        memory, zero = self.memory, np.zeros(())
        inputs_again = np.where(self.inputs_fit, 0, self.inputs)
        weights_again = np.where(self.weights_fit, 0, self.weights)
        sums_held = np.floor(memory.ofmap_room / memory.accumulator_bits)

        # Whole filters stay, in groups of columns if the buffer holds that many.
        filters = np.floor(memory.weight_room * self.n / self.weights)
        filters = np.where(filters >= memory.cols, np.floor(filters / memory.cols) * memory.cols, filters)
        again = _tiles(self.n, filters) - 1
        yield _Order(self.inputs + _repeated(inputs_again, again), self.weights, zero)

        # Activations of all pixels stay, a part of K at a time.
        yield _Order(self.inputs, self.weights, self.spills * (np.ceil(self.inputs / memory.ifmap_room) - 1))

        # Activations of some pixels stay.
        columns = np.minimum(self.n, memory.cols)
        pixels = np.floor(np.minimum(memory.ifmap_room * self.m / self.inputs, sums_held / columns))
        again = _tiles(self.m, pixels) - 1
        yield _Order(self.inputs, self.weights + _repeated(weights_again, again), zero)

        together = memory.cols
        while True:
            q = np.minimum(self.n, together)
            ifmap = self.inputs + inputs_again * (np.ceil(self.n / q) - 1)
            # Sums stay. The buffer holds those of a pixel and one group of columns in any case.
            wide = np.ceil(q / memory.cols) * memory.cols if memory.whole_columns else q
            pixels = np.floor(sums_held / wide)
            pixels = np.maximum(pixels, 1) if together == memory.cols else pixels
            weight = self.weights + _repeated(weights_again, _tiles(self.m, pixels) - 1)
            # Weights stay, a part of K at a time.
            parts = _tiles(self.k, np.floor(memory.weight_room / (q * weight_bits)))
            spilled = _repeated(self.spills, parts - 1)
            parts_stay = self.weights + spilled < weight
            yield _Order(ifmap, np.where(parts_stay, self.weights, weight), np.where(parts_stay, spilled, 0))
            if together >= self.n.max(initial=1):
                return
            together *= 2


def _cheapest(orders: Iterator[_Order]) -> _Order:
    """The order with the least traffic, place by place."""
    best = next(orders)
    least = best.ifmap + best.weight + best.spilled
    for order in orders:
        total = order.ifmap + (order.weight + order.spilled)
        better = total < least
        if better.any():
            least = np.where(better, total, least)
            best = _Order(*(np.where(better, new, old) for new, old in zip(order, best, strict=True)))
    return best


def _tiles(size: FloatArray, tile: FloatArray) -> FloatArray:
    """Number of tiles, infinite where a tile is empty."""
    return np.where(tile >= 1, np.ceil(size / np.maximum(tile, 1)), np.inf)


def _repeated(bits: FloatArray, times: FloatArray) -> FloatArray:
    """Bits that are moved again so many times; 0 for a tensor that need not move again, even without a tile."""
    with np.errstate(invalid="ignore"):
        return np.where(bits > 0, bits * times, 0)
