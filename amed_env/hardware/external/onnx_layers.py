"""One layer as an ONNX model at a precision, for runtimes that are measured; needs the extra `measure`.

A layer knows its output pixels and its kernel, not its image, so the pixels are laid out as nearly square as they
divide, and the input is as large as the kernel needs without padding: the same products as in the network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amed_env.problem.allocation import FLOAT_BITS, Precision
from amed_env.problem.workload import BASIC_KINDS, Layer

OPSET, IR_VERSION = 21, 10  # the newest that the oldest supported runtime, 1.20, reads
BLOCK_SIZE = 32
"""Weights of `MatMulNBits` that share a scale, the size that its kernels are tuned for."""
FLOAT = Precision(FLOAT_BITS, FLOAT_BITS)
PAIRS: dict[str, tuple[Precision, ...]] = {
    "conv": (Precision(8, 8), FLOAT),
    "depthwise": (Precision(8, 8), FLOAT),
    "linear": (*(Precision(weight, activation) for weight in (2, 4, 8) for activation in (8, FLOAT_BITS)), FLOAT),
    "matmul": (Precision(8, 8), FLOAT),
}
"""What ONNX Runtime's CPU kernels have, by kind of layer: QLinearConv, QLinearMatMul and MatMulNBits."""


@dataclass(frozen=True)
class LayerModel:
    """A model of one layer and its input.

    Attributes:
        model: The serialised ONNX model.
        inputs: Input name to array.
    """

    model: bytes
    inputs: dict[str, npt.NDArray[Any]]


def layer_model(layer: Layer, precision: Precision) -> LayerModel:
    """The model of a layer; weights and inputs are random, as they do not change the time.

    Args:
        layer: The layer; must be of a kind and at a precision in `PAIRS`.
        precision: The precision.
    """
    rng = np.random.default_rng(0)
    kind = BASIC_KINDS[layer.kind]
    if kind in ("conv", "depthwise"):
        return _convolution(layer, precision, rng)
    if kind == "linear" and precision not in (FLOAT, Precision(8, 8)):
        return _blocked(layer, precision, rng)
    return _product(layer, precision, rng)


def image_size(layer: Layer) -> tuple[int, int]:
    """Height and width of the output: the divisors of its pixels that are nearest to each other."""
    height = next(h for h in range(math.isqrt(layer.m), 0, -1) if layer.m % h == 0)
    return height, layer.m // height


def _convolution(layer: Layer, precision: Precision, rng: np.random.Generator) -> LayerModel:
    kernel = layer.kernel if layer.k % math.prod(layer.kernel) == 0 else (1, 1)
    channels = layer.k // math.prod(kernel)
    filters = layer.n * layer.groups
    size = tuple((out - 1) * s + k for out, s, k in zip(image_size(layer), layer.stride, kernel, strict=True))
    shape, weight_shape = (1, channels * layer.groups, *size), (filters, channels, *kernel)
    options: dict[str, Any] = {"kernel_shape": list(kernel), "strides": list(layer.stride), "group": layer.groups}
    output = (1, filters, *image_size(layer))
    if precision == FLOAT:
        weights = rng.standard_normal(weight_shape, dtype=np.float32)
        return _model("Conv", {"x": _float(rng, shape)}, {"w": weights}, ["x", "w"], output, np.float32, **options)
    constants = {**_scales("x", np.uint8), "w": _int8(rng, weight_shape), **_channel_scales(filters)}
    constants |= _scales("y", np.uint8)
    names = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero"]
    return _model("QLinearConv", {"x": _uint8(rng, shape)}, constants, names, output, np.uint8, **options)


def _product(layer: Layer, precision: Precision, rng: np.random.Generator) -> LayerModel:
    """A matrix product; the second operand of a `matmul` layer is an activation too, and so no constant."""
    batch = (layer.groups,) if layer.groups > 1 else ()
    shape, other = (*batch, layer.m, layer.k), (*batch, layer.k, layer.n)
    output = (*batch, layer.m, layer.n)
    is_float = precision == FLOAT
    second = rng.standard_normal(other, dtype=np.float32) if is_float else _int8(rng, other)
    inputs: dict[str, npt.NDArray[Any]] = {"x": _float(rng, shape) if is_float else _uint8(rng, shape)}
    constants: dict[str, npt.NDArray[Any]] = {}
    if layer.kind == "matmul":
        inputs["w"] = second
    else:
        constants["w"] = second
    if is_float:
        return _model("MatMul", inputs, constants, ["x", "w"], output, np.float32)
    constants |= {**_scales("x", np.uint8), **_scales("w", np.int8), **_scales("y", np.uint8)}
    names = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero"]
    return _model("QLinearMatMul", inputs, constants, names, output, np.uint8)


def _blocked(layer: Layer, precision: Precision, rng: np.random.Generator) -> LayerModel:
    """Weights of 2, 4 or 8 bits in blocks; activations in float, or rounded to 8 bits inside the kernel."""
    bits, blocks = precision.weight_bits, -(-layer.k // BLOCK_SIZE)
    weights = rng.integers(0, 256, (layer.n, blocks, BLOCK_SIZE * bits // 8), dtype=np.uint8)
    constants: dict[str, npt.NDArray[Any]] = {
        "w": weights,
        "scales": np.full((layer.n, blocks), 0.01, dtype=np.float32),
    }
    options: dict[str, Any] = {"K": layer.k, "N": layer.n, "bits": bits, "block_size": BLOCK_SIZE}
    # Levels of MatMulNBits: 1 computes in float32, 4 rounds activations to int8.
    options["accuracy_level"] = 1 if precision.activation_bits == FLOAT_BITS else 4
    shape, output = (layer.m * layer.groups, layer.k), (layer.m * layer.groups, layer.n)
    names = ["x", "w", "scales"]
    inputs = {"x": _float(rng, shape)}
    return _model("MatMulNBits", inputs, constants, names, output, np.float32, domain="com.microsoft", **options)


def _model(
    operator: str,
    inputs: dict[str, npt.NDArray[Any]],
    constants: dict[str, npt.NDArray[Any]],
    names: list[str],
    output_shape: tuple[int, ...],
    output_type: type[np.generic],
    domain: str = "",
    **options: Any,
) -> LayerModel:
    from onnx import helper, numpy_helper  # an optional dependency, as in `measured`

    node = helper.make_node(operator, names, ["y"], domain=domain, **options)
    graph = helper.make_graph(
        [node],
        "layer",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(output_type)), output_shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    return LayerModel(model.SerializeToString(), inputs)


def _scales(name: str, kind: type[np.generic]) -> dict[str, npt.NDArray[Any]]:
    return {f"{name}_scale": np.array(0.02, dtype=np.float32), f"{name}_zero": np.array(0, dtype=kind)}


def _channel_scales(filters: int) -> dict[str, npt.NDArray[Any]]:
    return {"w_scale": np.full(filters, 0.02, dtype=np.float32), "w_zero": np.zeros(filters, dtype=np.int8)}


def _float(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return rng.standard_normal(shape, dtype=np.float32)


def _uint8(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def _int8(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return rng.integers(-127, 128, shape, dtype=np.int8)
