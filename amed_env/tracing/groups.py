"""The graph of a network: what is computed on the accumulators of a layer, and which results are kept in memory.

A *group* is a layer with the addition and the activation that follow it: hardware (and the integer engine) computes
them on the accumulators, before anything is rounded. What a group returns is rounded

- to the width of the one layer that reads it, if no one else does;
- to 8 bits, if there are several readers, or if it is added to another group's accumulators (the shortcut of a residual
  block): it stands in memory once, and a narrower layer rounds it again as it reads it;
- not at all, if only operations without an integer form read it (mean, softmax, the network's output).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from amed_env.tracing.shapes import shape_of

aten = torch.ops.aten

# The program is functional and made of ATen operations (`tracing.capture`), so these lists are all there is to know.
_ADDITION = aten.add.Tensor
_MAX_POOLS: tuple[Any, ...] = (
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.max_pool3d.default,
)
_MOVES: tuple[Any, ...] = (
    aten.cat.default,
    aten.expand.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.reshape.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.t.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    *_MAX_POOLS,
)
_PADS: tuple[Any, ...] = (aten.constant_pad_nd.default, aten.pad.default)
_CLAMPS: tuple[Any, ...] = (aten.hardtanh.default, aten.clamp.default)


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


def find_groups(traced: fx.GraphModule, names: set[str]) -> dict[fx.Node, Group]:
    """Groups by their last node; of two layers that are added, the later one takes the addition."""
    groups: dict[fx.Node, Group] = {}
    taken: set[fx.Node] = set()
    # Backwards, so that of two layers that are added the later one takes the addition: the earlier result is in memory.
    for call in reversed(list(traced.graph.nodes)):
        if call.op != "call_module" or str(call.target) not in names:
            continue
        end, addition = call, None
        reader = _only_reader(end)
        if reader is not None and reader not in taken and _adds_equal_shapes(reader):
            taken.add(reader)
            end = addition = reader
            reader = _only_reader(end)
        low, high = -math.inf, math.inf
        limits = None if reader is None else clamp_limits(reader)
        if reader is not None and limits is not None:
            end, (low, high) = reader, limits
        groups[end] = Group(str(call.target), call, addition, low, high, end)
    return dict(reversed(groups.items()))


def asks_shape(node: fx.Node) -> bool:
    """Whether an operation asks for a tensor's shape alone, and not for its values."""
    return node.op == "call_function" and node.target is aten.sym_size.int


def _readers(node: fx.Node) -> list[fx.Node]:
    """Who reads the values of a node; asking for its shape is no reading."""
    return [user for user in node.users if not asks_shape(user)]


def _only_reader(node: fx.Node) -> fx.Node | None:
    readers = _readers(node)
    return readers[0] if len(readers) == 1 else None


def _adds_equal_shapes(node: fx.Node) -> bool:
    """Whether a node is the addition of two different tensors of equal shape."""
    if node.op != "call_function" or node.target is not _ADDITION or node.kwargs:
        return False
    operands = node.all_input_nodes
    return len(operands) == len(node.args) == 2 and shape_of(operands[0]) == shape_of(operands[1]) is not None


def clamp_limits(node: fx.Node) -> tuple[float, float] | None:
    """What an activation clamps to (0 and infinity for ReLU, 0 and 6 for ReLU6), or None if it does something else."""
    if node.op != "call_function":
        return None
    if node.target is aten.relu.default:
        return 0.0, math.inf
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    if node.target not in _CLAMPS:
        return None
    given: dict[int, Any] = dict(enumerate(node.args))
    ends = (-1.0, 1.0) if node.target is aten.hardtanh.default else (None, None)
    low, high = given.get(1, ends[0]), given.get(2, ends[1])
    if not all(limit is None or isinstance(limit, int | float) for limit in (low, high)):
        return None
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def passes_values(node: fx.Node) -> bool:
    """Whether an operation only moves or drops values (or takes the largest), so that rounding may come before it."""
    if node.op != "call_function" or shape_of(node) is None:
        return False
    if is_padding(node):
        return zero_padding(node)
    return node.target in _MOVES


def is_padding(node: fx.Node) -> bool:
    """Whether an operation pads; see `zero_padding`."""
    return node.target in _PADS


def takes_maximum(node: fx.Node) -> bool:
    """Whether it is a max pooling."""
    return node.target in _MAX_POOLS


def zero_padding(node: fx.Node) -> bool:
    """Whether a padding pads with zeros."""
    if node.target is aten.constant_pad_nd.default:
        return bool((*node.args, 0)[2] == 0)
    given: dict[int, Any] = dict(enumerate(node.args))
    mode, value = given.get(2, "constant"), given.get(3)
    return bool(mode == "constant" and value in (None, 0))


def effective_readers(node: fx.Node) -> Iterator[fx.Node]:
    """Who computes with the values of a node, seen through operations that only move them."""
    for reader in _readers(node):
        if passes_values(reader):
            yield from effective_readers(reader)
        else:
            yield reader


def stored_results(groups: dict[fx.Node, Group]) -> list[fx.Node]:
    """The last nodes of the groups whose results stand in memory once, at 8 bits, for all readers."""
    calls = {group.call for group in groups.values()}
    additions = {group.addition for group in groups.values() if group.addition is not None}
    stored = []
    for output in groups:
        readers = list(effective_readers(output))
        added = any(reader in additions for reader in readers)
        shared = len(readers) > 1 and any(reader in calls for reader in readers)
        # A result that stands in memory once has one width for all its readers: 8 bits, from which narrower layers
        # round again.
        if added or shared:
            stored.append(output)
    return stored
