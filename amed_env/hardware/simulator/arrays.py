"""Arrays of processing elements: cycles of layers, and what the array reads from and writes to its buffers."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from amed_env.hardware.files.device_sections import ArraySection
from amed_env.hardware.simulator.layer_arrays import GemmShapes
from amed_env.hardware.simulator.row_stationary import RowStationaryMapping, row_stationary_mapping
from amed_env.hardware.simulator.systolic import (
    Dataflow,
    FloatArray,
    IntArray,
    ceil_divide,
    checked_product,
    gemm_cycles,
    gemm_sram_accesses,
)


class ArrayAccesses(NamedTuple):
    """Elements that cross the edge of the array in all groups: float64 arrays that broadcast.

    Attributes:
        ifmap_reads: Activations read in one pass.
        weight_reads: Weights read in one pass.
        sum_writes: Sums written in one pass; each is read once again.
    """

    ifmap_reads: FloatArray
    weight_reads: FloatArray
    sum_writes: FloatArray


class ProcessingArray(abc.ABC):
    """An array of processing elements.

    Attributes:
        cols: Columns; sums of so many filters are made together.
    """

    cols: int

    @abc.abstractmethod
    def cycles(self, shapes: GemmShapes, split: IntArray) -> IntArray:
        """Cycles of one pass over layers without waiting for memory: int64 of the broadcast shape.

        Groups (the channels of a depthwise layer) run one after the other, each a product of its own.

        Args:
            shapes: The matrix products.
            split: Products that one element does at once.

        Raises:
            WorkloadError: If a result is beyond int64.
        """

    @abc.abstractmethod
    def accesses(self, shapes: GemmShapes, split: IntArray) -> ArrayAccesses:
        """Accesses of the on-chip buffers in one pass.

        Args, errors: as `cycles`.
        """


@dataclass(frozen=True)
class SystolicArray(ProcessingArray):
    """A grid through which operands move from neighbour to neighbour.

    Attributes:
        rows: Rows.
        cols: Columns.
        dataflow: `os`, `ws` or `is`.
        convolution: `im2col` packs the whole sum of an output into the array; `direct` takes one kernel
            position after the other, so that rows hold input channels only.
        fill_and_drain: Whether every fold fills and drains the array on its own.
    """

    rows: int
    cols: int
    dataflow: Dataflow
    convolution: Literal["im2col", "direct"] = "im2col"
    fill_and_drain: bool = True

    def cycles(self, shapes: GemmShapes, split: IntArray) -> IntArray:
        """The closed forms of `gemm_cycles`, with K as the array sees it."""
        k = self.reduction(shapes, split)
        cycles = gemm_cycles(
            shapes.m, shapes.n, k, self.rows, self.cols, self.dataflow, fill_and_drain=self.fill_and_drain
        )
        return checked_product("compute cycles of a layer", shapes.groups, cycles)

    def accesses(self, shapes: GemmShapes, split: IntArray) -> ArrayAccesses:
        """The closed forms of `gemm_sram_accesses`.

        Operands count as in the unsplit product; sums follow the product as the array sees it.
        """
        # Splitting fuses narrow operands into one element's word: as many operands enter, in fewer, wider words, while
        # the elements' sums are already added up when they leave.
        operands = gemm_sram_accesses(shapes.m, shapes.n, shapes.k, self.rows, self.cols, self.dataflow)
        k = self.reduction(shapes, split)
        sums = gemm_sram_accesses(shapes.m, shapes.n, k, self.rows, self.cols, self.dataflow).ofmap_writes
        groups = shapes.groups.astype(np.float64)
        return ArrayAccesses(groups * operands.ifmap_reads, groups * operands.weight_reads, groups * sums)

    def reduction(self, shapes: GemmShapes, split: IntArray) -> IntArray:
        """Products summed for one output as the array sees them.

        That is K after splitting; direct convolution rounds up at every kernel position.

        Args:
            shapes: The matrix products.
            split: Products that one element does at once.
        """
        if self.convolution == "im2col":
            return ceil_divide(shapes.k, split)
        channels = ceil_divide(shapes.k // shapes.positions, split)
        # Where channels lie along the rows, the last fold of every kernel position is only partly filled, as the
        # simulator of Bit Fusion counts (hsharma35/bitfusion). With outputs in place channels stream and fill no rows.
        if self.dataflow != "os":
            channels = np.where(shapes.positions > 1, ceil_divide(channels, self.rows) * self.rows, channels)
        return checked_product("products of an output", shapes.positions, channels)


@dataclass(frozen=True)
class RowStationaryArray(ProcessingArray):
    """The row-stationary mapping of Eyeriss; see `row_stationary.py`.

    Attributes:
        rows: Rows.
        cols: Columns.
    """

    rows: int
    cols: int

    def cycles(self, shapes: GemmShapes, split: IntArray) -> IntArray:
        """One multiply-accumulate a cycle in every element that the mapping uses."""
        mapping = self._mapping(shapes, split)
        return checked_product("compute cycles of a layer", shapes.groups, mapping.cycles)

    def accesses(self, shapes: GemmShapes, split: IntArray) -> ArrayAccesses:
        """Accesses of the global buffer."""
        mapping = self._mapping(shapes, split)
        groups = shapes.groups.astype(np.float64)
        return ArrayAccesses(groups * mapping.ifmap_reads, groups * mapping.weight_reads, groups * mapping.sum_writes)

    def _mapping(self, shapes: GemmShapes, split: IntArray) -> RowStationaryMapping:
        return row_stationary_mapping(shapes, split, self.rows, self.cols)


def make_array(section: ArraySection) -> ProcessingArray:
    """The array that a device file describes."""
    if section.dataflow == "rs":
        return RowStationaryArray(section.rows, section.cols)
    return SystolicArray(section.rows, section.cols, section.dataflow, section.convolution, section.fill_and_drain)
