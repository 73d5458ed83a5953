"""Shapes of results in a program, and of layers: what a call of a module is as a matrix product, for one sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from amed_env.errors import NetworkError
from amed_env.problem.workload import Layer, LayerKind
from amed_env.tracing.lowering import EmbeddingTable, Product, TransposedConvolution

_SHAPE = "recorded shape"  # key of a node's meta


class _Recorder(fx.Interpreter):
    """Runs a program, and notes the shape of every tensor."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta[_SHAPE] = result.shape
        return result


def record_shapes(program: fx.GraphModule, example: torch.Tensor) -> None:
    """Run a program once, so that `shape_of` knows the shapes of its results; torch's own way imports its compiler."""
    _Recorder(program).run(example)


def shape_of(node: fx.Node) -> torch.Size | None:
    """The shape of a node's result, or None if it is no tensor or was not recorded."""
    shape: torch.Size | None = node.meta.get(_SHAPE)
    return shape


def known_shape(node: fx.Node) -> torch.Size:
    """The shape of a node's result, which is a tensor."""
    shape = shape_of(node)
    assert shape is not None
    return shape


class LayerCall(NamedTuple):
    """One call of a layer: the shapes of what it reads, and of what it writes."""

    reads: tuple[torch.Size, ...]
    written: torch.Size


def layer_of_calls(name: str, layer: nn.Module, calls: Sequence[LayerCall], batch: int) -> Layer:
    """The shape of a layer, for one sample: of several calls, the same weights and the pixels of all.

    Args:
        name: The layer's name.
        layer: The layer.
        calls: Its calls.
        batch: Samples of all calls together; they need not stand on the first axis, as recurrent layers show, and a
            loop over samples has a call for each.
    """
    if any(call.written.numel() == 0 for call in calls):
        raise NetworkError(f"layer {name!r} has an empty output on the example input; give a larger input.")
    if isinstance(layer, Product):
        (product,) = calls  # as it has no weights that two calls could have in common
        return _layer_of_product(name, *product, batch)
    input_elements = max(1, sum(call.reads[0].numel() for call in calls) // batch)
    output_elements = max(1, sum(call.written.numel() for call in calls) // batch)
    if isinstance(layer, EmbeddingTable):
        rows, values = layer.weight.shape
        return Layer(
            name,
            "embedding",
            m=max(1, output_elements // values),
            n=values,
            k=1,
            input_elements=input_elements,
            weight_elements=rows * values,
            output_elements=output_elements,
        )
    if isinstance(layer, nn.Linear):
        return Layer(
            name,
            "linear",
            m=max(1, output_elements // layer.out_features),
            n=layer.out_features,
            k=layer.in_features,
            input_elements=input_elements,
            output_elements=output_elements,
        )
    assert isinstance(layer, nn.modules.conv._ConvNd | TransposedConvolution)
    kernel, stride = _two_axes(layer.kernel_size), _two_axes(layer.stride)
    taps = layer.weight[0, 0].numel()
    if isinstance(layer, TransposedConvolution):
        # Every pixel that is read is multiplied with all weights of its channel, and the products are scattered.
        m = max(1, input_elements // layer.in_channels)
        n, k = layer.out_channels // layer.groups * taps, layer.in_channels // layer.groups
    else:
        m = max(1, output_elements // layer.out_channels)
        n, k = layer.out_channels // layer.groups, layer.in_channels // layer.groups * taps
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels and n == 1
    kind: LayerKind = "transposed" if isinstance(layer, TransposedConvolution) else "depthwise" if depthwise else "conv"
    return Layer(
        name,
        kind,
        m=m,
        n=n,
        k=k,
        groups=layer.groups,
        input_elements=input_elements,
        output_elements=output_elements,
        kernel=kernel,
        stride=stride,
    )


def _layer_of_product(name: str, reads: tuple[torch.Size, ...], written: torch.Size, batch: int) -> Layer:
    """A product of two activations; the stack of matrices is its groups, the second operand stands for the weights."""
    (m, k), n = reads[0][-2:], written[-1]
    groups = written.numel() // (m * n)
    if groups % batch == 0:
        groups //= batch
    else:  # the samples stand on an axis of the matrices
        m = max(1, m // batch)
    return Layer(
        name,
        "matmul",
        m=m,
        n=n,
        k=k,
        groups=groups,
        input_elements=max(1, reads[0].numel() // batch),
        weight_elements=max(1, reads[1].numel() // batch),
        output_elements=max(1, written.numel() // batch),
    )


def _two_axes(sizes: tuple[int, ...]) -> tuple[int, int]:
    """Height and width; one axis is a width, and of three the first two are taken together."""
    if len(sizes) == 1:
        return 1, sizes[0]
    return (sizes[0], sizes[1]) if len(sizes) == 2 else (sizes[0] * sizes[1], sizes[2])
