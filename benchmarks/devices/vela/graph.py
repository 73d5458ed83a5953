"""The graph of a request in format `amed-request/2` as tensors and operators of TensorFlow Lite, channels last.

Values of weights are not in a request. A layer with weights of w bits gets int8 numbers of at most 2^w - 1 different
values, in the distribution of trained weights, so that a compiler which compresses weights sees what it would see.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

INPUT = "input"
SAME, VALID = 0, 1
_ELEMENTWISE = {"relu": "RELU", "relu6": "RELU6", "sigmoid": "LOGISTIC", "tanh": "TANH", "hardswish": "HARD_SWISH"}
_POOLS = {"max_pool2d": "MAX_POOL_2D", "avg_pool2d": "AVERAGE_POOL_2D", "adaptive_avg_pool2d": "AVERAGE_POOL_2D"}


class NotWritableError(Exception):
    """Something of the network has no place in such a file."""


@dataclass
class Tensor:
    """A tensor: activations without data, or constants.

    Attributes:
        name: Its name.
        shape: With the batch of one first, and channels last.
        data: Constants, int8 or int32.
        scales: Scales along `axis`, one for all values if there is one.
        axis: The axis of the scales.
    """

    name: str
    shape: tuple[int, ...]
    data: np.ndarray | None = None
    scales: tuple[float, ...] = (0.05,)
    axis: int = 0


@dataclass
class Operator:
    """An operator by its name in TensorFlow Lite, with indices of tensors, and its options."""

    code: str
    inputs: list[int]
    outputs: list[int]
    options: dict[str, Any] = field(default_factory=dict)


class Graph:
    """Tensors and operators of a request.

    Args:
        request: The parsed request.

    Raises:
        NotWritableError: If it has an operation that is not known here.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self._layers = {layer["name"]: layer for layer in request["layers"]}
        self._results: dict[str, int] = {}
        operations = request["operations"]
        if not operations:
            raise NotWritableError("the request has no operations; they are known of networks, not of lists of layers")
        for operation in operations:
            for name, shape in zip(operation["inputs"], operation["input_shapes"], strict=True):
                if name == INPUT and INPUT not in self._results:
                    self._results[INPUT] = self._add(Tensor(INPUT, channels_last(shape)))
            self._results[operation["name"]] = self._write(operation)
        read = {index for operator in self.operators for index in operator.inputs}
        self.inputs = [self._results[INPUT]]
        self.outputs = sorted(set(self._results.values()) - read)

    def _add(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _result(self, code: str, inputs: list[int], name: str, shape: tuple[int, ...], **options: Any) -> int:
        """Add an operator and its result."""
        # What these return is between 0 and 1; the compiler has them as tables for this scale.
        scale = 1 / 256 if code in ("SOFTMAX", "LOGISTIC") else 0.05
        output = self._add(Tensor(name, shape, scales=(scale,)))
        self.operators.append(Operator(code, inputs, [output], options))
        return output

    def _write(self, operation: dict[str, Any]) -> int:
        kind, name = operation["kind"], operation["name"]
        shape = channels_last(operation["output_shape"])
        pairs = zip(operation["inputs"], operation["input_shapes"], strict=True)
        sources = [self._as_shape(self._results[source], channels_last(given), name) for source, given in pairs]
        if kind in ("conv", "depthwise"):
            return self._convolution(operation, sources[0], shape)
        if kind == "linear":
            return self._linear(operation, sources[0], shape)
        if kind in _POOLS:
            return self._pool(operation, sources[0], shape)
        if kind == "mean" and len(self.tensors[sources[0]].shape) == 4:
            pooled = self._pool({**operation, "kind": "adaptive_avg_pool2d"}, sources[0], (1, 1, 1, shape[-1]))
            return self._as_shape(pooled, shape, name)
        if kind in _ELEMENTWISE:
            return self._result(_ELEMENTWISE[kind], sources, name, shape)
        if kind in ("add", "mul") and len(sources) == 2:
            return self._result(kind.upper(), sources, name, shape)
        if kind in ("softmax", "_softmax"):
            return self._result("SOFTMAX", sources, name, shape)
        if kind == "cat":
            return self._result("CONCATENATION", sources, name, shape, axis=len(shape) - 1)
        raise NotWritableError(f"operation {name!r} of kind {kind!r} is not known to this writer")

    def _weights(self, layer: dict[str, Any], shape: tuple[int, ...], axis: int) -> list[int]:
        """Constants of a layer: weights and biases."""
        largest = max(1, 2 ** (layer["w_bits"] - 1) - 1)
        rng = np.random.default_rng(zlib.crc32(repr((layer["name"], shape)).encode()))
        values = rng.normal(size=shape)
        integers = np.clip(np.round(values / np.abs(values).max() * largest), -largest, largest).astype(np.int8)
        channels = shape[axis]
        return [
            self._add(Tensor(f"{layer['name']}/weights", shape, integers, (0.01,) * channels, axis)),
            self._add(
                Tensor(f"{layer['name']}/biases", (channels,), np.zeros(channels, np.int32), (0.0005,) * channels)
            ),
        ]

    def _convolution(self, operation: dict[str, Any], source: int, shape: tuple[int, ...]) -> int:
        layer = self._layers[operation["layer"]]
        channels_in, channels_out = self.tensors[source].shape[-1], shape[-1]
        options = {"stride": operation["stride"], "dilation": operation["dilation"]}
        source, options["padding"] = self._padded(operation, source, shape)
        if operation["kind"] == "depthwise":
            constants = self._weights(layer, (1, *operation["kernel"], channels_out), 3)
            options["multiplier"] = channels_out // channels_in
            code = "DEPTHWISE_CONV_2D"
        else:
            per_group = channels_in // layer["groups"]
            constants, code = self._weights(layer, (channels_out, *operation["kernel"], per_group), 0), "CONV_2D"
        return self._result(code, [source, *constants], operation["name"], shape, **options)

    def _linear(self, operation: dict[str, Any], source: int, shape: tuple[int, ...]) -> int:
        layer = self._layers[operation["layer"]]
        constants = self._weights(layer, (layer["n"], layer["k"]), 0)
        for index in constants:  # one scale for all outputs
            self.tensors[index].scales = self.tensors[index].scales[:1]
        return self._result("FULLY_CONNECTED", [source, *constants], operation["name"], shape)

    def _pool(self, operation: dict[str, Any], source: int, shape: tuple[int, ...]) -> int:
        given = self.tensors[source].shape
        if operation["kind"] == "adaptive_avg_pool2d":
            steps = [size // result for size, result in zip(given[1:3], shape[1:3], strict=True)]
            if any(size % result for size, result in zip(given[1:3], shape[1:3], strict=True)):
                raise NotWritableError(f"pooling {operation['name']!r} has windows of two sizes")
            operation = {**operation, "kernel": steps, "stride": steps, "padding": [0, 0], "dilation": [1, 1]}
        source, padding = self._padded(operation, source, shape)
        options = {"kernel": operation["kernel"], "stride": operation["stride"], "padding": padding}
        return self._result(_POOLS[operation["kind"]], [source], operation["name"], shape, **options)

    def _padded(self, operation: dict[str, Any], source: int, shape: tuple[int, ...]) -> tuple[int, int]:
        """What a window runs over, and which padding it then has: there are `SAME` and `VALID` and no others."""
        given = self.tensors[source].shape
        sizes = list(zip(given[1:3], shape[1:3], operation["stride"], operation["padding"], strict=True))
        if all(padding == 0 for _, _, _, padding in sizes):
            return source, VALID
        if all(result == math.ceil(size / stride) for size, result, stride, _ in sizes):
            return source, SAME
        amounts = np.array([[0, 0], *([padding] * 2 for _, _, _, padding in sizes), [0, 0]], np.int32)
        constant = self._add(Tensor(f"{operation['name']}/padding", (4, 2), amounts, ()))
        wide = (1, *(size + 2 * padding for size, _, _, padding in sizes), given[3])
        return self._result("PAD", [source, constant], f"{operation['name']}/padded", wide), VALID

    def _as_shape(self, source: int, shape: tuple[int, ...], reader: str) -> int:
        """A result in the shape in which it is read: what lies between only moves values and is not in the request."""
        given = self.tensors[source].shape
        if given == shape:
            return source
        if math.prod(given) == math.prod(shape):
            return self._result("RESHAPE", [source], f"{reader}/reshaped", shape, new_shape=list(shape))
        if len(given) == len(shape) == 4:
            steps = [size // result for size, result in zip(given[1:3], shape[1:3], strict=True)]
            if min(steps) >= 1 and given[3] <= shape[3]:
                return self._subsampled(source, shape, steps, reader)
        raise NotWritableError(f"operation {reader!r} reads {given} as {shape}; what lies between is not known")

    def _subsampled(self, source: int, shape: tuple[int, ...], steps: list[int], reader: str) -> int:
        """Every second pixel and more channels, the shortcut without weights of ResNets for CIFAR."""
        channels = self.tensors[source].shape[3]
        if max(steps) > 1:
            narrow = (*shape[:3], channels)
            options = {"kernel": [1, 1], "stride": steps, "padding": VALID}
            source = self._result("MAX_POOL_2D", [source], f"{reader}/subsampled", narrow, **options)
        if channels == shape[3]:
            return source
        rest = (*shape[:3], shape[3] - channels)
        zeros = self._add(Tensor(f"{reader}/zeros", rest, np.zeros(rest, np.int8)))
        return self._result("CONCATENATION", [source, zeros], f"{reader}/widened", shape, axis=3)


def channels_last(shape: list[int]) -> tuple[int, ...]:
    """A shape of torch without the axis of samples as one of TensorFlow Lite with one sample."""
    if len(shape) == 3:
        return 1, shape[1], shape[2], shape[0]
    if len(shape) <= 2:
        return (1, *shape) if len(shape) == 1 else tuple(shape)
    raise NotWritableError(f"a tensor of shape {shape} has more than two dimensions of space")
