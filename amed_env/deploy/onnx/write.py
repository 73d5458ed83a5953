"""Writing a network as a file of standard ONNX operators."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from amed_env.deploy.onnx.artefact import OnnxArtefact, require
from amed_env.deploy.onnx.builder import GraphBuilder
from amed_env.deploy.onnx.capture import DOMAIN, graph_of
from amed_env.deploy.onnx.layers import (
    BIASES,
    Bias,
    LayerWriter,
    float_layers_remarks,
    multiplies_integers,
    result_name,
)
from amed_env.deploy.onnx.styles import IntegerWriter, QdqWriter, Style
from amed_env.deploy.onnx.weights import INT2_OPSET, STORAGES, Storage, WeightStore
from amed_env.deploy.program import Program
from amed_env.errors import InputError, did_you_mean
from amed_env.tracing.lowering import EmbeddingTable, TransposedConvolution

OPSET = 21
"""The first opset that has integers of 4 bits, and the newest that ONNX Runtime 1.20 reads."""
# QuantizeLinear and its inverse stay float operators that the runtime does not fuse: fused kernels take biases as
# integers of 32 bits, which are too coarse at 4 bits and less, and saturate on x86 without VNNI.
QDQ_OPTIONS = {"session.disable_quant_qdq": "1"}
_STYLES = {"integer": IntegerWriter, "qdq": QdqWriter}


def write_onnx(
    program: Program,
    path: Path,
    style: Style = "integer",
    storage: Storage = "packed",
    bias: Bias = "float",
    opset: int | None = None,
) -> OnnxArtefact:
    """Write a network as ONNX.

    Args:
        program: The network under its allocation.
        path: The file to write.
        style: `integer` for the evaluator's integer arithmetic, `qdq` for QuantizeLinear and DequantizeLinear around
            float operators.
        storage: How weights are stored: `packed` at any width, `types` by the types of ONNX where it has one, `int8`
            by a byte a weight.
        bias: `float`, or `int32` for integers on the grid of the sums.
        opset: Version of the standard operators, at least 21; weights of 2 bits have a type from 25 on.

    Raises:
        InputError: If a package is missing, or an option is unknown.
        NetworkError: If the network has something between its layers that torch's exporter cannot write.
    """
    require("onnx", "onnxscript")
    from onnx.defs import onnx_opset_version

    for kind, given, known in (("style", style, _STYLES), ("storage", storage, STORAGES), ("bias", bias, BIASES)):
        if given not in known:
            raise InputError(f"{kind} of an ONNX file is {given!r}; {did_you_mean(str(given), known)}")
    opset = OPSET if opset is None else opset
    newest = onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise InputError(f"opset of an ONNX file is {opset}; the installed onnx writes {OPSET} to {newest} here.")
    model = graph_of(program, opset)
    builder = GraphBuilder(names_in(model.graph))
    # ONNX Runtime's ConvInteger takes 3 to 6 times as long on int8 weights as on uint8 (measured: 1.32, AVX2).
    weights = WeightStore(builder, storage, opset, unsigned=style == "integer")
    writer = _STYLES[style](builder, program, weights, bias)
    replace_layers(model, builder, writer)
    writer.remarks += [*float_layers_remarks(program), *_remarks(program, weights, style, bias, opset)]
    return save(model, path, weights.names, QDQ_OPTIONS if style == "qdq" else {}, writer.remarks)


def _remarks(program: Program, weights: WeightStore, style: Style, bias: Bias, opset: int) -> list[str]:
    remarks = []
    packed = list(dict.fromkeys(weights.packed_anyway))
    if packed:
        hint = f"; opset {INT2_OPSET} has one of 2 bits" if opset < INT2_OPSET else ""
        remarks.append(f"ONNX has no type of the width of {', '.join(packed)}, so their weights are packed{hint}.")
    weighted = [layer for layer in program.layers.values() if not isinstance(layer.module, EmbeddingTable)]
    on_integers = [layer for layer in weighted if multiplies_integers(layer)]
    by_float = [layer.name for layer in on_integers if isinstance(layer.module, TransposedConvolution)]
    if style == "integer" and by_float:
        remarks.append(f"ONNX has no integer form of transposed convolutions: {', '.join(by_float)} multiply in float.")
    if bias == "int32":
        without = [layer.name for layer in weighted if layer.bias is not None and not multiplies_integers(layer)]
        if without:
            remarks.append(f"The biases of {', '.join(without)} stay float, as these layers compute in float.")
    return remarks


def names_in(graph: Any) -> set[str]:
    """The names of all values of a graph."""
    names = {value.name for value in (*graph.input, *graph.initializer)}
    for node in graph.node:
        names.update(node.output)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names |= names_in(attribute.g)
    return names


def replace_layers(model: Any, builder: GraphBuilder, writer: LayerWriter) -> None:
    """Replace, in place, every node that stands for a layer by what a writer writes."""
    calls: Counter[str] = Counter()
    for node in model.graph.node:
        if node.domain != DOMAIN:
            builder.nodes.append(node)
            continue
        (name,) = (attribute.s.decode() for attribute in node.attribute if attribute.name == "layer")
        calls[name] += 1
        call = name if calls[name] == 1 else f"{name}#{calls[name]}"
        builder.finish(writer.write(name, list(node.input), call), node.output[0], result_name(call))
    nodes = list(builder.nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(builder.initializers.values())
    imports = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(imports)


def save(
    model: Any, path: Path, weights: set[str], session_options: dict[str, str], remarks: list[str]
) -> OnnxArtefact:
    """Check a model and write it to a file."""
    import onnx

    from amed_env._version import __version__

    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    model.producer_name, model.producer_version = "amed-env", __version__
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        remarks = [*remarks, f"It takes batches of {batch.dim_value} samples only."]
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    path.write_bytes(content)
    stored = sum(len(tensor.raw_data) for tensor in model.graph.initializer if tensor.name in weights)
    (opset,) = (entry.version for entry in model.opset_import if entry.domain == "")
    names = model.graph.input[0].name, model.graph.output[0].name
    return OnnxArtefact(path, len(content), stored, session_options, opset, *names, tuple(remarks))
