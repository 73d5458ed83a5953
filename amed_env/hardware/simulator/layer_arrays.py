"""The layers of a network as arrays, which the cost models compute with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter

import numpy as np

from amed_env.hardware.simulator.systolic import FloatArray, IntArray, float_to_int64
from amed_env.problem.workload import Layer


@dataclass(frozen=True)
class GemmShapes:
    """Matrix products of layers: int64 arrays of one shape.

    Attributes:
        m: Output pixels, times the batch.
        n: Filters of one group.
        k: Products summed for one output.
        groups: Independent products of this shape.
        positions: Kernel height x width into which `k` divides; 1 for matrix products, and for layers whose
            kernel is not known or that are lowered to one.
        batch: Images of which `m` has the pixels.
    """

    m: IntArray
    n: IntArray
    k: IntArray
    groups: IntArray
    positions: IntArray
    batch: IntArray


@dataclass(frozen=True)
class LayerArrays:
    """Layers as int64 arrays of one shape; the element counts are those of all groups together."""

    shapes: GemmShapes
    input_elements: IntArray
    weight_elements: IntArray
    output_elements: IntArray

    @property
    def macs(self) -> FloatArray:
        """Multiply-accumulates of all groups."""
        shapes = self.shapes
        return shapes.m.astype(np.float64) * shapes.n * shapes.k * shapes.groups

    def __getitem__(self, block: slice) -> LayerArrays:
        """Some of the layers along the last axis."""
        shapes = GemmShapes(*(values[..., block] for values in vars(self.shapes).values()))
        elements = (self.input_elements, self.weight_elements, self.output_elements)
        return LayerArrays(shapes, *(values[..., block] for values in elements))

    @classmethod
    def of(
        cls, layers: Sequence[Layer], shape: tuple[int, ...], lowered_up_to_channels: int | None = None
    ) -> LayerArrays:
        """Arrays of the given shape.

        Args:
            layers: As many layers as the shape has places.
            shape: Shape of the arrays.
            lowered_up_to_channels: Convolutions with at most so many input channels are lowered to a matrix
                product in external memory (im2col), so that their inputs count m x k x groups elements; None:
                the array builds the product from the plain inputs.

        Raises:
            WorkloadError: If a size is beyond int64.
        """
        limit = 0 if lowered_up_to_channels is None else lowered_up_to_channels
        rows = [_sizes(layer, limit) for layer in layers]
        try:
            flat = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=len(rows) * len(_COLUMNS))
        except OverflowError:  # element counts that a layer derives from its shape can leave int64
            for name, numbers in zip(_COLUMNS, zip(*rows, strict=True), strict=True):
                float_to_int64(f"{name} of a layer", numbers)
            raise
        columns = flat.reshape(-1, len(_COLUMNS)).T.reshape(len(_COLUMNS), *shape)
        return cls(GemmShapes(*columns[:6]), *columns[6:])


_COLUMNS = ("m", "n", "k", "groups", "kernel", "batch", "input_elements", "read_weights", "output_elements")
_values = attrgetter(*_COLUMNS)


def _sizes(layer: Layer, lowered_up_to_channels: int) -> tuple[int, ...]:
    """The columns of a layer, with kernel height x width for its kernel."""
    m, n, k, groups, (height, width), batch, inputs, weights, outputs = _values(layer)
    positions = height * width
    if positions > 1:
        if k % positions:  # the kernel is not that of this product (a file may say so): a plain product
            positions = 1
        elif k * groups <= lowered_up_to_channels * positions:
            positions, inputs = 1, m * k * groups
    return m, n, k, groups, positions, batch, inputs, weights, outputs
