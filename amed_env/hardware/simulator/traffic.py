"""Traffic between external memory and the on-chip buffers: tiling of matrix products into declared sizes.

Every layer takes the cheapest of a few loop orders, width by width. The numbers that a tile size depends on
are those of the weights or those of the activations alone, so that all but the final choice is computed on
arrays of layers x weight widths or layers x activation widths.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from amed_env.hardware.simulator.layer_arrays import LayerArrays
from amed_env.hardware.simulator.systolic import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]
_NEVER = 1e30  # tiles; far above any count, and finite, so that products with 0 bits stay 0


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
        spilled_bits: Sums that are written and read back between parts of K, both ways together.
        loaded_bits: Sums read before the first product.
        stored_bits: Outputs, or sums, written after the last one.
        total_bits: All of them.
        resident: The share of activations, of weights, and of sums and outputs that is loaded before the first
            and stored after the last product: tensors that fit their buffer as a whole.
    """

    ifmap_bits: FloatArray
    weight_bits: FloatArray
    spilled_bits: FloatArray
    loaded_bits: FloatArray
    stored_bits: FloatArray
    total_bits: FloatArray
    resident: tuple[FloatArray, FloatArray, FloatArray]

    @property
    def resident_bits(self) -> FloatArray:
        """The share of all tensors that is loaded before the first and stored after the last product."""
        ifmap, weight, ofmap = self.resident
        return ifmap + weight + ofmap

    @property
    def ofmap_read_bits(self) -> FloatArray:
        """Sums read, to be added to."""
        return self.spilled_bits / 2 + self.loaded_bits

    @property
    def ofmap_write_bits(self) -> FloatArray:
        """Sums and outputs written."""
        return self.spilled_bits / 2 + self.stored_bits


class _Order(NamedTuple):
    """A loop order: bits of activations, of weights, and of sums that leave and come back, of all groups."""

    ifmap: FloatArray
    weight: FloatArray
    spilled: FloatArray

    def total(self) -> FloatArray:
        """All of them; small arrays are added first."""
        if self.spilled.size > self.weight.size:
            return self.weight + (self.ifmap + self.spilled)
        return self.ifmap + (self.weight + self.spilled)


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
    elements = layers.output_elements.astype(np.float64)
    if memory.whole_columns:  # as the simulator of Bit Fusion counts
        elements = elements / n * np.ceil(n / memory.cols) * memory.cols
    sums = elements * memory.accumulator_bits
    tensors = _Tensors(
        m,
        n,
        k=shapes.k.astype(np.float64),
        groups=groups,
        inputs=layers.input_elements.astype(np.float64) * activation_bits,
        weights=layers.weight_elements.astype(np.float64) * weight_bits,
        sums=sums,
        memory=memory,
    )
    best, least = _cheapest(tensors.by_filters(weight_bits), tensors.other_orders())
    # At the layer's own activation width: the width of the next layer would be truer, but costs would not add up.
    stored = sums if memory.writes_sums else elements * activation_bits
    loaded = sums if memory.loads_sums else np.zeros_like(sums)
    resident = tensors.resident(loaded + stored)
    return DramTraffic(best.ifmap, best.weight, best.spilled, loaded, stored, least + (loaded + stored), resident)


@dataclass(frozen=True)
class _Tensors:
    """Layers as bits of all groups, and the orders in which they can be worked on, group by group."""

    m: FloatArray
    n: FloatArray
    k: FloatArray
    groups: FloatArray
    inputs: FloatArray
    weights: FloatArray
    sums: FloatArray
    memory: MemorySystem

    @property
    def inputs_fit(self) -> BoolArray:
        return self.inputs <= self.memory.ifmap_room * self.groups

    @property
    def weights_fit(self) -> BoolArray:
        return self.weights <= self.memory.weight_room * self.groups

    @property
    def sums_fit(self) -> BoolArray:
        return self.sums <= self.memory.ofmap_room * self.groups

    @property
    def inputs_again(self) -> FloatArray:
        """Activations that move again with every further tile."""
        return np.where(self.inputs_fit, 0, self.inputs)

    @property
    def weights_again(self) -> FloatArray:
        """Weights that move again with every further tile."""
        return np.where(self.weights_fit, 0, self.weights)

    @property
    def spills(self) -> FloatArray:
        """Sums that leave and come back between parts of K."""
        return np.where(self.sums_fit, 0, 2 * self.sums)

    @property
    def sums_held(self) -> float:
        return math.floor(self.memory.ofmap_room / self.memory.accumulator_bits)  # whole sums only

    def resident(self, outputs: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Bits of a group's tensors where they fit their buffer as a whole."""
        return (
            np.where(self.inputs_fit, self.inputs, 0) / self.groups,
            np.where(self.weights_fit, self.weights, 0) / self.groups,
            np.where(self.sums_fit, outputs, 0) / self.groups,
        )

    def by_filters(self, weight_bits: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Sums or weights stay, with one, two, four ... groups of columns worked on together.

        Returns:
            Bits of activations; of weights and sums that leave and come back together; of these sums alone. A
            new first axis runs over the numbers of filters.
        """
        memory = self.memory
        steps = 1 + math.ceil(math.log2(max(1.0, self.n.max(initial=1) / memory.cols)))
        # Doubling stays within a factor of two of the best number of filters, and a table of closed forms takes
        # milliseconds where a search for the best tile takes seconds (as the published simulator of Bit Fusion does).
        together = memory.cols * 2.0 ** np.arange(steps).reshape(-1, *(1,) * self.n.ndim)
        q = np.minimum(self.n, together)
        ifmap = self.inputs + self.inputs_again * _further_tiles(self.n, q)
        # Sums stay. The buffer holds those of a pixel and one group of columns in any case.
        wide = np.ceil(q / memory.cols) * memory.cols if memory.whole_columns else q
        pixels = np.floor(self.sums_held / wide)
        pixels[0] = np.maximum(pixels[0], 1)
        weight = self.weights + self.weights_again * _further_tiles(self.m, pixels)
        # Weights stay, a part of K at a time.
        depth = np.floor(memory.weight_room / (q * weight_bits))
        spilled = self.spills * _further_tiles(self.k, depth)
        parts_stay = self.weights + spilled
        rest = np.minimum(weight, parts_stay)
        return ifmap, rest, np.where(parts_stay < weight, spilled, 0)

    def other_orders(self) -> Iterator[_Order]:
        """Whole filters stay; all activations of a part of K stay; activations of some pixels stay."""
        memory, zero = self.memory, np.zeros(())
        filters = np.floor(memory.weight_room * self.groups * self.n / self.weights)
        filters = np.where(filters >= memory.cols, np.floor(filters / memory.cols) * memory.cols, filters)
        yield _Order(self.inputs + self.inputs_again * _further_tiles(self.n, filters), self.weights, zero)

        parts = np.ceil(self.inputs / (memory.ifmap_room * self.groups))
        yield _Order(self.inputs, self.weights, self.spills * (parts - 1))

        columns = np.minimum(self.n, memory.cols)
        pixels = np.floor(np.minimum(memory.ifmap_room * self.groups * self.m / self.inputs, self.sums_held / columns))
        yield _Order(self.inputs, self.weights + self.weights_again * _further_tiles(self.m, pixels), zero)


def _cheapest(stack: tuple[FloatArray, FloatArray, FloatArray], others: Iterator[_Order]) -> tuple[_Order, FloatArray]:
    """The order with the least traffic, place by place, and that traffic; the first of equals.

    Args:
        stack: Orders along the first axis, as `_Tensors.by_filters` answers.
        others: Further ones.
    """
    inputs, rest, _ = stack
    least = np.asarray(inputs[0] + rest[0])
    chosen = np.zeros(least.shape, dtype=np.int8)
    total, better = np.empty_like(least), np.empty(least.shape, dtype=np.bool_)
    # In place, one order after the other, so that no array of all orders is made.
    for place in range(1, len(rest)):
        np.add(inputs[place], rest[place], out=total)
        np.less(total, least, out=better)
        np.maximum(chosen, better.view(np.int8) * np.int8(place), out=chosen)  # places rise
        np.minimum(total, least, out=least)
    best = _Order(*_gather(stack, chosen))
    np.subtract(best.weight, best.spilled, out=best.weight)
    for order in others:
        total = np.asarray(order.total())
        np.less(total, least, out=better)
        if better.any():
            np.minimum(total, least, out=least)
            for values, part in zip(best, order, strict=True):
                np.copyto(values, part, where=better)
    return best, least


def _gather(stack: Sequence[FloatArray], chosen: npt.NDArray[np.int8]) -> Iterator[FloatArray]:
    """At every place the values of the chosen entry of the first axis; the others broadcast to the choice."""
    shape: tuple[int, ...] = ()
    for values in stack:
        if values.shape[1:] != shape:  # weights and sums have one shape, and so one index
            shape = values.shape[1:]
            size = math.prod(shape)
            index = chosen * np.int64(size) + np.arange(size).reshape(shape)
        yield np.ascontiguousarray(values).ravel().take(index)


def _further_tiles(size: FloatArray, tile: FloatArray) -> FloatArray:
    """Tiles after the first one; beyond all measure where a tile is empty, so that nobody chooses it."""
    return np.where(tile >= 1, np.ceil(size / np.maximum(tile, 1)) - 1, _NEVER)
