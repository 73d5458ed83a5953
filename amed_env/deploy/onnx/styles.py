"""The two styles of ONNX: the evaluator's integer arithmetic, or float operators behind QuantizeLinear.

- `integer`: ConvInteger and MatMulInteger; every rounding is written out in the evaluator's order, so scores are the
  fake-quantized evaluator's to the last bit where no operation outside of layers differs.
- `qdq`: what compilers for devices read and fuse. QuantizeLinear divides where the evaluator multiplies by the inverse,
  so values near the middle between two codes may go to the other.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import nn

from amed_env.deploy.onnx.layers import (
    StandardWriter,
    add_bias,
    codes_name,
    convolution_attributes,
    float_layer,
    turned,
)
from amed_env.deploy.onnx.weights import StoredWeights
from amed_env.deploy.program import Grid, LayerProgram
from amed_env.quantization.codes import WIDEST
from amed_env.tracing.lowering import TransposedConvolution

Style = Literal["qdq", "integer"]


class IntegerWriter(StandardWriter):
    """Layers that multiply integers, with every rounding as the evaluator has it."""

    def rounded(self, values: str, grid: Grid, name: str) -> str:
        """Float values of a grid."""
        return self.rounded_in_float(values, grid, name)

    def weight_values(self, weights: StoredWeights, axes: int) -> str:
        """Float weights of stored integers."""
        along = (-1, *[1] * (axes - 1))
        scales = self.builder.constant(weights.scales.reshape(along), np.float32, "scales")
        return self.builder.node("Mul", self.integers_as_floats(weights.integers, weights.zero_point), scales)

    def on_integers(self, layer: LayerProgram, grid: Grid, weights: StoredWeights, values: str, call: str) -> str:
        """A layer that multiplies integers of at most 8 bits."""
        build = self.builder
        codes = self._codes(values, grid, codes_name(call))
        sums = self._sums(layer, grid, codes, weights, call)
        along = (-1,) if isinstance(layer.module, nn.Linear) else (1, -1, *[1] * (layer.module.weight.dim() - 2))
        bias: str | None = None
        if layer.bias is not None and self.bias == "int32":
            integers = layer.integer_bias(weights.scales).reshape(along)
            sums = build.node("Add", sums, build.constant(integers, np.int32, f"{layer.name}.bias"))
        elif layer.bias is not None:
            bias = build.constant(layer.bias.reshape(along), np.float32, f"{layer.name}.bias")
        results = build.cast(sums, "FLOAT")
        scales, step = weights.scales.reshape(along), np.float32(grid.scale)
        if self.program.scales_first:
            results = build.node("Mul", results, build.constant(scales * step, np.float32, f"{layer.name}.scales"))
        else:
            results = build.node("Mul", results, build.number(step))
            results = build.node("Mul", results, build.constant(scales, np.float32, f"{layer.name}.scales"))
        return add_bias(build, results, bias)

    def product_on_integers(self, grids: tuple[Grid, Grid], operands: tuple[str, str], call: str) -> str:
        """A product of integers of at most 8 bits."""
        build = self.builder
        codes = [
            self._codes(values, grid, codes_name(call, position))
            for position, (values, grid) in enumerate(zip(operands, grids, strict=True))
        ]
        zeros = [build.number(grid.format.zero_point, np.uint8) for grid in grids]
        results = build.cast(build.node("MatMulInteger", *codes, *zeros, name=call), "FLOAT")
        for grid in grids:
            results = build.node("Mul", results, build.number(grid.scale))
        return results

    def _codes(self, values: str, grid: Grid, name: str) -> str:
        """Codes of float values, in the order of `quantization.codes.quantize`."""
        build, codes = self.builder, grid.format
        steps = build.node("Mul", values, build.number(np.float32(1.0 / codes.scale)))
        if codes.zero_point:
            steps = build.node("Add", steps, build.number(codes.zero_point))
        limited = build.node("Clip", build.node("Round", steps), build.number(codes.low), build.number(codes.high))
        return build.cast(limited, "UINT8", name)

    def _sums(self, layer: LayerProgram, grid: Grid, codes: str, weights: StoredWeights, call: str) -> str:
        """Sums of products of integers: int32."""
        build = self.builder
        if isinstance(layer.module, TransposedConvolution):
            # ONNX has it for floats only. float32 holds sums below 2^24 exactly, and the evaluator adds in it too.
            values = self.integers_as_floats(codes, grid.format.zero_point)
            integers = self.integers_as_floats(weights.integers, weights.zero_point)
            sums = float_layer(build, layer, values, integers, None, call)
            return build.cast(sums, "INT32")
        zeros = [build.number(grid.format.zero_point, np.uint8)]
        if weights.zero_point:
            zeros.append(build.number(weights.zero_point, np.uint8))
        if isinstance(layer.module, nn.Linear):
            return build.node("MatMulInteger", codes, turned(build, weights.integers), *zeros, name=call)
        attributes = convolution_attributes(layer.module)
        return build.node("ConvInteger", codes, weights.integers, *zeros, name=call, **attributes)


class QdqWriter(StandardWriter):
    """Layers in float on values that pass QuantizeLinear and DequantizeLinear."""

    def rounded(self, values: str, grid: Grid, name: str) -> str:
        """Float values of a grid."""
        if grid.bits > WIDEST:
            return self.rounded_in_float(values, grid, name)
        build, codes = self.builder, grid.format
        scale, zero = build.number(codes.scale), build.number(codes.zero_point, np.uint8)
        narrower = (codes.low, codes.high) != (0, 2**WIDEST - 1)
        integers = build.node("QuantizeLinear", values, scale, zero, name="" if narrower else name)
        if narrower:
            limits = build.number(codes.low, np.uint8), build.number(codes.high, np.uint8)
            integers = build.node("Clip", integers, *limits, name=name)
        return build.node("DequantizeLinear", integers, scale, zero)

    def weight_values(self, weights: StoredWeights, axes: int) -> str:
        """Float weights of stored integers."""
        return self._dequantized(weights, axis=0)

    def _dequantized(self, weights: StoredWeights, axis: int) -> str:
        """Float weights; scales are along an axis."""
        build = self.builder
        inputs = [weights.integers, build.constant(weights.scales, np.float32, "scales")]
        if weights.zero_point:
            zeros = np.full(weights.scales.shape, weights.zero_point)
            inputs.append(build.constant(zeros, np.uint8, "zeros"))
        return build.node("DequantizeLinear", *inputs, axis=axis)

    def on_integers(self, layer: LayerProgram, grid: Grid, weights: StoredWeights, values: str, call: str) -> str:
        """A layer that multiplies integers of at most 8 bits."""
        build = self.builder
        read = self.rounded(values, grid, codes_name(call))
        bias = self._bias(layer, grid, weights)
        if isinstance(layer.module, nn.Linear):
            # Turned as integers, since runtimes fuse a product that DequantizeLinear feeds directly.
            integers = StoredWeights(turned(build, weights.integers), weights.zero_point, weights.scales)
            return add_bias(build, build.node("MatMul", read, self._dequantized(integers, axis=1), name=call), bias)
        return float_layer(build, layer, read, self._dequantized(weights, axis=0), bias, call)

    def product_on_integers(self, grids: tuple[Grid, Grid], operands: tuple[str, str], call: str) -> str:
        """A product of integers of at most 8 bits."""
        read = [
            self.rounded(values, grid, codes_name(call, position))
            for position, (values, grid) in enumerate(zip(operands, grids, strict=True))
        ]
        return self.builder.node("MatMul", *read, name=call)

    def _bias(self, layer: LayerProgram, grid: Grid, weights: StoredWeights) -> str | None:
        if layer.bias is None or self.bias == "float":
            return self.float_bias(layer)
        build = self.builder
        integers = build.constant(layer.integer_bias(weights.scales), np.int32, f"{layer.name}.bias")
        steps = build.constant(np.float32(grid.scale) * weights.scales, np.float32, "steps")
        return build.node("DequantizeLinear", integers, steps, axis=0)
