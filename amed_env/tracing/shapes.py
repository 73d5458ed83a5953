"""The shapes of layers: what a call of a module is as a matrix product, for one sample."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from amed_env.errors import NetworkError
from amed_env.problem.workload import Layer, LayerKind
from amed_env.tracing.lowering import EmbeddingTable, Product, TransposedConvolution


def layer_of_call(name: str, layer: nn.Module, reads: tuple[torch.Size, ...], written: torch.Size, batch: int) -> Layer:
    """The shape of one call of a layer, for one sample.

    Args:
        name: The layer's name.
        layer: The layer.
        reads: Shapes of what it reads.
        written: Shape of what it returns.
        batch: Samples; they need not stand on the first axis, as recurrent layers show.
    """
    input_elements, output_elements = reads[0].numel() // batch, written.numel() // batch
    if output_elements == 0:
        raise NetworkError(f"layer {name!r} has an empty output on the example input; give a larger input.")
    if isinstance(layer, Product):
        return _layer_of_product(name, reads, written, batch)
    if isinstance(layer, EmbeddingTable):
        rows, values = layer.weight.shape
        return Layer(
            name,
            "embedding",
            m=output_elements // values,
            n=values,
            k=1,
            input_elements=max(1, input_elements),
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
        m = input_elements // layer.in_channels
        n, k = layer.out_channels // layer.groups * taps, layer.in_channels // layer.groups
    else:
        m = output_elements // layer.out_channels
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


def add_call(first: Layer, again: Layer) -> Layer:
    """A layer that is called more than once: the same weights, more pixels."""
    return replace(
        first,
        m=first.m + again.m,
        input_elements=first.input_elements + again.input_elements,
        output_elements=first.output_elements + again.output_elements,
    )
