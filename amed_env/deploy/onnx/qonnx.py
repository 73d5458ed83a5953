"""QONNX: Quant nodes around float operators, as FINN and hls4ml read them.

A Quant node keeps the real values beside scale, zero point and width, so weights are stored as floats.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from amed_env.deploy.onnx.artefact import OnnxArtefact, require
from amed_env.deploy.onnx.builder import GraphBuilder
from amed_env.deploy.onnx.capture import graph_of
from amed_env.deploy.onnx.layers import (
    LayerWriter,
    add_bias,
    codes_name,
    float_layer,
    float_layers_remarks,
    float_weight,
)
from amed_env.deploy.onnx.runtime import fill_up
from amed_env.deploy.onnx.weights import channel_signs
from amed_env.deploy.onnx.write import names_in, replace_layers, save
from amed_env.deploy.program import Grid, LayerProgram, ProductProgram, Program
from amed_env.errors import InputError
from amed_env.tracing.lowering import EmbeddingTable

DOMAIN, VERSION = "qonnx.custom_op.general", 1
OPSET = 18
"""The oldest that torch's exporter writes; FINN and hls4ml read older operators than ONNX Runtime does."""


class QonnxWriter(LayerWriter):
    """Layers as float operators that read the results of Quant nodes."""

    def __init__(self, builder: GraphBuilder, program: Program) -> None:
        super().__init__(builder, program)
        self.weights: set[str] = set()

    def stored(self, grid: Grid, values: str, call: str) -> str:
        """A result that is kept at 8 bits."""
        return self._rounded(values, grid, codes_name(call))

    def product(self, product: ProductProgram, left: str, right: str, call: str) -> str:
        """A product of two activations."""
        operands = []
        for position, (values, grid) in enumerate(((left, product.left), (right, product.right))):
            operands.append(values if grid is None else self._rounded(values, grid, codes_name(call, position)))
        return self.builder.node("MatMul", *operands, name=call)

    def layer(self, layer: LayerProgram, values: str, call: str) -> str:
        """A layer with weights."""
        build = self.builder
        bias = None
        if layer.bias is not None:
            axes = layer.module.weight.ndim - 2
            shaped = layer.bias.reshape(1, -1, *[1] * axes) if axes else layer.bias
            bias = build.constant(shaped, np.float32, f"{layer.name}.bias")
        if isinstance(layer.module, EmbeddingTable):
            return build.node("Gather", self._weight(layer, turned=False), values, name=call)
        read = values if layer.read is None else self._rounded(values, layer.read, codes_name(call))
        if isinstance(layer.module, nn.Linear):
            product = build.node("MatMul", read, self._weight(layer, turned=True), name=call)
            return add_bias(build, product, bias)
        sums = float_layer(build, layer, read, self._weight(layer, turned=False), None, call)
        # FINN and hls4ml move scales through a convolution only if it has no bias.
        return add_bias(build, sums, bias)

    def _weight(self, layer: LayerProgram, turned: bool) -> str:
        """The name of rounded weights; a matrix is turned where it is stored, as tools look for it beside the Quant."""
        if layer.integers is None:
            weight = float_weight(layer.module)
            return self._kept(weight.T if turned else weight, layer.name)
        assert layer.scales is not None
        along = (-1, *[1] * (layer.integers.ndim - 1))
        weight = layer.integers.astype(np.float32) * layer.scales.reshape(along)
        scales = (layer.scales * channel_signs(layer)).reshape(along)
        if turned:
            weight, scales = weight.T, scales.T
        name = self._kept(weight, layer.name)
        return self._quant(name, scales, layer.precision.weight_bits, signed=True, name=f"{layer.name}.quant")

    def _kept(self, weight: npt.NDArray[np.float32], layer: str) -> str:
        name = self.builder.constant(weight, np.float32, f"{layer}.weight")
        self.weights.add(name)
        return name

    def _rounded(self, values: str, grid: Grid, name: str) -> str:
        return self._quant(values, grid.scale, grid.bits, signed=grid.low < 0, name=name)

    def _quant(self, values: str, scale: npt.ArrayLike, bits: int, *, signed: bool, name: str) -> str:
        build = self.builder
        scales = build.constant(scale, np.float32, f"{name}.scale")
        return build.node(
            "Quant",
            *(values, scales, build.number(0), build.number(bits)),
            name=name,
            domain=DOMAIN,
            signed=int(signed),
            narrow=0,
            rounding_mode="ROUND",
        )


def write_qonnx(program: Program, path: Path) -> OnnxArtefact:
    """Write a network as QONNX.

    Args:
        program: The network under its allocation.
        path: The file to write.

    Raises:
        InputError: If a package is missing.
        NetworkError: If the network has something between its layers that torch's exporter cannot write.
    """
    require("onnx", "onnxscript")
    from onnx import helper

    model = graph_of(program, OPSET, pooled_means=True)
    builder = GraphBuilder(names_in(model.graph))
    writer = QonnxWriter(builder, program)
    replace_layers(model, builder, writer)
    model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    remarks = [
        "QONNX stores weights as floats beside their widths: the file does not shrink with the bits.",
        *float_layers_remarks(program),
    ]
    return save(model, path, writer.weights, {}, remarks)


def run_qonnx(path: Path, inputs: npt.NDArray[Any], batch_size: int = 125) -> npt.NDArray[np.float32]:
    """What a file answers to samples, executed by the package `qonnx`.

    Args:
        path: The file.
        inputs: Numbers (N, …), as the network reads them.
        batch_size: Samples of one pass, unless the file takes one size only.

    Raises:
        InputError: If `qonnx` is missing.
    """
    if importlib.util.find_spec("qonnx") is None:
        raise InputError("QONNX files are executed by the package qonnx; install it in an environment of its own.")
    from onnx import helper
    from qonnx.core.modelwrapper import ModelWrapper  # type: ignore[import-not-found]
    from qonnx.core.onnx_exec import execute_onnx  # type: ignore[import-not-found]
    from qonnx.transformation.infer_shapes import InferShapes  # type: ignore[import-not-found]

    model = ModelWrapper(str(path))
    (read,) = model.graph.input
    (written,) = model.graph.output
    size = read.type.tensor_type.shape.dim[0].dim_value or min(batch_size, len(inputs))
    for value in (read, written):  # it executes graphs of known shapes only
        value.type.tensor_type.shape.dim[0].dim_value = size
    dtype = helper.tensor_dtype_to_np_dtype(read.type.tensor_type.elem_type)
    model = model.transform(InferShapes())
    parts = []
    for start in range(0, len(inputs), size):
        batch = inputs[start : start + size]
        outputs = execute_onnx(model, {read.name: fill_up(batch, size).astype(dtype)})
        parts.append(outputs[written.name][: len(batch)])
    return np.concatenate(parts)
