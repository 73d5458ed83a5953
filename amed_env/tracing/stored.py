"""Programs as data that can be pickled.

Torch pickles a program as code and traces that again when it is loaded, which fails wherever the batch size makes a
tensor: the first state of a recurrent layer, a class token for every sample.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from amed_env.tracing.capture import module_path, set_module_path


@dataclass(frozen=True)
class Result:
    """Stands for the result of the node of this name."""

    node: str


@dataclass(frozen=True)
class Operation:
    """Stands for an operation of torch, which cannot be pickled itself."""

    path: str


@dataclass(frozen=True)
class StoredNode:
    """A node of a program, with other nodes and operations by their names; `path` is that of its module."""

    name: str
    op: str
    target: Any
    args: Any
    kwargs: Any
    path: str


@dataclass(frozen=True)
class StoredProgram:
    """A program without its graph.

    Attributes:
        nodes: Its nodes in order.
        modules: Its modules by name.
        buffers: Its constants by name.
    """

    nodes: tuple[StoredNode, ...]
    modules: dict[str, nn.Module | None]
    buffers: dict[str, torch.Tensor | None]

    @classmethod
    def of(cls, program: fx.GraphModule) -> StoredProgram:
        """The same program; it shares its tensors."""
        return cls(tuple(map(_stored, program.graph.nodes)), dict(program._modules), dict(program._buffers))

    def program(self) -> fx.GraphModule:
        """The program again, in eval mode."""
        graph, made = fx.Graph(), dict[str, fx.Node]()

        def restored(value: Any) -> Any:
            return made[value.node] if isinstance(value, Result) else value

        for node in self.nodes:
            target = node.target
            if isinstance(target, Operation):
                target = operator.attrgetter(target.path)(torch.ops)
            args, kwargs = (fx.node.map_aggregate(values, restored) for values in (node.args, node.kwargs))
            made[node.name] = graph.create_node(node.op, target, args, kwargs, node.name)
            set_module_path(made[node.name], node.path)
        root = nn.Module()
        root._modules.update(self.modules)
        root._buffers.update(self.buffers)
        return fx.GraphModule(root, graph).eval()


def _stored(node: fx.Node) -> StoredNode:
    def named(other: fx.Node) -> Any:
        return Result(other.name)

    target = Operation(str(node.target)) if isinstance(node.target, torch._ops.OpOverload) else node.target
    args, kwargs = fx.node.map_arg(node.args, named), fx.node.map_arg(node.kwargs, named)
    return StoredNode(node.name, node.op, target, args, kwargs, module_path(node))
