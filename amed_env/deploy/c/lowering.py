"""From a quantized network to a list of steps that the C kernels have, with a place in memory for every result.

Steps are those of the integer engine, so what is rounded where is decided in one place. Convolutions read and write
channels last, everything else lies as torch has it; moves that change the order are steps of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from amed_env.deploy.c.moves import is_same, moved, positions
from amed_env.deploy.c.recording import node_values
from amed_env.deploy.c.steps import (
    ConvertStep,
    CStep,
    ElementStep,
    LayerStep,
    Lowered,
    MoveStep,
    PoolStep,
    Tensor,
    Window,
    sizes_of,
)
from amed_env.deploy.program import Program
from amed_env.errors import ExportError
from amed_env.quantization.codes import Format
from amed_env.quantization.graph import Group, asks_shape, clamp_limits, is_padding, takes_maximum
from amed_env.quantization.integer import IntegerEngine, Plan, Step
from amed_env.quantization.network import QuantizedNetwork

aten = torch.ops.aten
_NO_LIMITS = (-math.inf, math.inf)


def lower(network: QuantizedNetwork, program: Program) -> Lowered:
    """The steps of a network under an allocation.

    Raises:
        ExportError: If something in it has no form in C; it is named.
    """
    wide = [name for name, precision in program.allocation.items() if max(precision) > 8]
    if wide:
        raise ExportError(
            f"C is exported for integers of at most 8 bits; {wide[0]!r} has {program.allocation[wide[0]]}"
            f"{_and_more(wide)}. Give every layer an integer width, or export to onnx, which keeps layers in float."
        )
    if program.products:
        raise ExportError(
            f"C has no product of two activations ({', '.join(map(repr, program.products))}); export to onnx."
        )
    if network.fixed_batch not in (None, 1):
        raise ExportError(
            f"network {program.name!r} takes batches of {network.fixed_batch} only, and C runs one sample; let its "
            "forward take any number of samples."
        )
    return _Lowering(network, program).run()


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


class _Lowering:
    def __init__(self, network: QuantizedNetwork, program: Program) -> None:
        self._program = program
        self._engine: IntegerEngine
        self._plan: Plan
        self._engine, self._plan = network.on_integers(program.allocation)
        # The shape of every tensor, and every number, for one sample.
        self._known: dict[fx.Node, Any] = {}
        for node, value in node_values(network.module, program.example[:1]).items():
            self._known[node] = tuple(value.shape) if isinstance(value, torch.Tensor) else value
        self._values: dict[fx.Node, Tensor] = {}
        self._padded: dict[fx.Node, tuple[Tensor, tuple[int, int]]] = {}
        self._steps: list[CStep] = []
        self._nodes: dict[str, fx.Node] = {}

    def run(self) -> Lowered:
        """All steps."""
        given: Tensor | None = None
        for step in self._engine.steps:
            node = step.node
            if node.op == "output":
                assert given is not None
                output = self._output(step)
                return Lowered(tuple(self._steps), given, output, self._nodes)
            shape = self._known.get(node)
            if not isinstance(shape, tuple) or asks_shape(node):
                continue
            if node.op == "placeholder":
                if given is not None:
                    raise ExportError("C takes one input; join the network's inputs to one tensor.")
                given = self._values[node] = Tensor("input", shape, tuple(range(len(shape))), None)
            elif not self._is_margin(step):
                self._values[node] = self._run(step)
        raise AssertionError("a graph ends with its output")

    def _is_margin(self, step: Step) -> bool:
        """Whether a step only adds zeros around what convolutions read: they count them as their own padding."""
        node = step.node
        if not (step.passes and is_padding(node)):
            return False
        given: Any = node.args[1]
        source, sides = self._of(node.args[0]), [int(side) for side in given]
        places = len(source.shape) - 2
        calls = {group.call: group.layer for group in self._engine.groups.values()}
        layers = [self._program.layers.get(calls.get(user, "")) for user in node.users if not asks_shape(user)]
        convolutions = all(layer and isinstance(layer.module, nn.Conv1d | nn.Conv2d) for layer in layers)
        if min(sides) < 0 or len(sides) > 2 * places or not 1 <= places <= 2 or not convolutions:
            return False
        left, top = sides[0], sides[2] if len(sides) > 2 else 0
        self._padded[node] = source, (top, left)
        return True

    def _output(self, step: Step) -> Tensor:
        returned = step.node.args[0]
        while isinstance(returned, tuple | list) and len(returned) == 1:
            returned = returned[0]
        if not isinstance(returned, fx.Node):
            raise ExportError("C returns one tensor; let the network return one, or give `outputs=`.")
        result = self._values[self._engine.source(returned)]
        return self._in_format(self._in_order(result, tuple(range(len(result.shape)))), None)

    def _run(self, step: Step) -> Tensor:
        node, written = step.node, self._plan.formats[step.node]
        if step.group is not None:
            return self._layer(step.group, written)
        if step.layer is not None:
            raise self._refusal(node, f"layer {step.layer.name!r} looks rows up")
        if takes_maximum(node):
            return self._max_pool(node, written)
        if step.passes or node.target in _MOVES:
            return self._move(step, written)
        if node.target in _AVERAGES:
            return self._average(node)
        limits = clamp_limits(node)
        if limits is not None:
            return self._elements((self._of(node.args[0]),), limits, node)
        if node.target is aten.add.Tensor and not node.kwargs and len(node.all_input_nodes) == 2:
            terms = tuple(self._of(argument) for argument in node.args)
            if terms[0].shape == terms[1].shape:
                return self._elements((terms[0], self._in_order(terms[1], terms[0].order)), _NO_LIMITS, node)
        raise self._refusal(node, f"operation {node.target}")

    def _refusal(self, node: fx.Node, what: str) -> ExportError:
        return ExportError(
            f"C cannot hold {what} ({node.name!r} in the network's graph). It has convolutions in one and two "
            "dimensions, linear layers, poolings, additions, clamping activations and what moves values; export to "
            "onnx, which keeps the rest in float."
        )

    def _of(self, node: Any) -> Tensor:
        return self._values[self._engine.source(node)]

    def _name(self, what: str) -> str:
        return f"{what}_{len(self._steps)}"

    def _emit(self, step: CStep) -> Tensor:
        self._steps.append(step)
        return step.target

    def _in_format(self, tensor: Tensor, written: Format | None) -> Tensor:
        """The tensor in a format."""
        if tensor.format == written:
            return tensor
        return self._emit(ConvertStep(tensor, Tensor(self._name("converted"), tensor.shape, tensor.order, written)))

    def _in_order(self, tensor: Tensor, order: tuple[int, ...]) -> Tensor:
        """The tensor with its axes in an order."""
        if tensor.order == order:
            return tensor
        target = Tensor(self._name("ordered"), tensor.shape, order, tensor.format)
        loops = moved([positions(tensor.shape, tensor.order)], order, lambda values: values)
        assert loops is not None
        if is_same(loops, tensor.elements):
            return Tensor(tensor.name, tensor.shape, order, tensor.format)
        return self._emit(MoveStep((tensor,), tuple(loops), target, False))

    def _layer(self, group: Group, written: Format | None) -> Tensor:
        layer = self._program.layers[group.layer]
        module = layer.module
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            raise self._refusal(group.call, f"layer {group.layer!r}, a {type(module).__name__}")
        assert layer.read is not None
        shape = self._known[group.output]
        order = tuple(range(len(shape))) if isinstance(module, nn.Linear) else _channels_last(len(shape))
        read = self._engine.source(group.call.all_input_nodes[0])
        source, margin = self._padded.get(read) or (self._values[read], (0, 0))
        if source.format is None:  # bytes are moved in a quarter of the memory
            source = self._in_order(self._in_format(source, layer.read.format), order)
        else:
            source = self._in_format(self._in_order(source, order), layer.read.format)
        addend = None if group.addend is None else self._in_order(self._of(group.addend), order)
        target = Tensor(self._name("layer"), shape, order, written)
        window, groups = Window((1, 1), (1, 1), (0, 0)), 1
        if not isinstance(module, nn.Linear):
            window, groups = _window_of(module, margin), module.groups
        *places, _ = sizes_of(target)
        self._nodes[group.layer] = group.output
        step = LayerStep(layer, window, groups, source, addend, group.low, group.high, tuple(places), target)  # type: ignore[arg-type]
        return self._emit(step)

    def _max_pool(self, node: fx.Node, written: Format | None) -> Tensor:
        flat = node.target is aten.max_pool1d.default
        if node.target is aten.max_pool3d.default:
            raise self._refusal(node, "a pooling in three dimensions")
        given = _arguments(node, ("self", "kernel_size", "stride", "padding", "dilation", "ceil_mode"))
        window = _pool_window(given, flat)
        source = self._of(node.args[0])
        shape = self._known[node]
        source = self._in_order(source, _channels_last(len(shape)))
        target = Tensor(self._name("pool"), shape, source.order, source.format)
        result = self._emit(PoolStep(window, False, None, source, target))
        return result if written is None or source.format == written else self._in_format(result, written)

    def _average(self, node: fx.Node) -> Tensor:
        shape, source = self._known[node], self._of(node.args[0])
        if node.target is aten.mean.dim:
            given = _arguments(node, ("self", "dim", "keepdim"))
            axes = sorted(axis % len(source.shape) for axis in given["dim"])
            if axes != list(range(2, len(source.shape))):
                raise self._refusal(node, "a mean over other axes than all places")
            shape, flattened = (*source.shape[:2], *[1] * len(axes)), shape
            result = self._pooled(source, Window((1, 1), (1, 1), (0, 0)), True, 0, shape)
            return Tensor(result.name, flattened, tuple(range(len(flattened))), None)
        if node.target in (aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default):
            return self._pooled(source, Window((1, 1), (1, 1), (0, 0)), True, 0, shape)
        flat = node.target is aten.avg_pool1d.default
        names = ["self", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"]
        given = _arguments(node, names)
        window = _pool_window(given, flat)
        counted = given.get("count_include_pad", True) and any(window.padding)
        if given.get("ceil_mode") and counted:
            raise self._refusal(node, "a mean with ceil_mode that counts its padding")
        divisor = given.get("divisor_override") or (math.prod(window.kernel) if counted else 0)
        return self._pooled(source, window, False, int(divisor), shape)

    def _pooled(self, source: Tensor, window: Window, adaptive: bool, divisor: int, shape: tuple[int, ...]) -> Tensor:
        source = self._in_order(source, _channels_last(len(shape)))
        target = Tensor(self._name("pool"), shape, source.order, None)
        last = self._steps[-1] if self._steps else None
        everywhere = adaptive and math.prod(shape[2:]) == 1 and self._readers(source) == 1
        # Floats of a whole result are the largest thing in memory: they are not kept if only their mean is read.
        if everywhere and isinstance(last, LayerStep) and last.target is source and source.format is None:
            self._steps[-1] = replace(last, mean=True, target=target)
            return target
        return self._emit(PoolStep(window, adaptive, divisor, source, target))

    def _readers(self, tensor: Tensor) -> int:
        """How many operations read a result."""
        nodes = [node for node, value in self._values.items() if value.name == tensor.name]
        return sum(not asks_shape(user) for node in nodes for user in node.users)

    def _elements(self, sources: tuple[Tensor, ...], limits: tuple[float, float], node: fx.Node) -> Tensor:
        first = sources[0]
        target = Tensor(self._name("sum"), self._known[node], first.order, None)
        return self._emit(ElementStep(sources, *limits, target))

    def _move(self, step: Step, written: Format | None) -> Tensor:
        node = step.node
        operands = [operand for operand in node.all_input_nodes if isinstance(self._known[operand], tuple)]
        sources = [self._of(operand) for operand in operands]
        if len({source.format for source in sources}) > 1:
            sources = [self._in_format(source, written) for source in sources]
        shape = self._known[node]
        source = sources[0]
        order = source.order if len(shape) == len(source.order) else tuple(range(len(shape)))
        operation = self._operation(node, operands)
        loops = moved([positions(source.shape, source.order) for source in sources], order, operation)
        if loops is None:
            raise self._refusal(node, f"operation {node.target}, which moves values in no regular way")
        format_ = sources[0].format
        if len(sources) == 1 and source.elements == math.prod(shape) and is_same(loops, source.elements):
            return Tensor(source.name, shape, order, format_)  # the same bytes
        padded = sum(math.prod(part.counts) for _, part in loops) < math.prod(shape)
        target = Tensor(self._name("moved"), shape, order, format_)
        return self._emit(MoveStep(tuple(sources), tuple(loops), target, padded))

    def _operation(self, node: fx.Node, operands: list[fx.Node]) -> Callable[..., torch.Tensor]:
        """The operation as a function of the tensors among its arguments."""

        def apply(*tensors: torch.Tensor) -> torch.Tensor:
            given = dict(zip(operands, tensors, strict=True))

            def value(argument: fx.Node) -> Any:
                return given[argument] if argument in given else self._known[argument]

            arguments = fx.node.map_arg(node.args, value)
            keywords = fx.node.map_arg(node.kwargs, value)
            result: torch.Tensor = node.target(*arguments, **keywords)  # type: ignore[operator]
            return result

        return apply


_AVERAGES: tuple[Any, ...] = (
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten.avg_pool1d.default,
    aten.avg_pool2d.default,
    aten.mean.dim,
)
_MOVES: tuple[Any, ...] = (aten.clone.default, aten.contiguous.default, aten.view.default, aten.alias.default)
"""What moves values besides `passes_values`."""


def _channels_last(axes: int) -> tuple[int, ...]:
    return (0, *range(2, axes), 1)


def _window_of(module: nn.Conv1d | nn.Conv2d, margin: tuple[int, int]) -> Window:
    """The window of a convolution whose input gets a margin of zeros (top, left) first."""
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if isinstance(module.padding, str):
        spans = [d * (size - 1) for d, size in zip(dilation, kernel, strict=True)]
        padding = tuple(span // 2 if module.padding == "same" else 0 for span in spans)
    else:
        padding = module.padding
    top, left = _pair(padding, 0)
    padded = (top + margin[0], left + margin[1])
    return Window(_pair(kernel, 1), _pair(stride, 1), padded, _pair(dilation, 1))


def _pair(values: Sequence[int], first: int) -> tuple[int, int]:
    """(height, width), where one dimension gets a height."""
    return (first, int(values[0])) if len(values) == 1 else (int(values[0]), int(values[1]))


def _arguments(node: fx.Node, names: Sequence[str]) -> dict[str, Any]:
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _pool_window(given: dict[str, Any], flat: bool) -> Window:
    def pair(value: Any, first: int) -> tuple[int, int]:
        values = [value] * (1 if flat else 2) if isinstance(value, int) else list(value)
        values = values * 2 if len(values) == 1 and not flat else values
        return _pair(values, first)

    kernel = pair(given["kernel_size"], 1)
    stride = pair(given["stride"], 1) if given.get("stride") else kernel
    return Window(kernel, stride, pair(given.get("padding", 0), 0), pair(given.get("dilation", 1), 1))
