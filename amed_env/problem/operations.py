"""What a network computes one after the other: its layers, and the operations between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """One operation on one sample.

    Attributes:
        name: That of the layer, or a name of its own.
        kind: That of the layer (`conv`, …), or what torch's ATen calls it (`add`, `relu`, `max_pool2d`, `_softmax`).
        layer: The layer that it is; empty if it is none.
        inputs: Names of the operations whose results it reads, `input` for the network's own; operations that only move
            values are looked through.
        input_shapes: Shapes of what it reads, without the axis of samples.
        output_shape: Shape of what it returns, likewise.
        sizes: Of a convolution or pooling: `kernel`, `stride`, `padding` (at both ends of an axis alike) and
            `dilation`, one number an axis.
    """

    name: str
    kind: str
    layer: str
    inputs: tuple[str, ...]
    input_shapes: tuple[Shape, ...]
    output_shape: Shape
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        """Values that it returns."""
        return math.prod(self.output_shape)

    @property
    def read_elements(self) -> int:
        """Values that it reads."""
        return sum(math.prod(shape) for shape in self.input_shapes)
