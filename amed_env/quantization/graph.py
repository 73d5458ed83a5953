"""A network as a graph of groups (`tracing.groups`), in which results that several readers share are kept at 8 bits."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from amed_env.quantization.layers import StoredTensor
from amed_env.tracing.groups import Group, find_groups, stored_results
from amed_env.tracing.shapes import record_shapes


@dataclass(frozen=True)
class NetworkGraph:
    """A network as a graph.

    Attributes:
        module: The network as an `fx.GraphModule` with `StoredTensor` modules, which computes what the original does.
        groups: Its groups by their last node.
    """

    module: fx.GraphModule
    groups: dict[fx.Node, Group]


def compute_node(module: fx.GraphModule, node: fx.Node, argument: Callable[[fx.Node], Any]) -> Any:
    """Run a node of a graph.

    Args:
        module: The graph's module.
        node: No placeholder.
        argument: What a node that it reads has for a value.
    """
    arguments = fx.node.map_arg(node.args, argument)
    keywords = fx.node.map_arg(node.kwargs, argument)
    if node.op == "output":
        return arguments[0]
    if node.op == "call_function":
        return node.target(*arguments, **keywords)  # type: ignore[operator]
    if node.op == "call_method":
        return getattr(arguments[0], str(node.target))(*arguments[1:], **keywords)
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*arguments, **keywords)
    return operator.attrgetter(str(node.target))(module)  # a parameter or buffer


def find_graph(module: fx.GraphModule, layers: dict[str, nn.Module], example: torch.Tensor) -> NetworkGraph:
    """The groups of a network.

    Args:
        module: The traced network; results that several readers share get a `StoredTensor` each.
        layers: Its quantizable layers by name.
        example: Tensor (N, …) that the network accepts.
    """
    with torch.no_grad():
        record_shapes(module, example)
    groups = find_groups(module, set(layers))
    _store_shared_results(module, groups)
    return NetworkGraph(module, groups)


def _store_shared_results(traced: fx.GraphModule, groups: dict[fx.Node, Group]) -> None:
    for output in stored_results(groups):
        number = list(groups).index(output)
        name = _free_name(traced, f"stored_tensor_{number}")
        traced.add_submodule(name, StoredTensor(groups[output].layer))
        with traced.graph.inserting_after(output):
            stored = traced.graph.call_module(name, (output,))
        stored.meta = dict(output.meta)
        for user in [user for user in output.users if user is not stored]:
            user.replace_input_with(output, stored)
    traced.graph.lint()
    traced.recompile()


def _free_name(module: nn.Module, name: str) -> str:
    while hasattr(module, name):
        name += "_"
    return name
