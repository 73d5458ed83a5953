"""The layers of a network as arrays, which the cost models compute with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amed_env.hardware.systolic import IntArray, float_to_int64
from amed_env.workload import Layer


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
    """

    m: IntArray
    n: IntArray
    k: IntArray
    groups: IntArray
    positions: IntArray


@dataclass(frozen=True)
class LayerArrays:
    """Layers as int64 arrays of one shape; the element counts are those of all groups together."""

    shapes: GemmShapes
    input_elements: IntArray
    weight_elements: IntArray
    output_elements: IntArray

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

        def array(what: str, numbers: list[int]) -> IntArray:
            # Element counts that a layer derives from its shape can leave int64 (2^40 in each dimension).
            return float_to_int64(f"{what} of a layer", numbers).reshape(shape)

        limit = 0 if lowered_up_to_channels is None else lowered_up_to_channels
        lowered = [_positions(layer) > 1 and layer.in_channels <= limit for layer in layers]
        inputs = [
            layer.m * layer.k * layer.groups if low else layer.input_elements
            for layer, low in zip(layers, lowered, strict=True)
        ]
        positions = [1 if low else _positions(layer) for layer, low in zip(layers, lowered, strict=True)]
        shapes = GemmShapes(
            *(array(name, [getattr(layer, name) for layer in layers]) for name in ("m", "n", "k", "groups")),
            positions=array("kernel", positions),
        )
        return cls(
            shapes,
            array("input_elements", inputs),
            array("weight_elements", [layer.weight_elements for layer in layers]),
            array("output_elements", [layer.output_elements for layer in layers]),
        )


def _positions(layer: Layer) -> int:
    """Kernel height x width, or 1 where `k` is no multiple of it."""
    positions = layer.kernel[0] * layer.kernel[1]
    return positions if layer.k % positions == 0 else 1
