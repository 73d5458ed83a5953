"""Operations in place, made out of place: a graph hands tensors to readers, so none of them may change under way.

Which operations change what is not read off their names alone: the graph is run on an example, and a tensor whose
version has changed was changed. Tensors that share memory are found in the same run.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

_OPERATORS: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.imatmul: operator.matmul,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
}


class InPlaceProxy(fx.Proxy):
    """A value while a network is traced, for which `y += x` is the operation in place that it is for tensors."""


def _recorded(function: Any) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def record(proxy: fx.Proxy, other: Any) -> fx.Proxy:
        return proxy.tracer.create_proxy("call_function", function, (proxy, other), {})

    return record


for _operator in _OPERATORS:
    setattr(InPlaceProxy, f"__{_operator.__name__}__", _recorded(_operator))


class InPlaceError(Exception):
    """An operation changes a tensor and has no form that would not; the message names it."""


@dataclass(frozen=True)
class _Change:
    """A node that changed tensors.

    Attributes:
        node: The node.
        changed: The tensors that it changed.
    """

    node: fx.Node
    changed: list[torch.Tensor]


class _Watch(fx.Interpreter):
    """Runs a graph, and keeps every result and every change."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced, garbage_collect_values=False)
        self.results: dict[fx.Node, Any] = {}
        self.changes: list[_Change] = []

    def run_node(self, n: fx.Node) -> Any:
        read = [tensor for node in n.all_input_nodes for tensor in _tensors(self.env[node])]
        versions = [_version(tensor) for tensor in read]
        result = super().run_node(n)
        changed = [tensor for tensor, version in zip(read, versions, strict=True) if _version(tensor) != version]
        if changed:
            self.changes.append(_Change(n, changed))
        self.results[n] = result
        return result


def make_out_of_place(traced: fx.GraphModule, example: tuple[torch.Tensor, ...]) -> None:
    """Replace operations in place by those that return something new, which whoever reads the tensor later reads then.

    Args:
        traced: The network as a graph; its activation modules with a flag `inplace` lose it.
        example: Float tensors (N, …) that the network accepts; they are left as they are.

    Raises:
        InPlaceError: If that is not possible: for an operation without such a form, for one on a part of a tensor
            that is read again, or on the network's own parameters and buffers.
    """
    watch = _run(traced, example)
    if not watch.changes:
        _drop_flags(traced)
        return
    places = {node: place for place, node in enumerate(traced.graph.nodes)}
    for change in watch.changes:
        _hand_on(change.node, watch.results, places)
        _replace(traced, change.node)
    _drop_flags(traced)
    traced.graph.lint()
    traced.recompile()
    left = _run(traced, example).changes
    if left:
        raise InPlaceError(_said(left[0].node))


def _run(traced: fx.GraphModule, example: tuple[torch.Tensor, ...]) -> _Watch:
    watch = _Watch(traced)
    watch.run(*(tensor.clone() for tensor in example))
    return watch


def _hand_on(node: fx.Node, results: dict[fx.Node, Any], places: dict[fx.Node, int]) -> None:
    """Let everyone who reads the changed tensor after a node read what the node returns."""
    target = node.args[0] if node.args else None
    if not isinstance(target, fx.Node) or target.op == "get_attr" or results[node] is not results[target]:
        raise InPlaceError(_said(node))
    memory = _memory(results[target])
    for other, result in results.items():
        later = [user for user in other.users if places[user] > places[node]]
        if places[other] >= places[node] or not later or memory.isdisjoint(_memory(result)):
            continue
        if result is not results[target]:
            raise InPlaceError(f"{_said(node)}, on memory that {other.name!r} shares")
        for user in later:
            user.replace_input_with(other, node)


def _replace(traced: fx.GraphModule, node: fx.Node) -> None:
    """Give a node an operation that returns something new."""
    if node.op == "call_module":
        return  # its flag is dropped
    if node.op == "call_method":
        name = str(node.target)
        if not name.endswith("_") or name.endswith("__") or not hasattr(torch.Tensor, name[:-1]):
            raise InPlaceError(_said(node))
        node.target = name[:-1]
        return
    assert callable(node.target)
    if _asks_in_place(node, node.target):
        return
    found = _OPERATORS.get(node.target) or _function_without(getattr(node.target, "__name__", ""))
    if found is None:
        raise InPlaceError(_said(node))
    node.target = found


def _asks_in_place(node: fx.Node, function: Callable[..., Any]) -> bool:
    """Whether a function is told to work in place by an argument; then it is told otherwise."""
    try:
        given = inspect.signature(function).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # a function of C without a signature
        return False
    if not given.arguments.get("inplace"):
        return False
    given.arguments["inplace"] = False
    node.args, node.kwargs = given.args, given.kwargs
    return True


def _function_without(name: str) -> Callable[..., Any] | None:
    """The function of torch that `name` without its last underscore names, or None."""
    if not name.endswith("_") or name.endswith("__"):
        return None
    found: Callable[..., Any] | None = getattr(F, name[:-1], None) or getattr(torch, name[:-1], None)
    return found


def _drop_flags(traced: fx.GraphModule) -> None:
    """Modules that may work in place do not, nor do functions that a flag tells so; in eval mode some never did."""
    for child in traced.modules():
        if isinstance(child, nn.Module) and getattr(child, "inplace", False):
            child.inplace = False  # type: ignore[assignment]
    for node in traced.graph.nodes:
        if node.op == "call_function" and node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # a parameter that was made in inference mode has none


def _memory(value: Any) -> set[int]:
    """Addresses of the memory that tensors lie in; one without elements lies nowhere."""
    return {tensor.untyped_storage().data_ptr() for tensor in _tensors(value) if tensor.numel()}


def _said(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{target!r} changes a tensor in place"
