"""What both styles of ONNX share: which layer becomes what, and its operators on float values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import nn

from amed_env.deploy.onnx.builder import GraphBuilder
from amed_env.deploy.onnx.weights import StoredWeights, WeightStore
from amed_env.deploy.program import Grid, LayerProgram, ProductProgram, Program
from amed_env.problem.allocation import FLOAT_BITS
from amed_env.quantization.codes import WIDEST
from amed_env.quantization.layers import SIGNED_ZERO, Quantizable
from amed_env.tracing.lowering import EmbeddingTable, TransposedConvolution

Bias = Literal["float", "int32"]
BIASES: tuple[Bias, ...] = ("float", "int32")


class LayerWriter(ABC):
    """Writes one layer at a time.

    Args:
        builder: Where to.
        program: The network.

    Attributes:
        remarks: What a user should know of what was written.
    """

    def __init__(self, builder: GraphBuilder, program: Program) -> None:
        self.builder, self.program = builder, program
        self.remarks: list[str] = []

    def write(self, name: str, operands: list[str], call: str) -> str:
        """Write a layer, or a result that is kept.

        Args:
            name: Its name in the program.
            operands: Names of what it reads.
            call: The name of this call, for its nodes; a layer may be called several times.

        Returns:
            The name of its result, float32.
        """
        if name in self.program.stored:
            return self.stored(self.program.stored[name], operands[0], call)
        if name in self.program.products:
            return self.product(self.program.products[name], operands[0], operands[1], call)
        return self.layer(self.program.layers[name], operands[0], call)

    @abstractmethod
    def stored(self, grid: Grid, values: str, call: str) -> str:
        """A result that is kept at 8 bits."""

    @abstractmethod
    def product(self, product: ProductProgram, left: str, right: str, call: str) -> str:
        """A product of two activations."""

    @abstractmethod
    def layer(self, layer: LayerProgram, values: str, call: str) -> str:
        """A layer with weights."""


class StandardWriter(LayerWriter):
    """Writes layers by standard operators alone.

    Args:
        builder: Where to.
        program: The network.
        weights: Where weights go.
        bias: Whether biases are floats, or integers of 32 bits on the grid of the sums.
    """

    def __init__(self, builder: GraphBuilder, program: Program, weights: WeightStore, bias: Bias) -> None:
        super().__init__(builder, program)
        self.weights, self.bias = weights, bias

    @abstractmethod
    def rounded(self, values: str, grid: Grid, name: str) -> str:
        """Float values of a grid; `name` is the name of the node that makes the integers."""

    @abstractmethod
    def weight_values(self, weights: StoredWeights, axes: int) -> str:
        """Float weights of stored integers, output channel first; `axes` is their number of axes."""

    @abstractmethod
    def on_integers(self, layer: LayerProgram, grid: Grid, weights: StoredWeights, values: str, call: str) -> str:
        """A layer that multiplies integers of at most 8 bits."""

    @abstractmethod
    def product_on_integers(self, grids: tuple[Grid, Grid], operands: tuple[str, str], call: str) -> str:
        """A product of integers of at most 8 bits."""

    def stored(self, grid: Grid, values: str, call: str) -> str:
        """A result that is kept at 8 bits."""
        return self.rounded(values, grid, codes_name(call))

    def product(self, product: ProductProgram, left: str, right: str, call: str) -> str:
        """A product of two activations."""
        grids = (product.left, product.right)
        if grids[0] is not None and grids[1] is not None and max(grids[0].bits, grids[1].bits) <= WIDEST:
            return self.product_on_integers((grids[0], grids[1]), (left, right), call)
        operands = []
        for position, (values, grid) in enumerate(zip((left, right), grids, strict=True)):
            operands.append(values if grid is None else self.rounded(values, grid, codes_name(call, position)))
        return self.builder.node("MatMul", *operands, name=call)

    def layer(self, layer: LayerProgram, values: str, call: str) -> str:
        """A layer with weights."""
        if isinstance(layer.module, EmbeddingTable):
            return self._rows(layer, values, call)
        if layer.integers is None:
            weight = self.weights.floats(float_weight(layer.module), layer.name)
        else:
            stored = self.weights.store(layer)
            if layer.read is not None and multiplies_integers(layer):
                return self.on_integers(layer, layer.read, stored, values, call)
            weight = self.weight_values(stored, layer.integers.ndim)
        read = values if layer.read is None else self.rounded(values, layer.read, codes_name(call))
        return float_layer(self.builder, layer, read, weight, self.float_bias(layer), call)

    def float_bias(self, layer: LayerProgram) -> str | None:
        """The name of a bias of floats, or None."""
        return None if layer.bias is None else self.builder.constant(layer.bias, np.float32, f"{layer.name}.bias")

    def _rows(self, layer: LayerProgram, indices: str, call: str) -> str:
        """Rows that are looked up as integers, so that the table in memory is no larger than a byte a weight."""
        build = self.builder
        if layer.integers is None:
            table = self.weights.floats(float_weight(layer.module), layer.name)
            return build.node("Gather", table, indices, name=call)
        stored = self.weights.store(layer)
        rows = self.integers_as_floats(build.node("Gather", stored.integers, indices, name=call), stored.zero_point)
        scales = build.constant(stored.scales.reshape(-1, 1), np.float32, f"{layer.name}.scales")
        return build.node("Mul", rows, build.node("Gather", scales, indices))

    def integers_as_floats(self, integers: str, zero_point: int) -> str:
        """Integers as float32, counted from their zero point."""
        values = self.builder.cast(integers, "FLOAT")
        return self.builder.node("Sub", values, self.builder.number(zero_point)) if zero_point else values

    def rounded_in_float(self, values: str, grid: Grid, name: str) -> str:
        """Values of a grid of any width, in the evaluator's arithmetic (`quantization.layers.on_grid`)."""
        build = self.builder
        steps = build.node("Mul", values, build.number(np.float32(1.0 / grid.scale)))
        shifted = -SIGNED_ZERO <= grid.low < 0
        if shifted:
            steps = build.node("Add", steps, build.number(SIGNED_ZERO))
        steps = build.node("Round", steps)
        if shifted:
            steps = build.node("Sub", steps, build.number(SIGNED_ZERO))
        integers = build.node("Clip", steps, build.number(grid.low), build.number(grid.high), name=name)
        return build.node("Mul", integers, build.number(grid.scale))


def multiplies_integers(layer: LayerProgram) -> bool:
    """Whether a layer multiplies integers of at most 8 bits, as `QuantizedLayer.at` decides it."""
    return layer.read is not None and max(layer.precision) <= WIDEST


def codes_name(call: str, operand: int = 0) -> str:
    """The name of the node that makes the integers of what a call reads."""
    return f"{call}/reads" if operand == 0 else f"{call}/reads_{operand + 1}"


def result_name(call: str) -> str:
    """The name of the node that makes the result of a call."""
    return f"{call}/returns"


def float_weight(module: Quantizable) -> npt.NDArray[np.float32]:
    """The float weights of a layer."""
    values: npt.NDArray[np.float32] = module.weight.detach().float().cpu().numpy()
    return values


def float_layer(
    builder: GraphBuilder, layer: LayerProgram, values: str, weight: str, bias: str | None, call: str
) -> str:
    """A layer on float values.

    Args:
        builder: Where to.
        layer: The layer.
        values: What it reads.
        weight: Float weights, output channel first.
        bias: Float bias, or None.
        call: Name of the node.
    """
    module = layer.module
    if isinstance(module, nn.Linear):
        return add_bias(builder, builder.node("MatMul", values, turned(builder, weight), name=call), bias)
    biases = () if bias is None else (bias,)
    if isinstance(module, TransposedConvolution):
        weight = input_channel_first(builder, weight, module)
        options = {**convolution_attributes(module), "output_padding": list(module.output_padding)}
        return builder.node("ConvTranspose", values, weight, *biases, name=call, **options)
    assert not isinstance(module, EmbeddingTable)
    return builder.node("Conv", values, weight, *biases, name=call, **convolution_attributes(module))


def add_bias(builder: GraphBuilder, values: str, bias: str | None) -> str:
    """Values and a bias, if there is one."""
    return values if bias is None else builder.node("Add", values, bias)


def turned(builder: GraphBuilder, weight: str) -> str:
    """A matrix with its input features first, as products have it."""
    return builder.node("Transpose", weight, perm=[1, 0])


def input_channel_first(builder: GraphBuilder, weight: str, module: TransposedConvolution) -> str:
    """Weights (out, in / groups, …) as ConvTranspose has them: (in, out / groups, …)."""
    groups, inputs, outputs = module.groups, module.in_channels, module.out_channels
    kernel = tuple(module.kernel_size)
    axes = list(range(3, 3 + len(kernel)))
    grouped = builder.node("Reshape", weight, builder.sizes(groups, outputs // groups, inputs // groups, *kernel))
    exchanged = builder.node("Transpose", grouped, perm=[0, 2, 1, *axes])
    return builder.node("Reshape", exchanged, builder.sizes(inputs, outputs // groups, *kernel))


def convolution_attributes(module: Any) -> dict[str, Any]:
    """Attributes of a convolution, transposed or not."""
    return {
        "kernel_shape": list(module.kernel_size),
        "strides": list(module.stride),
        "dilations": list(module.dilation),
        "group": module.groups,
        "pads": _pads(module),
    }


def _pads(module: Any) -> list[int]:
    """Pads at the beginning of every axis, then those at its end."""
    if module.padding == "valid":
        return [0] * 2 * len(module.kernel_size)
    if module.padding != "same":
        return [*module.padding, *module.padding]
    totals = [step * (size - 1) for step, size in zip(module.dilation, module.kernel_size, strict=True)]
    before = [total // 2 for total in totals]  # torch pads the odd one behind
    return [*before, *(total - first for total, first in zip(totals, before, strict=True))]


def float_layers_remarks(program: Program) -> list[str]:
    """Sentences about layers that compute in float, and why."""
    layers: dict[str, list[str]] = {}
    for layer in program.layers.values():
        reason = _reason_for_float(layer)
        if reason:
            layers.setdefault(reason, []).append(layer.name)
    for product in program.products.values():
        widths = [FLOAT_BITS if grid is None else grid.bits for grid in (product.left, product.right)]
        if max(widths) > WIDEST:
            layers.setdefault("are products in float, as an operand has more than 8 bits", []).append(product.name)
    return [f"Layers {', '.join(names)} {reason}." for reason, names in layers.items()]


def _reason_for_float(layer: LayerProgram) -> str:
    """Why a layer computes in float, as the end of a sentence; empty if it multiplies integers or looks rows up."""
    if isinstance(layer.module, EmbeddingTable) or multiplies_integers(layer):
        return ""
    if layer.integers is None and layer.read is None:
        return "stay in float, as the allocation has them at 32 bits"
    if layer.integers is None or layer.read is None:
        return "compute in float, as weights or activations have 32 bits"
    return "compute in float on rounded values, as they have more than 8 bits"
