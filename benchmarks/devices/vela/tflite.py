"""A graph as a file of TensorFlow Lite; with the schema that Arm's compiler `ethos-u-vela` brings along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import flatbuffers
import numpy as np
from graph import Graph, Operator, Tensor

_TYPES = {np.dtype(np.int8): "INT8", np.dtype(np.int32): "INT32"}
_VERSION = 3  # of the schema
_OPERATOR_VERSION = 3  # int8 operands
_OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "ADD": "AddOptions",
    "MUL": "MulOptions",
    "CONCATENATION": "ConcatenationOptions",
    "SOFTMAX": "SoftmaxOptions",
    "RESHAPE": "ReshapeOptions",
    "PAD": "PadOptions",
}


def _schema(name: str) -> ModuleType:
    return import_module(f"ethosu.vela.tflite.{name}")


def tflite_of(graph: Graph) -> bytes:
    """The file."""
    builder = flatbuffers.Builder(1 << 20)
    # Buffer 0 is empty by convention; tensors without data refer to it.
    buffers = [_table(builder, "Buffer", {})]
    tensors = []
    for tensor in graph.tensors:
        number = 0
        if tensor.data is not None:
            number = len(buffers)
            content = builder.CreateNumpyVector(np.frombuffer(tensor.data.tobytes(), np.uint8))
            buffers.append(_table(builder, "Buffer", {"Data": content}))
        tensors.append(_tensor(builder, tensor, number))
    codes = sorted({operator.code for operator in graph.operators})
    operators = [_operator(builder, operator, codes.index(operator.code)) for operator in graph.operators]
    subgraph = _table(
        builder,
        "SubGraph",
        {
            "Tensors": _offsets(builder, tensors),
            "Inputs": _integers(builder, graph.inputs),
            "Outputs": _integers(builder, graph.outputs),
            "Operators": _offsets(builder, operators),
            "Name": builder.CreateString("main"),
        },
    )
    model = _table(
        builder,
        "Model",
        {
            "Version": _VERSION,
            "OperatorCodes": _offsets(builder, [_code(builder, code) for code in codes]),
            "Subgraphs": _offsets(builder, [subgraph]),
            "Buffers": _offsets(builder, buffers),
            "Description": builder.CreateString("amed"),
        },
    )
    builder.Finish(model, b"TFL3")
    return bytes(builder.Output())


def _table(builder: Any, name: str, fields: dict[str, Any]) -> int:
    """A table of the schema; nested tables and vectors must have been made before."""
    schema = _schema(name)
    getattr(schema, f"{name}Start")(builder)
    for field, value in fields.items():
        # Some generated functions have the table's name in front of theirs, some have not.
        add: Callable[[Any, Any], None] | None = getattr(schema, f"{name}Add{field}", None)
        (add or getattr(schema, f"Add{field}"))(builder, value)
    return int(getattr(schema, f"{name}End")(builder))


def _offsets(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _integers(builder: Any, numbers: Sequence[int]) -> int:
    return int(builder.CreateNumpyVector(np.asarray(numbers, np.int32)))


def _tensor(builder: Any, tensor: Tensor, buffer: int) -> int:
    kind = _TYPES[np.dtype(np.int8) if tensor.data is None else tensor.data.dtype]
    fields = {
        "Shape": _integers(builder, tensor.shape),
        "Type": getattr(_schema("TensorType").TensorType, kind),
        "Buffer": buffer,
        "Name": builder.CreateString(tensor.name),
    }
    if tensor.scales:
        quantization = {
            "Scale": builder.CreateNumpyVector(np.asarray(tensor.scales, np.float32)),
            # Results between 0 and 1 use the whole range of int8.
            "ZeroPoint": builder.CreateNumpyVector(
                np.full(len(tensor.scales), -128 if tensor.scales == (1 / 256,) else 0, np.int64)
            ),
            "QuantizedDimension": tensor.axis if len(tensor.scales) > 1 else 0,
        }
        fields["Quantization"] = _table(builder, "QuantizationParameters", quantization)
    return _table(builder, "Tensor", fields)


def _code(builder: Any, name: str) -> int:
    code = getattr(_schema("BuiltinOperator").BuiltinOperator, name)
    fields = {"DeprecatedBuiltinCode": min(code, 127), "Version": _OPERATOR_VERSION, "BuiltinCode": code}
    return _table(builder, "OperatorCode", fields)


def _operator(builder: Any, operator: Operator, code: int) -> int:
    fields = {
        "OpcodeIndex": code,
        "Inputs": _integers(builder, operator.inputs),
        "Outputs": _integers(builder, operator.outputs),
    }
    options = _OPTIONS.get(operator.code)
    if options is not None:
        fields["BuiltinOptionsType"] = getattr(_schema("BuiltinOptions").BuiltinOptions, options)
        fields["BuiltinOptions"] = _table(builder, options, _fields(builder, operator))
    return _table(builder, "Operator", fields)


def _fields(builder: Any, operator: Operator) -> dict[str, Any]:
    options, fields = operator.options, {}
    if "stride" in options:
        fields = {"Padding": options["padding"], "StrideH": options["stride"][0], "StrideW": options["stride"][1]}
    if "dilation" in options:
        fields |= {"DilationHFactor": options["dilation"][0], "DilationWFactor": options["dilation"][1]}
    if "kernel" in options:
        fields |= {"FilterHeight": options["kernel"][0], "FilterWidth": options["kernel"][1]}
    if "multiplier" in options:
        fields["DepthMultiplier"] = options["multiplier"]
    if "axis" in options:
        fields["Axis"] = options["axis"]
    if "new_shape" in options:
        fields["NewShape"] = _integers(builder, options["new_shape"])
    if operator.code == "SOFTMAX":
        fields["Beta"] = 1.0
    return fields
