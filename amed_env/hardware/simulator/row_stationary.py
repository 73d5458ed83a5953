"""The row-stationary mapping of Eyeriss in closed form.

A processing element convolves one row of a kernel with one row of an activation map. A column of as many
elements as the kernel is high makes one row of outputs; columns make the rows below it. Where the array is
higher than the kernel, or wider than the output, further such blocks work on other channels or filters.

Source: Chen, Krishna, Emer, Sze, JSSC 2017 (Eyeriss), sections III and V: 12 x 14 elements, scratch pads of
12 activations, 224 weights and 24 sums in every element.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from amed_env.hardware.simulator.layer_arrays import GemmShapes
from amed_env.hardware.simulator.systolic import IntArray, ceil_divide, checked_product

IFMAP_PAD, WEIGHT_PAD, SUM_PAD = 12, 224, 24
"""Words of the scratch pads of an element."""


class RowStationaryMapping(NamedTuple):
    """One group of layers on the array: int64 arrays of the broadcast shape.

    Attributes:
        active: Elements that work, on average over the strips of output rows.
        cycles: Cycles without waiting for memory.
        ifmap_reads: Activations read from the global buffer.
        weight_reads: Weights read.
        sum_writes: Sums written to the global buffer.
    """

    active: IntArray
    cycles: IntArray
    ifmap_reads: IntArray
    weight_reads: IntArray
    sum_writes: IntArray


def row_stationary_mapping(shapes: GemmShapes, split: IntArray, rows: int, cols: int) -> RowStationaryMapping:
    """Map layers onto an array of rows x cols elements.

    Args:
        shapes: The matrix products. Kernels with `positions` that are a square are taken as square, all
            others as one row; outputs are taken as the smallest square that holds the pixels of one image. Images
            of a batch come one after the other.
        split: Products that one element does at once.
        rows: Rows of the array.
        cols: Columns of the array.

    Raises:
        WorkloadError: If a result is beyond int64.
    """
    side = _root(shapes.positions)
    height = np.where(side * side == shapes.positions, side, 1)
    products = ceil_divide(shapes.k, split)
    channels = ceil_divide(products, shapes.positions)
    width = ceil_divide(products, channels * height)  # of a kernel row, after splitting
    pixels = shapes.m // shapes.batch
    output_rows = _root(pixels - 1) + 1
    # A kernel that is higher than the array is folded; blocks of kernel rows are stacked in both directions.
    kernel_folds = ceil_divide(height, rows)
    block_height = ceil_divide(height, kernel_folds)
    strips = ceil_divide(output_rows, cols)
    block_width = ceil_divide(output_rows, strips)
    blocks = (rows // block_height) * (cols // block_width)
    pairs = checked_product("pairs of filters and channels", shapes.n, channels)
    rounds = ceil_divide(pairs, blocks)
    pixels_of_a_row = ceil_divide(pixels, output_rows)
    cycles = checked_product(
        "cycles of a row-stationary layer", shapes.batch, rounds, strips, kernel_folds, width, pixels_of_a_row
    )
    # Filters that one element keeps: they share every activation that it reads.
    channels_kept = np.minimum(channels, np.maximum(1, IFMAP_PAD // width))
    # Limited by the pad of weights and by the pad of sums, one sum a filter.
    filters_kept = np.minimum(shapes.n, np.clip(WEIGHT_PAD // (channels_kept * width), 1, SUM_PAD))
    summed = np.minimum(channels, channels_kept * (rows // block_height))
    ifmap = checked_product("activation reads", ceil_divide(shapes.n, filters_kept), shapes.m, shapes.k)
    # Diagonals and sliding windows pass an activation on inside the array: it is read once for a whole kernel.
    ifmap = ceil_divide(ifmap, height * width)
    return RowStationaryMapping(
        active=ceil_divide(pairs * output_rows * block_height, rounds * strips),
        cycles=cycles,
        ifmap_reads=ifmap,
        weight_reads=checked_product("weight reads", shapes.batch, strips, shapes.n, shapes.k),
        sum_writes=checked_product("output writes", ceil_divide(channels, summed), shapes.m, shapes.n),
    )


def _root(values: IntArray) -> IntArray:
    """The largest integer whose square is not above the value; exact."""
    # The square root of a large integer may be rounded to the next one, in both directions.
    root = np.floor(np.sqrt(values.astype(np.float64))).astype(np.int64)
    root = np.where(root * root > values, root - 1, root)
    return np.where((root + 1) * (root + 1) <= values, root + 1, root)
