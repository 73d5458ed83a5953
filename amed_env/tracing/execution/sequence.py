"""From a network's graph to the steps that a device takes, with a place in memory for every result.

Steps are those of the integer engine: a group (`tracing.groups`) is one, and what is rounded where follows from who
reads it. Convolutions read and write channels last, everything else lies as torch has it; moves that change the order
are steps of their own. A layer that reads codes of another width rounds them as it reads.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from amed_env.tracing.execution.recording import node_values
from amed_env.tracing.execution.steps import (
    Codes,
    ConvertStep,
    ElementStep,
    Execution,
    LayerStep,
    MoveStep,
    OtherStep,
    PoolStep,
    Step,
    Tensor,
    Window,
    arguments_of,
    sizes_of,
)
from amed_env.tracing.groups import (
    Group,
    asks_shape,
    clamp_limits,
    effective_readers,
    is_padding,
    passes_values,
    takes_maximum,
)
from amed_env.tracing.lowering import EmbeddingTable

aten = torch.ops.aten
_NO_LIMITS = (-math.inf, math.inf)
_ONE_PLACE = Window((1, 1), (1, 1), (0, 0))


def positions(shape: Sequence[int], order: Sequence[int]) -> torch.Tensor:
    """Where the values of a tensor lie: int64 of its shape, for axes that are stored in an order, slowest first."""
    stored = torch.arange(math.prod(shape)).reshape([shape[axis] for axis in order])
    back = sorted(range(len(order)), key=lambda axis: order[axis])
    return stored.permute(*back) if len(shape) else stored


def _shape_or_value(value: Any) -> Any:
    """The shape of a tensor as a tuple, of several tensors a list of them, and anything else as it is."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, tuple | list) and any(isinstance(part, torch.Tensor) for part in value):
        return [_shape_or_value(part) for part in value]
    return value


def execution_of(
    module: fx.GraphModule,
    layers: Mapping[str, nn.Module],
    groups: Mapping[fx.Node, Group],
    stored: Collection[fx.Node],
    sample: torch.Tensor,
    skipped: Callable[[fx.Node], bool] = lambda node: False,
) -> Execution:
    """The steps of a network.

    Args:
        module: The network; its layers are modules, everything else operations of ATen.
        layers: Its layers by name, as modules of torch.
        groups: Its groups by their last node; layers without one have no sums on which a device goes on computing.
        stored: Last nodes of the groups whose results are kept at 8 bits for several readers.
        sample: (1, …), or a batch of the size that the network takes.
        skipped: Whether a node hands on what it reads.
    """
    return _Sequence(module, layers, groups, stored, sample, skipped).run()


class _Sequence:
    def __init__(
        self,
        module: fx.GraphModule,
        layers: Mapping[str, nn.Module],
        groups: Mapping[fx.Node, Group],
        stored: Collection[fx.Node],
        sample: torch.Tensor,
        skipped: Callable[[fx.Node], bool],
    ) -> None:
        self._module, self._layers, self._groups, self._stored = module, layers, groups, set(stored)
        self._skipped = skipped
        self._known = node_values(module, sample, _shape_or_value)
        self._calls = {group.call: group.layer for group in groups.values()}
        self._inside = {
            node
            for group in groups.values()
            for node in (group.call, group.addition, group.output)
            if node is not None and node is not group.output
        }
        self._values: dict[fx.Node, Tensor] = {}
        self._padded: dict[fx.Node, tuple[Tensor, tuple[int, int]]] = {}
        self._steps: list[Step] = []
        self._nodes: dict[str, fx.Node] = {}

    def run(self) -> Execution:
        """All steps."""
        inputs: list[Tensor] = []
        for node in self._module.graph.nodes:
            if node.op == "output":
                outputs = self._outputs(node)
                return Execution(tuple(self._steps), tuple(inputs), outputs, self._nodes)
            known = self._known.get(node)
            if node in self._inside or self._skipped(node) or asks_shape(node) or not isinstance(known, tuple | list):
                continue
            if isinstance(known, list):
                self._values[node] = self._several(node, known)
            elif node.op == "placeholder":
                name = "input" if not inputs else f"input_{len(inputs)}"
                inputs.append(Tensor(name, known, tuple(range(len(known))), None))
                self._values[node] = inputs[-1]
            elif node.op == "get_attr":  # a constant, which lies in flash
                self._values[node] = Tensor(f"constant_{node.name}", known, tuple(range(len(known))), None)
            elif not self._is_margin(node):
                self._values[node] = self._run(node)
        raise AssertionError("a graph ends with its output")

    def _source(self, node: fx.Node) -> fx.Node:
        return node.all_input_nodes[0] if self._skipped(node) else node

    def _of(self, node: Any) -> Tensor:
        return self._values[self._source(node)]

    def _name(self, what: str) -> str:
        return f"{what}_{len(self._steps)}"

    def _emit(self, step: Step) -> Tensor:
        self._steps.append(step)
        return step.target

    # What values are kept in.

    def _written(self, node: fx.Node) -> Codes | None:
        """In what the result of a group is kept."""
        group = self._groups[node]
        if node in self._stored:
            return Codes(group.layer, True)
        readers = list(effective_readers(node))
        if len(readers) == 1 and readers[0].op == "call_module":
            name = str(readers[0].target)
            layer = self._layers.get(name)
            if layer is not None and readers[0] in self._calls and not isinstance(layer, EmbeddingTable):
                return Codes(name, False)
        return None

    def _in_codes(self, tensor: Tensor, codes: Codes | None) -> Tensor:
        """The tensor in codes, or in floats."""
        if tensor.codes == codes:
            return tensor
        return self._emit(ConvertStep(tensor, Tensor(self._name("converted"), tensor.shape, tensor.order, codes)))

    def _in_order(self, tensor: Tensor, order: tuple[int, ...]) -> Tensor:
        """The tensor with its axes in an order."""
        if tensor.order == order:
            return tensor
        if _is_same(positions(tensor.shape, tensor.order), order):
            return Tensor(tensor.name, tensor.shape, order, tensor.codes)
        target = Tensor(self._name("ordered"), tensor.shape, order, tensor.codes)
        return self._emit(MoveStep((tensor,), lambda values: values, target, "another order"))

    # Steps.

    def _run(self, node: fx.Node) -> Tensor:
        group = self._groups.get(node)
        if group is not None:
            return self._layer(group)
        operands = self._operands(node)
        if not operands:  # a constant that is computed
            return Tensor(f"constant_{node.name}", self._known[node], tuple(range(len(self._known[node]))), None)
        if node.op == "call_module":
            looks_up = isinstance(self._layers.get(str(node.target)), EmbeddingTable)
            return self._other(node, operands, f"layer {str(node.target)!r}{' (it looks rows up)' if looks_up else ''}")
        if node.target is operator.getitem:
            return Tensor(operands[0].name, self._known[node], tuple(range(len(self._known[node]))), None)
        if takes_maximum(node) and node.target is not aten.max_pool3d.default:
            return self._max_pool(node)
        if passes_values(node) or node.target in _MOVES:
            return self._move(node, operands)
        if node.target in _AVERAGES:
            pooled = self._average(node)
            return self._other(node, operands) if pooled is None else pooled
        limits = clamp_limits(node)
        if limits is not None:
            return self._elements((self._of(node.args[0]),), limits, node)
        if node.target is aten.add.Tensor and not node.kwargs and len(node.all_input_nodes) == len(operands) == 2:
            terms = tuple(self._of(argument) for argument in node.args)
            if terms[0].shape == terms[1].shape:
                return self._elements((terms[0], self._in_order(terms[1], terms[0].order)), _NO_LIMITS, node)
        return self._other(node, operands)

    def _operands(self, node: fx.Node) -> list[Tensor]:
        """The tensors that an operation reads, constants left out."""
        read = [self._source(operand) for operand in node.all_input_nodes]
        tensors = [self._values[operand] for operand in read if operand in self._values]
        return [tensor for tensor in tensors if not tensor.name.startswith("constant_")]

    def _other(self, node: fx.Node, operands: Sequence[Tensor], what: str = "") -> Tensor:
        """An operation without a form of its own: it reads and writes what torch would."""
        shape = self._known[node]
        pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
        if node.target in (aten.softmax.int, aten._softmax.default):  # a row after the other
            pointwise = True
        orders = {operand.order for operand in operands if operand.shape == shape}
        planar = tuple(range(len(shape)))
        order = orders.pop() if pointwise and len(orders) == 1 else planar
        same = [
            operand for operand in operands if operand.shape == shape and operand.order == order and not operand.codes
        ]
        target = Tensor(self._name("result"), shape, order, None)
        over = same[0] if pointwise and same else None
        return self._emit(OtherStep(what or f"operation {node.target}", tuple(operands), target, over))

    def _several(self, node: fx.Node, shapes: list[Any]) -> Tensor:
        """An operation that returns several tensors, as one result with the values of all."""
        elements = sum(math.prod(shape) for shape in shapes if isinstance(shape, tuple))
        target = Tensor(self._name("results"), (1, elements), (0, 1), None)
        return self._emit(OtherStep(f"operation {node.target}", tuple(self._operands(node)), target))

    def _is_margin(self, node: fx.Node) -> bool:
        """Whether a step only adds zeros around what convolutions read: they count them as their own padding."""
        if not (passes_values(node) and is_padding(node)):
            return False
        given: Any = node.args[1]
        source, sides = self._of(node.args[0]), [int(side) for side in given]
        places = len(source.shape) - 2
        layers = [self._layers.get(self._calls.get(user, "")) for user in node.users if not asks_shape(user)]
        convolutions = all(isinstance(layer, nn.Conv1d | nn.Conv2d) for layer in layers)
        if min(sides) < 0 or len(sides) > 2 * places or not 1 <= places <= 2 or not convolutions:
            return False
        left, top = sides[0], sides[2] if len(sides) > 2 else 0
        self._padded[node] = source, (top, left)
        return True

    def _outputs(self, node: fx.Node) -> tuple[Tensor, ...]:
        outputs = []
        for returned in node.all_input_nodes:
            result = self._of(returned)
            outputs.append(self._in_codes(self._in_order(result, tuple(range(len(result.shape)))), None))
        return tuple(outputs)

    def _layer(self, group: Group) -> Tensor:
        layer = self._layers[group.layer]
        shape = self._known[group.output]
        read = self._source(group.call.all_input_nodes[0])
        source, margin = self._padded.get(read) or (self._values[read], (0, 0))
        codes = self._written(group.output)
        self._nodes[group.layer] = group.output
        if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            return self._other_layer(group, source, codes)
        order = tuple(range(len(shape))) if isinstance(layer, nn.Linear) else _channels_last(len(shape))
        if source.codes is None:  # bytes are moved in a quarter of the memory
            source = self._in_codes(source, Codes(group.layer, False))
        source = self._in_order(source, order)
        addend = None if group.addend is None else self._in_order(self._of(group.addend), order)
        target = Tensor(self._name("layer"), shape, order, codes)
        window, groups = _ONE_PLACE, 1
        if not isinstance(layer, nn.Linear):
            window, groups = _window_of(layer, margin), layer.groups
        *places, _ = sizes_of(target)
        step = LayerStep(
            group.layer, window, groups, source, addend, group.low, group.high, tuple(places), target  # type: ignore[arg-type]
        )  # fmt: skip
        return self._emit(step)

    def _other_layer(self, group: Group, source: Tensor, codes: Codes | None) -> Tensor:
        layer = self._layers[group.layer]
        addend = None if group.addend is None else self._of(group.addend)
        operands = [source] if addend is None else [source, addend]
        shape = self._known[group.output]
        target = Tensor(self._name("layer"), shape, tuple(range(len(shape))), codes)
        what = f"layer {group.layer!r}, a {type(layer).__name__}"
        return self._emit(OtherStep(what, tuple(operands), target, addend))

    def _max_pool(self, node: fx.Node) -> Tensor:
        flat = node.target is aten.max_pool1d.default
        given = arguments_of(node, ("self", "kernel_size", "stride", "padding", "dilation", "ceil_mode"))
        window = _pool_window(given, flat)
        shape = self._known[node]
        source = self._in_order(self._of(node.args[0]), _channels_last(len(shape)))
        target = Tensor(self._name("pool"), shape, source.order, source.codes)
        return self._emit(PoolStep(window, False, None, source, target))

    def _average(self, node: fx.Node) -> Tensor | None:
        """A mean, or None if it has no form as a pooling."""
        shape, source = self._known[node], self._of(node.args[0])
        if node.target is aten.mean.dim:
            given = arguments_of(node, ("self", "dim", "keepdim"))
            axes = sorted(axis % len(source.shape) for axis in given["dim"] or range(len(source.shape)))
            if axes != list(range(2, len(source.shape))) or len(axes) > 2 or source.shape[0] != 1:
                return None
            pooled = self._pooled(source, _ONE_PLACE, True, 0, (*source.shape[:2], *[1] * len(axes)))
            return Tensor(pooled.name, shape, tuple(range(len(shape))), None)
        if node.target in (aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default):
            return self._pooled(source, _ONE_PLACE, True, 0, shape)
        flat = node.target is aten.avg_pool1d.default
        names = ("self", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        given = arguments_of(node, names)
        window = _pool_window(given, flat)
        counted = given.get("count_include_pad", True) and any(window.padding)
        if given.get("ceil_mode") and counted:
            return None
        divisor = given.get("divisor_override") or (math.prod(window.kernel) if counted else 0)
        return self._pooled(source, window, False, int(divisor), shape)

    def _pooled(self, source: Tensor, window: Window, adaptive: bool, divisor: int, shape: tuple[int, ...]) -> Tensor:
        source = self._in_order(source, _channels_last(len(shape)))
        target = Tensor(self._name("pool"), shape, source.order, None)
        last = self._steps[-1] if self._steps else None
        everywhere = adaptive and math.prod(shape[2:]) == 1 and self._readers(source) == 1
        # Floats of a whole result are the largest thing in memory: they are not kept if only their mean is read.
        if everywhere and isinstance(last, LayerStep) and last.target is source and source.codes is None:
            self._steps[-1] = LayerStep(**{**last.__dict__, "mean": True, "target": target})
            return target
        return self._emit(PoolStep(window, adaptive, divisor, source, target))

    def _readers(self, tensor: Tensor) -> int:
        """How many operations read a result."""
        nodes = [node for node, value in self._values.items() if value.name == tensor.name]
        return sum(not asks_shape(user) for node in nodes for user in node.users)

    def _elements(self, sources: tuple[Tensor, ...], limits: tuple[float, float], node: fx.Node) -> Tensor:
        target = Tensor(self._name("sum"), self._known[node], sources[0].order, None)
        return self._emit(ElementStep(sources, *limits, target))

    def _move(self, node: fx.Node, sources: list[Tensor]) -> Tensor:
        operands = [operand for operand in node.all_input_nodes if isinstance(self._known[operand], tuple)]
        if len(operands) != len(sources):  # a constant among them
            return self._other(node, sources)
        if len({source.codes for source in sources}) > 1:
            sources = [self._in_codes(source, None) for source in sources]
        shape, source = self._known[node], sources[0]
        order = source.order if len(shape) == len(source.order) else tuple(range(len(shape)))
        operation = self._operation(node, operands)
        alone = len(sources) == 1 and source.elements == math.prod(shape)
        if alone and _is_same(operation(positions(source.shape, source.order)), order):
            return Tensor(source.name, shape, order, source.codes)
        target = Tensor(self._name("moved"), shape, order, source.codes)
        return self._emit(MoveStep(tuple(sources), operation, target, f"operation {node.target}"))

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


def _is_same(moved: torch.Tensor, order: tuple[int, ...]) -> bool:
    """Whether positions that were moved lie, in an order of axes, where they were."""
    stored = moved.permute(*order).reshape(-1) if moved.dim() else moved.reshape(-1)
    return torch.equal(stored, torch.arange(stored.numel()))


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


def _pool_window(given: dict[str, Any], flat: bool) -> Window:
    def pair(value: Any, first: int) -> tuple[int, int]:
        values = [value] * (1 if flat else 2) if isinstance(value, int) else list(value)
        values = values * 2 if len(values) == 1 and not flat else values
        return _pair(values, first)

    kernel = pair(given["kernel_size"], 1)
    stride = pair(given["stride"], 1) if given.get("stride") else kernel
    return Window(kernel, stride, pair(given.get("padding", 0), 0), pair(given.get("dilation", 1), 1))
