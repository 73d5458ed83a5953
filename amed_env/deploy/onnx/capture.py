"""The graph of a network as torch's exporter writes it, with one node of our own for each layer."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim

from amed_env.deploy.program import Program
from amed_env.errors import InputError, NetworkError
from amed_env.quantization.layers import QuantizedLayer, StoredTensor
from amed_env.quantization.products import QuantizedProduct

DOMAIN = "amed"
"""Domain of the nodes that stand for layers until they are written."""
INPUT, OUTPUT = "input", "output"
_LOGGERS = ("torch.onnx", "torch.export", "torch._export", "torch.fx.experimental.symbolic_shapes", "onnxscript")


class _Placeholder(nn.Module):
    """Becomes one node of our domain that has the layer's name as an attribute.

    Args:
        name: The layer's name.
        layer: The layer, which knows the shape of the result.
    """

    def __init__(self, name: str, layer: QuantizedLayer | QuantizedProduct | StoredTensor) -> None:
        super().__init__()
        self.layer_name = name
        self._layer = [layer]  # in a list, as it is no submodule that would be exported

    def forward(self, *operands: torch.Tensor) -> torch.Tensor:
        (layer,) = self._layer
        if isinstance(layer, StoredTensor):
            result = operands[0]
        elif isinstance(layer, QuantizedProduct):
            result = layer.product(*operands)
        else:
            result = layer.compute(operands[0], layer.layer.weight, layer.layer.bias)
        symbol: torch.Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::Layer", operands, {"layer": self.layer_name}, dtype=torch.float32, shape=result.shape, version=1
        )
        return symbol


def graph_of(program: Program, opset: int, *, pooled_means: bool = False) -> Any:
    """An ONNX model of a network in which every layer is a node of our domain.

    Args:
        program: The network.
        opset: Version of the standard operators.
        pooled_means: Whether means over all places become poolings: hls4ml and FINN read no other mean.

    Returns:
        The `onnx.ModelProto`; its input takes any number of samples if the network does.

    Raises:
        InputError: If this torch has no exporter that knows operators of others.
        NetworkError: If torch's exporter fails at what is no layer.
    """
    if not hasattr(torch.onnx, "ops"):
        raise InputError(f"ONNX export needs torch 2.8 or newer; this is {torch.__version__}.")
    module = _with_placeholders(program)
    example = program.example.cpu()
    batches: Any = {}
    if program.fixed_batch is None:
        batches = {0: Dim.AUTO}
        example = example if len(example) > 1 else torch.cat([example, example])  # a size of 1 is taken for a constant
    try:
        with _quiet(), torch.no_grad():
            exported = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=(batches,),
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of many types
        cause = error.__cause__ or error
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise NetworkError(
            f"network {program.name!r} cannot be written as ONNX: torch's exporter fails at what is no layer "
            f"({type(cause).__name__}: {first}). Write that part with operations that ONNX has, or export to C."
        ) from error
    assert exported is not None
    model = exported.model_proto
    if pooled_means:
        _pool_means(model)
    model = _tidied(model)
    model.graph.name = program.name
    return model


def _with_placeholders(program: Program) -> fx.GraphModule:
    module = copy.deepcopy(program.module).cpu()
    for name, part in list(module.named_modules()):
        if isinstance(part, StoredTensor) and name not in program.stored:
            module.set_submodule(name, nn.Identity())
        elif isinstance(part, QuantizedLayer | QuantizedProduct | StoredTensor):
            module.set_submodule(name, _Placeholder(name, part))
    for node in module.graph.nodes:
        node.meta.clear()  # what an earlier capture noted there is not in the form that the exporter expects
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's lines about packages that it does not find and about torch's own deprecations."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _tidied(model: Any) -> Any:
    """Without notes of the exporter, which take more bytes than the weights of a small network."""
    graph = model.graph
    _drop_notes(graph)
    del graph.value_info[:]
    del model.metadata_props[:]
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    if batch:
        for value in (*graph.input, *graph.output):
            for size in value.type.tensor_type.shape.dim:
                if size.dim_param == batch:
                    size.dim_param = "batch"
    return model


def _pool_means(model: Any) -> None:
    """Means over all places of images as poolings, in place."""
    from onnx import helper, numpy_helper

    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    numbers = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        axes = numbers.get(node.input[1]) if node.op_type == "ReduceMean" and len(node.input) > 1 else None
        rank = ranks.get(node.input[0]) if axes is not None else None
        if axes is None or rank != 4 or {int(axis) % rank for axis in axes} != {2, 3}:
            nodes.append(node)
            continue
        keeps = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
        pooled = node.output[0] if keeps else f"{node.output[0]}.pooled"
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=f"{node.name}.pool"))
        if not keeps:
            nodes.append(helper.make_node("Flatten", [pooled], list(node.output), name=node.name, axis=1))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _drop_notes(graph: Any) -> None:
    for holder in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""
    for node in graph.node:
        node.name = ""
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _drop_notes(attribute.g)
