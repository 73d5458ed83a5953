"""The graph of a network: what is computed on the accumulators of a layer, and which results are kept in memory.

A *group* is a layer with the addition and the activation that follow it: hardware (and the integer engine) computes
them on the accumulators, before anything is rounded. What a group returns is rounded

- to the width of the one layer that reads it, if no one else does;
- to 8 bits, if there are several readers, or if it is added to another group's accumulators (the shortcut of a residual
  block): it stands in memory once, and a narrower layer rounds it again as it reads it (`StoredTensor`);
- not at all, if only operations without an integer form read it (mean, softmax, the network's output).
"""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from amed_env.quantization.in_place import InPlaceError, InPlaceProxy, make_out_of_place
from amed_env.quantization.layers import StoredTensor

logger = logging.getLogger(__name__)

_ADDITIONS: tuple[Any, ...] = (operator.add, torch.add, "add")
_DROPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
_SHAPE_METHODS = ("size", "dim", "numel")
_SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device", "requires_grad")
_PASSING_FUNCTIONS: tuple[Any, ...] = (operator.getitem, torch.flatten, torch.cat, torch.concat, torch.reshape)
_PASSING_METHODS = ("view", "reshape", "flatten", "contiguous", "permute", "transpose")
_PASSING_MODULES = (nn.Flatten, nn.MaxPool1d, nn.MaxPool2d, nn.ZeroPad2d)
_MAX_POOLS: tuple[Any, ...] = (F.max_pool1d, F.max_pool2d, torch.max_pool1d, torch.max_pool2d)


@dataclass(frozen=True)
class Group:
    """A layer, and what is computed on its accumulators.

    Attributes:
        layer: Name of the layer.
        call: The node that calls it.
        addition: The node that adds something to its result, or None.
        low, high: What the sum is clamped to: 0 and infinity for ReLU; both infinite without an activation.
        output: The last node of the group.
    """

    layer: str
    call: fx.Node
    addition: fx.Node | None
    low: float
    high: float
    output: fx.Node

    @property
    def addend(self) -> fx.Node | None:
        """What is added to the layer's result, or None."""
        if self.addition is None:
            return None
        return next(node for node in self.addition.all_input_nodes if node is not self.call)


@dataclass(frozen=True)
class NetworkGraph:
    """A network as a graph.

    Attributes:
        module: The network as an `fx.GraphModule` with `StoredTensor` modules, which computes what the original does.
        groups: Its groups by their last node.
    """

    module: fx.GraphModule
    groups: dict[fx.Node, Group]


class _Tracer(fx.Tracer):
    def __init__(self, leaves: set[int]) -> None:
        super().__init__()
        self._leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self._leaves or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return InPlaceProxy(node, self)


class _NoGraphError(Exception):
    """A network has no graph that computes what it does; the message says why."""


def capture(module: nn.Module, layers: dict[str, nn.Module], example: tuple[torch.Tensor, ...]) -> NetworkGraph | str:
    """The graph of a network, or why there is none.

    Args:
        module: The network in eval mode; its submodules are shared with the graph.
        layers: Its quantizable layers by name.
        example: Float tensors (N, …) that the network accepts.

    Returns:
        The reason where the network cannot be traced symbolically, or where the graph would not compute what the
        network does: with data-dependent control flow that the tracing did not notice, or with operations in place
        that have no form out of place. The network is then as it was.
    """
    in_place = [child for child in module.modules() if getattr(child, "inplace", False)]
    try:
        return _capture(module, layers, example)
    except _NoGraphError as error:
        for child in in_place:
            child.inplace = True  # type: ignore[assignment]
        logger.info("there is no graph: %s", error)
        return str(error)


def _capture(module: nn.Module, layers: dict[str, nn.Module], example: tuple[torch.Tensor, ...]) -> NetworkGraph:
    with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode do not say that they were changed
        expected = module(*(tensor.clone() for tensor in example))
        if not torch.isfinite(expected).all():
            raise _NoGraphError("the network returns NaN or infinity")  # calibration meets it too, and names the layer
        try:
            graph = _Tracer({id(layer) for layer in layers.values()}).trace(module)
            traced = fx.GraphModule(module, graph)
        except Exception as error:  # symbolic tracing fails with any type of error
            logger.info("the network cannot be traced symbolically (%s)", error)
            raise _NoGraphError("the network cannot be traced symbolically") from error
        try:
            make_out_of_place(traced, example)
            _drop_identities(traced)
            ShapeProp(traced).propagate(*example)
            found = traced(*example)
        except InPlaceError as error:
            raise _NoGraphError(f"the network's operation {error}") from error
        except Exception as error:
            logger.info("the traced network does not run (%s)", error)
            raise _NoGraphError("the network cannot be traced symbolically") from error
    # Kernels of the traced network may add in another order; control flow that was missed changes far more than this.
    tolerance = 1e-4 * float(expected.abs().max()) + 1e-6
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=0.0, atol=tolerance):
        raise _NoGraphError("its symbolic trace computes something else than the network itself")
    names = {id(layer): name for name, layer in layers.items()}
    groups = _find_groups(traced, names)
    _store_shared_results(traced, groups)
    return NetworkGraph(traced, groups)


def _drop_identities(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        dropped = node.op == "call_module" and isinstance(traced.get_submodule(str(node.target)), _DROPPED)
        if dropped or (node.op == "call_function" and node.target in (F.dropout, F.dropout2d)):
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)
    traced.recompile()


def _find_groups(traced: fx.GraphModule, names: dict[int, str]) -> dict[fx.Node, Group]:
    """Groups by their last node; of two layers that are added, the later one takes the addition."""
    groups: dict[fx.Node, Group] = {}
    taken: set[fx.Node] = set()
    # Backwards, so that of two layers that are added the later one takes the addition: the earlier result is in memory.
    for call in reversed(list(traced.graph.nodes)):
        if call.op != "call_module" or id(traced.get_submodule(str(call.target))) not in names:
            continue
        end, addition = call, None
        reader = _only_reader(end)
        if reader is not None and reader not in taken and _adds_equal_shapes(reader):
            taken.add(reader)
            end = addition = reader
            reader = _only_reader(end)
        low, high = -math.inf, math.inf
        limits = None if reader is None else clamp_limits(traced, reader)
        if reader is not None and limits is not None:
            end, (low, high) = reader, limits
        name = names[id(traced.get_submodule(str(call.target)))]
        groups[end] = Group(name, call, addition, low, high, end)
    return dict(reversed(groups.items()))


def asks_shape(node: fx.Node) -> bool:
    """Whether an operation asks for a tensor's shape or kind alone, and not for its values, as `x.T` does."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def _readers(node: fx.Node) -> list[fx.Node]:
    """Who reads the values of a node; asking for its shape is no reading."""
    return [user for user in node.users if not asks_shape(user)]


def _only_reader(node: fx.Node) -> fx.Node | None:
    readers = _readers(node)
    return readers[0] if len(readers) == 1 else None


def _adds_equal_shapes(node: fx.Node) -> bool:
    """Whether a node is the addition of two different tensors of equal shape."""
    if node.op not in ("call_function", "call_method") or node.target not in _ADDITIONS or node.kwargs:
        return False
    operands = node.all_input_nodes
    return len(operands) == len(node.args) == 2 and _shape(operands[0]) == _shape(operands[1]) is not None


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    shape = getattr(node.meta.get("tensor_meta"), "shape", None)
    return None if shape is None else tuple(shape)


def clamp_limits(traced: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    """What an activation clamps to (0 and infinity for ReLU, 0 and 6 for ReLU6), or None if it does something else."""
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        if isinstance(module, nn.Hardtanh):  # ReLU6 is one
            return float(module.min_val), float(module.max_val)
        return (0.0, math.inf) if isinstance(module, nn.ReLU) else None
    if node.target in (F.relu, torch.relu, "relu"):
        return 0.0, math.inf
    return (0.0, 6.0) if node.target is F.relu6 else None


def passes_values(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an operation only moves or drops values (or takes the largest), so that rounding may come before it."""
    if node.op == "call_module":
        return isinstance(traced.get_submodule(str(node.target)), _PASSING_MODULES)
    if node.op == "call_method":
        return node.target in _PASSING_METHODS
    if node.op != "call_function" or _shape(node) is None:
        return False
    if node.target is F.pad:
        return zero_padding(node)
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _shape(node.args[0]) is not None
    return node.target in _PASSING_FUNCTIONS or node.target in _MAX_POOLS


def takes_maximum(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether it is a max pooling."""
    if node.op == "call_module":
        return isinstance(traced.get_submodule(str(node.target)), nn.MaxPool1d | nn.MaxPool2d)
    return node.target in _MAX_POOLS


def zero_padding(node: fx.Node) -> bool:
    """Whether a call of `F.pad` pads with zeros."""
    mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
    value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else 0)
    return mode == "constant" and value in (None, 0)


def effective_readers(traced: fx.GraphModule, node: fx.Node) -> Iterator[fx.Node]:
    """Who computes with the values of a node, seen through operations that only move them."""
    for reader in _readers(node):
        if passes_values(traced, reader):
            yield from effective_readers(traced, reader)
        else:
            yield reader


def _store_shared_results(traced: fx.GraphModule, groups: dict[fx.Node, Group]) -> None:
    calls = {group.call for group in groups.values()}
    additions = {group.addition for group in groups.values() if group.addition is not None}
    for number, output in enumerate(list(groups)):
        readers = list(effective_readers(traced, output))
        added = any(reader in additions for reader in readers)
        shared = len(readers) > 1 and any(reader in calls for reader in readers)
        # A result that stands in memory once has one width for all its readers: 8 bits, from which narrower layers
        # round again.
        if not (added or shared):
            continue
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
