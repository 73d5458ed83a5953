"""What a network is to a device: steps in order, and the results that they read and write."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx

from amed_env.problem.memory_plan import Result


class Codes(NamedTuple):
    """In what a result is kept, if not in floats.

    Attributes:
        layer: A layer.
        stored: Whether it is what the layer returns, at 8 bits for several readers, or what the layer reads, at the
            width of its activations.
    """

    layer: str
    stored: bool


@dataclass(frozen=True, eq=False)
class Tensor:
    """A result in memory.

    Attributes:
        name: Its name; tensors of one name are the same values in the same places.
        shape: Of one sample, the axis of samples (1) in front.
        order: Axes from the slowest to the fastest in memory.
        codes: What its values are; None for floats of four bytes.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    codes: Codes | None

    @property
    def elements(self) -> int:
        """Values."""
        return math.prod(self.shape)


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
    """Every value to other codes, or to floats."""

    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class MoveStep:
    """Values to other places.

    Attributes:
        sources: What is read.
        operation: Takes tensors in place of the sources, and returns one of the target's shape; what it pads with is 0.
        target: What is written.
        what: Its name, for messages.
    """

    sources: tuple[Tensor, ...]
    operation: Callable[..., torch.Tensor]
    target: Tensor
    what: str


@dataclass(frozen=True)
class LayerStep:
    """A convolution or linear layer, with what is computed on its sums.

    Attributes:
        layer: Its name.
        window, groups: Of the convolution.
        source, addend: What is read, and what is added to the sums, or None.
        low, high: What values are clamped to.
        places: (height, width) of the result.
        mean: Whether only the mean over all places is written.
        target: What is written.
    """

    layer: str
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


@dataclass(frozen=True)
class OtherStep:
    """Any other operation.

    Attributes:
        what: The operation, for messages.
        sources: What is read.
        target: What is written.
        over: What it may write over.
    """

    what: str
    sources: tuple[Tensor, ...]
    target: Tensor
    over: Tensor | None = None


Step = ConvertStep | MoveStep | LayerStep | PoolStep | ElementStep | OtherStep


@dataclass(frozen=True)
class Execution:
    """A network as steps.

    Attributes:
        steps: In order.
        inputs, outputs: What the caller gives and gets, float, as torch has them.
        nodes: Layer to the node of the network's graph whose value its step writes.
    """

    steps: tuple[Step, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: Mapping[str, fx.Node]


def sizes_of(tensor: Tensor) -> tuple[int, int, int]:
    """(height, width, channels) of a result whose last axis in memory is that of the channels."""
    *places, channels = (tensor.shape[axis] for axis in tensor.order[1:])
    if len(places) > 2:  # a linear layer on rows
        places = [math.prod(places[:-1]), places[-1]]
    return (*[1] * (2 - len(places)), *places, channels)  # type: ignore[return-value]


def read_by(step: Step) -> tuple[Tensor, ...]:
    """What a step reads."""
    if isinstance(step, LayerStep):
        return (step.source,) if step.addend is None else (step.source, step.addend)
    if isinstance(step, MoveStep | ElementStep | OtherStep):
        return step.sources
    return (step.source,)


def results_of(execution: Execution) -> tuple[Result, ...]:
    """All results but those that are the caller's, with how long they live, in the order in which they are made."""
    callers = {tensor.name for tensor in (*execution.inputs, *execution.outputs)}
    last: dict[str, int] = {}
    for number, step in enumerate(execution.steps):
        for tensor in (*read_by(step), step.target):
            last[tensor.name] = number
    results = []
    for number, step in enumerate(execution.steps):
        target = step.target
        if target.name in callers:
            continue
        layer, stored = target.codes or ("", False)
        over, narrower = _overwrites(step)
        results.append(Result(target.name, target.elements, layer, stored, number, last[target.name], over, narrower))
    return tuple(results)


def _overwrites(step: Step) -> tuple[str | None, bool]:
    """What a step may write over if nobody else reads it, and whether with values of less bits.

    Kernels write a value after they read those at its own and all earlier places, so that they may go over what they
    read in order. A layer goes over its result once a channel: what it adds must be as wide as what it writes.
    """
    if isinstance(step, LayerStep):
        addend = step.addend
        return (None if addend is None or addend.name == step.source.name or step.mean else addend.name), False
    if isinstance(step, ConvertStep):
        return step.source.name, True
    if isinstance(step, ElementStep):
        return step.sources[-1].name, True
    if isinstance(step, PoolStep):
        height, width, _ = sizes_of(step.source)
        out_height, out_width, _ = sizes_of(step.target)
        forward = step.window.padding == (0, 0) and out_height <= height and out_width <= width
        return (step.source.name if forward else None), True
    if isinstance(step, OtherStep):
        return (None if step.over is None else step.over.name), False
    return None, False


def arguments_of(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of a call by name."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}
