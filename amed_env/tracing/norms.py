"""Batch norms in a program: folded where they alone read a layer, as multiplications by constants elsewhere."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from amed_env.tracing.capture import constant_of
from amed_env.tracing.lowering import COMPUTES, EmbeddingTable, Product

aten = torch.ops.aten

_NORMS: dict[Any, tuple[str, ...]] = {
    aten._native_batch_norm_legit_no_training.default: (
        "read",
        "weight",
        "bias",
        "mean",
        "variance",
        "momentum",
        "eps",
    ),
    aten.batch_norm.default: ("read", "weight", "bias", "mean", "variance", "training", "momentum", "eps", "cudnn"),
}


def fold_batch_norms(module: fx.GraphModule, layers: dict[str, nn.Module]) -> list[fx.Node]:
    """Fold, in place, every batch norm that alone reads what a layer returns.

    Args:
        module: A lowered program.
        layers: Its layers by name; those that are folded into get new weights.

    Returns:
        The batch norms that remain.
    """
    calls: dict[str, int] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    remaining = []
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in _NORMS and not _fold(module, node, layers, calls):
            remaining.append(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return remaining


def _fold(module: fx.GraphModule, node: fx.Node, layers: dict[str, nn.Module], calls: dict[str, int]) -> bool:
    given: dict[str, Any] = dict(zip(_NORMS[node.target], node.args, strict=False))
    read = given["read"]
    if not isinstance(read, fx.Node) or read.op != "call_module" or len(read.users) != 1:
        return False
    name = str(read.target)
    layer = layers.get(name)
    if layer is None or isinstance(layer, EmbeddingTable | Product) or calls[name] != 1:
        return False
    tensors = {key: constant_of(module, given.get(key)) for key in ("weight", "bias", "mean", "variance")}
    mean, variance = tensors["mean"], tensors["variance"]
    if mean is None or variance is None:
        return False  # it normalises by the batch
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    bias = layer.bias if isinstance(layer.bias, nn.Parameter) else None
    if isinstance(layer, nn.Linear):
        if len(read.meta["val"].shape) != 2 or len(mean) != layer.out_features:
            return False  # over (N, T, C) it normalises T, which are no features of the layer
        gamma = torch.ones_like(mean) if tensors["weight"] is None else tensors["weight"]
        beta = torch.zeros_like(mean) if tensors["bias"] is None else tensors["bias"]
        fused = fuse_linear_bn_weights(weight, bias, mean, variance, given["eps"], gamma, beta)
    else:
        if len(mean) != len(weight):
            return False
        fused = fuse_conv_bn_weights(weight, bias, mean, variance, given["eps"], tensors["weight"], tensors["bias"])
    layer.weight, layer.bias = (nn.Parameter(tensor.detach(), requires_grad=False) for tensor in fused)
    written = [user for user in node.users if user.target is operator.getitem] or [node]
    for user in written:
        read.meta[COMPUTES] = user.name
        user.replace_all_uses_with(read)
        module.graph.erase_node(user)
    if written != [node]:
        module.graph.erase_node(node)
    return True
