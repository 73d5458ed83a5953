"""What a network computes one after the other: its layers, and the operations between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amed_env.problem.workload import Workload

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


def operations_between(workload: Workload) -> Iterator[tuple[Operation, str]]:
    """Every operation that is no layer, and the layer with which it counts.

    That is the last one, in network order, of those whose results it computes with; of operations before all layers it
    is the first layer of the network.
    """
    place = {name: number for number, name in enumerate(workload.layer_names)}
    behind: dict[str, int] = {}
    for operation in workload.operations:
        if operation.layer:
            behind[operation.name] = place[operation.layer]
            continue
        behind[operation.name] = max((behind.get(name, 0) for name in operation.inputs), default=0)
        yield operation, workload.layer_names[behind[operation.name]]
