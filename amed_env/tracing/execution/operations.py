"""The operations of a traced network, for devices that price what stands between the layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from amed_env.problem.operations import Operation, Shape
from amed_env.problem.workload import Workload
from amed_env.tracing.execution.steps import arguments_of
from amed_env.tracing.groups import asks_shape, passes_values, takes_maximum
from amed_env.tracing.lowering import TransposedConvolution
from amed_env.tracing.shapes import record_shapes, shape_of

aten = torch.ops.aten
_JOINS: tuple[Any, ...] = (aten.cat.default,)
"""Moves of several results, which a reader must know of."""
_FREE: tuple[Any, ...] = (aten.clone.default, aten.contiguous.default, aten.view.default, aten.alias.default)
_POOLS = ("kernel_size", "stride", "padding", "dilation")
INPUT = "input"


def operations_of(module: fx.GraphModule, workload: Workload, sample: torch.Tensor) -> tuple[Operation, ...]:
    """The operations of a network in the order in which they run.

    Args:
        module: The network.
        workload: Its layers.
        sample: (N, …).
    """
    with torch.no_grad():
        record_shapes(module, sample)
    kinds = {layer.name: layer.kind for layer in workload}
    names: dict[fx.Node, str] = {}
    operations = []
    for node in module.graph.nodes:
        shape = shape_of(node)
        if node.op == "placeholder":
            names[node] = INPUT
        if node.op in ("placeholder", "get_attr", "output") or shape is None or asks_shape(node) or _only_moves(node):
            continue
        read = [source for argument in node.all_input_nodes for source in _sources(argument)]
        read = [source for source in read if source in names]
        if not read:
            continue  # a constant that is computed
        layer = str(node.target) if node.op == "call_module" and str(node.target) in kinds else ""
        name = names[node] = _free(layer or node.name, set(names.values()))
        operands = [argument for argument in node.all_input_nodes if shape_of(argument) is not None]
        operands = [argument for argument in operands if any(source in names for source in _sources(argument))]
        operations.append(
            Operation(
                name,
                kinds.get(layer) or _kind(node),
                layer,
                tuple(dict.fromkeys(names[source] for source in read)),
                tuple(_of_sample(shape_of(operand)) for operand in operands),
                _of_sample(shape),
                _sizes(node, module),
            )
        )
    return tuple(operations)


def _only_moves(node: fx.Node) -> bool:
    if node.target in _FREE:
        return True
    return passes_values(node) and not takes_maximum(node) and node.target not in _JOINS


def _sources(node: fx.Node) -> Iterator[fx.Node]:
    """The operations whose values a node has, seen through what only moves them."""
    if node.op == "call_function" and (_only_moves(node) or (shape_of(node) is None and not asks_shape(node))):
        for argument in node.all_input_nodes:
            yield from _sources(argument)
    else:
        yield node


def _kind(node: fx.Node) -> str:
    operator: Any = node.target
    return (
        str(operator._opname)
        if isinstance(operator, torch._ops.OpOverload)
        else str(getattr(operator, "__name__", operator))
    )


def _of_sample(shape: torch.Size | None) -> Shape:
    assert shape is not None
    return tuple(shape[1:])


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number if it is taken: a layer may run several times."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}#{number}"
    return found


def _sizes(node: fx.Node, module: fx.GraphModule) -> Mapping[str, tuple[int, ...]]:
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        if not isinstance(layer, nn.modules.conv._ConvNd | TransposedConvolution):
            return {}
        axes = len(layer.kernel_size)
        padding: Any = layer.padding
        if isinstance(padding, str):
            spans = [d * (size - 1) for d, size in zip(layer.dilation, layer.kernel_size, strict=True)]
            padding = tuple(span // 2 if padding == "same" else 0 for span in spans)
        given = {"kernel": layer.kernel_size, "stride": layer.stride, "padding": padding, "dilation": layer.dilation}
        return {name: _numbers(value, axes) for name, value in given.items()}
    if "pool" not in _kind(node) or "adaptive" in _kind(node):
        return {}
    axes = len(shape) - 2 if (shape := shape_of(node)) is not None else 1
    names = ("self", *_POOLS) if takes_maximum(node) else ("self", *_POOLS[:-1])
    arguments = arguments_of(node, names)
    kernel = arguments["kernel_size"]
    given = {
        "kernel": kernel,
        "stride": arguments.get("stride") or kernel,
        "padding": arguments.get("padding", 0),
        "dilation": arguments.get("dilation", 1),
    }
    return {name: _numbers(value, axes) for name, value in given.items()}


def _numbers(value: Any, axes: int) -> tuple[int, ...]:
    """One number an axis."""
    numbers = [value] if isinstance(value, int) else list(value)
    return tuple(int(number) for number in (numbers * axes if len(numbers) == 1 else numbers))
