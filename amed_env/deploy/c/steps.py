"""What a network is in C: steps in order, and the results that they read and write."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from amed_env.deploy.c.moves import Loops
from amed_env.deploy.program import LayerProgram
from amed_env.problem.memory_plan import FLOAT_BITS, Buffer
from amed_env.quantization.codes import Format


@dataclass(frozen=True, eq=False)
class Tensor:
    """A result in memory.

    Attributes:
        name: Its name in C.
        shape: Of one sample, the axis of samples (1) in front.
        order: Axes from the slowest to the fastest in memory.
        format: Of its codes; None for floats of four bytes.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    format: Format | None

    @property
    def elements(self) -> int:
        """Values."""
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        """Of a value: 32 for floats."""
        return FLOAT_BITS if self.format is None else (self.format.high - self.format.low).bit_length()


@dataclass(frozen=True)
class Window:
    """Sizes of a convolution or pooling in two dimensions: those of one dimension have a height of 1.

    Attributes:
        kernel, stride, dilation: (height, width).
        padding: (top, left).
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class ConvertStep:
    """Every value to another format."""

    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class MoveStep:
    """Values to other places; `padded` places that nothing moves to hold zero."""

    sources: tuple[Tensor, ...]
    loops: tuple[tuple[int, Loops], ...]
    target: Tensor
    padded: bool


@dataclass(frozen=True)
class LayerStep:
    """A convolution or linear layer, with what is computed on its sums.

    Attributes:
        layer: The layer.
        window, groups: Of the convolution.
        source, addend: What is read, and what is added to the sums, or None.
        low, high: What values are clamped to.
        places: (height, width) of the result.
        mean: Whether only the mean over all places is written.
        target: What is written.
    """

    layer: LayerProgram
    window: Window
    groups: int
    source: Tensor
    addend: Tensor | None
    low: float
    high: float
    places: tuple[int, int]
    target: Tensor
    mean: bool = False


@dataclass(frozen=True)
class PoolStep:
    """A pooling; `divisor` is None for the largest value, 0 for the number of values, else what sums are divided by."""

    window: Window
    adaptive: bool
    divisor: int | None
    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class ElementStep:
    """A sum of one or two tensors, clamped."""

    sources: tuple[Tensor, ...]
    low: float
    high: float
    target: Tensor


CStep = ConvertStep | MoveStep | LayerStep | PoolStep | ElementStep


@dataclass(frozen=True)
class Lowered:
    """A network as steps.

    Attributes:
        steps: In order.
        input, output: What the caller gives and gets, float, as torch has them.
        nodes: Layer to the node of the network's graph whose value its step writes.
    """

    steps: tuple[CStep, ...]
    input: Tensor
    output: Tensor
    nodes: Mapping[str, fx.Node]


def sizes_of(tensor: Tensor) -> tuple[int, int, int]:
    """(height, width, channels) of a result whose last axis in memory is that of the channels."""
    *places, channels = (tensor.shape[axis] for axis in tensor.order[1:])
    if len(places) > 2:  # a linear layer on rows
        places = [math.prod(places[:-1]), places[-1]]
    return (*[1] * (2 - len(places)), *places, channels)  # type: ignore[return-value]


def read_by(step: CStep) -> tuple[Tensor, ...]:
    """What a step reads."""
    if isinstance(step, LayerStep):
        return (step.source,) if step.addend is None else (step.source, step.addend)
    if isinstance(step, MoveStep | ElementStep):
        return step.sources
    return (step.source,)


def buffers_of(lowered: Lowered) -> dict[str, Buffer]:
    """All results but those that are the caller's, with how long they live."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    results: dict[str, tuple[Tensor, CStep]] = {}
    for number, step in enumerate(lowered.steps):
        for tensor in (*read_by(step), step.target):
            last[tensor.name] = number
        first[step.target.name] = number
        results[step.target.name] = step.target, step
    results.pop(lowered.output.name, None)
    return {
        name: Buffer(target.elements, target.bits, first[name], last[name], *_overwrites(step))
        for name, (target, step) in results.items()
    }


def _overwrites(step: CStep) -> tuple[str | None, bool]:
    """What a step may write over if nobody else reads it, and whether with values of less bits.

    Kernels write a value after they read those at its own and all earlier places, so that they may go over what they
    read in order. A layer goes over its result once a channel: what it adds must be as wide as what it writes.
    """
    if isinstance(step, LayerStep):
        own = step.addend is not None and step.addend.name != step.source.name and not step.mean
        return (step.addend.name if own and step.addend else None), False
    if isinstance(step, ConvertStep):
        return step.source.name, True
    if isinstance(step, ElementStep):
        return step.sources[-1].name, True
    if isinstance(step, PoolStep):
        height, width, _ = sizes_of(step.source)
        out_height, out_width, _ = sizes_of(step.target)
        forward = step.window.padding == (0, 0) and out_height <= height and out_width <= width
        return (step.source.name if forward else None), True
    return None, False
