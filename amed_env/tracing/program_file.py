"""A traced network as bytes: its tensors as safetensors, all else as JSON; nothing is pickled, no code is run.

Tensors keep their strides, since kernels of another layout may sum in another order: what is read computes the same
to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from amed_env.problem.workload import Layer, Workload
from amed_env.tracing.lowering import EmbeddingTable, Product, TransposedConvolution
from amed_env.tracing.stored import Operation, Result, StoredNode, StoredProgram
from amed_env.tracing.traced_network import KeptFloat, TracedNetwork

FORMAT = "amed-program/1"
_DOCUMENT = "document"
"""Name of the tensor that holds the JSON; those of the network have numbers."""
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, TransposedConvolution, EmbeddingTable, Product, nn.Module)
_KINDS: dict[str, type[nn.Module]] = {kind.__name__: kind for kind in _LAYERS}
_EMPTY = vars(nn.Module())
"""What every module has; what a kind has beyond that are its options."""
_WRITTEN = ("training", "_parameters", "_modules")
_OPERATIONS = ("aten.", "prims.")
_ARITHMETIC = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs", "and_", "or_", "xor", "not_"),
    *("eq", "ne", "lt", "le", "gt", "ge", "getitem"),
)
_FUNCTIONS: dict[str, Any] = {
    **{f"operator.{name}": getattr(operator, name) for name in _ARITHMETIC},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite")
    },
}
"""Functions that programs call beside operations of torch: of sizes."""
_NAMES = {function: name for name, function in _FUNCTIONS.items()}
_CONSTANTS: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}


def content_of(traced: TracedNetwork, facts: Mapping[str, Any]) -> bytes:
    """The bytes of a file.

    Args:
        traced: A traced network.
        facts: What else to keep, of types that JSON has.

    Raises:
        ValueError: If it has something that files do not have.
    """
    writer = _Writer()
    program = StoredProgram.of(traced.module)
    document = {
        "format": FORMAT,
        "facts": dict(facts),
        "nodes": [writer.node(node) for node in program.nodes],
        "modules": {name: writer.module(module) for name, module in program.modules.items()},
        "buffers": {name: writer.tensor(buffer) for name, buffer in program.buffers.items()},
        "workload": {
            "name": traced.workload.name,
            "layers": [asdict(layer) for layer in traced.workload.layers],
            "edges": traced.workload.edges,
        },
        "kept_float": [asdict(kept) for kept in traced.kept_float],
        "batch_size": traced.batch_size,
        "remarks": traced.remarks,
        "difference": traced.difference,
    }
    text = bytearray(json.dumps({**document, "tensors": writer.layouts}).encode())
    content: bytes = save({**writer.tensors, _DOCUMENT: torch.frombuffer(text, dtype=torch.uint8)})
    return hashlib.sha256(content).digest() + content


def read_content(content: bytes) -> tuple[TracedNetwork, dict[str, Any]]:
    """The traced network of a file, and the facts that were kept with it.

    Raises:
        Exception: Of any type, if it is damaged or of another format.
    """
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its content is not the one that was written")
    tensors: dict[str, torch.Tensor] = load(content)
    document = json.loads(tensors.pop(_DOCUMENT).numpy().tobytes())
    if document["format"] != FORMAT:
        raise ValueError(f"it is no {FORMAT} file")
    reader = _Reader(tensors, document["tensors"])
    program = StoredProgram(
        tuple(reader.node(entry) for entry in document["nodes"]),
        {name: reader.module(entry) for name, entry in document["modules"].items()},
        {name: reader.tensor(entry) for name, entry in document["buffers"].items()},
    )
    workload = document["workload"]
    traced = TracedNetwork(
        program.program(),
        Workload(
            workload["name"],
            tuple(_layer(entry) for entry in workload["layers"]),
            tuple((first, second) for first, second in workload["edges"]),
        ),
        tuple(KeptFloat(**entry) for entry in document["kept_float"]),
        document["batch_size"],
        tuple(document["remarks"]),
        document["difference"],
    )
    return traced, document["facts"]


def _layer(entry: Mapping[str, Any]) -> Layer:
    options: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Layer(**options)


class _Writer:
    """Makes JSON of a program's parts, and collects its tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.layouts: dict[str, list[list[int]]] = {}

    def tensor(self, tensor: torch.Tensor | None) -> str | None:
        if tensor is None:
            return None
        plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout is torch.strided
        if not plain or tensor.device.type != "cpu" or tensor.is_complex() or tensor.requires_grad:
            raise ValueError(f"a tensor of type {tensor.dtype} on {tensor.device}")
        layout = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        if layout.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
            raise ValueError("a tensor with gaps")
        key = str(len(self.tensors))
        self.tensors[key] = tensor.detach().clone(memory_format=torch.contiguous_format)
        self.layouts[key] = [list(tensor.shape), list(tensor.stride())]
        return key

    def module(self, module: nn.Module | None) -> Any:
        if module is None:
            return None
        if _KINDS.get(type(module).__name__) is not type(module):
            raise ValueError(f"a module of type {type(module).__name__}")
        own = vars(module)
        unusual = [name for name, value in _EMPTY.items() if name not in _WRITTEN and own[name] != value]
        if unusual:
            raise ValueError(f"a module with {', '.join(unusual)}")
        return {
            "kind": type(module).__name__,
            "training": module.training,
            "attributes": {name: self.value(value) for name, value in own.items() if name not in _EMPTY},
            "parameters": {name: self.tensor(parameter) for name, parameter in module._parameters.items()},
            "modules": {name: self.module(child) for name, child in module._modules.items()},
        }

    def node(self, node: StoredNode) -> list[Any]:
        if node.op == "call_function":
            target = self._function(node.target)
        elif node.op in ("placeholder", "get_attr", "call_module", "output"):
            target = node.target
        else:
            raise ValueError(f"a node {node.op}")
        return [node.name, node.op, target, self.value(node.args), self.value(node.kwargs), node.path]

    def _function(self, target: Any) -> str:
        if isinstance(target, Operation):
            if not target.path.startswith(_OPERATIONS):
                raise ValueError(f"the operation {target.path}")
            return target.path
        name = _NAMES.get(target)
        if name is None:
            raise ValueError(f"the function {target}")
        return name

    def value(self, value: Any) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Result):
            return {"node": value.node}
        if isinstance(value, list):
            return [self.value(entry) for entry in value]
        if type(value) in (tuple, torch.Size):
            return {"tuple": [self.value(entry) for entry in value]}
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise ValueError("a dict whose keys are no texts")
            return {"dict": {key: self.value(entry) for key, entry in value.items()}}
        if isinstance(value, slice):
            return {"slice": [self.value(entry) for entry in (value.start, value.stop, value.step)]}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        for name, kind in _CONSTANTS.items():
            if isinstance(value, kind):
                return {name: str(value).removeprefix("torch.")}
        raise ValueError(f"a value of type {type(value).__name__}")


class _Reader:
    """Makes a program's parts of JSON and tensors."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], layouts: Mapping[str, Any]) -> None:
        self._tensors = {key: _laid_out(tensor, *layouts[key]) for key, tensor in tensors.items()}
        self._kinds: dict[str, Callable[[Any], Any]] = {
            "node": Result,
            "tuple": lambda entries: tuple(self.value(entry) for entry in entries),
            "dict": lambda entries: {key: self.value(entry) for key, entry in entries.items()},
            "slice": lambda entries: slice(*(self.value(entry) for entry in entries)),
            "device": torch.device,
        }

    def tensor(self, key: str | None) -> torch.Tensor | None:
        return None if key is None else self._tensors[key]

    def module(self, entry: Any) -> nn.Module | None:
        if entry is None:
            return None
        kind = _KINDS[entry["kind"]]
        made = kind.__new__(kind)  # its options are among its attributes
        nn.Module.__init__(made)
        made.training = entry["training"]
        for name, value in entry["attributes"].items():
            made.__dict__[name] = self.value(value)
        for name, key in entry["parameters"].items():
            tensor = self.tensor(key)
            made._parameters[name] = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
        for name, child in entry["modules"].items():
            made._modules[name] = self.module(child)
        return made

    def node(self, entry: Any) -> StoredNode:
        name, op, target, args, kwargs, path = entry
        if op == "call_function":
            target = Operation(target) if target.startswith(_OPERATIONS) else _FUNCTIONS[target]
        return StoredNode(name, op, target, self.value(args), self.value(kwargs), path)

    def value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.value(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind in _CONSTANTS:
            constant = getattr(torch, content)
            if not isinstance(constant, _CONSTANTS[kind]):
                raise ValueError(f"{content} is no {kind}")
            return constant
        return self._kinds[kind](content)


def _laid_out(tensor: torch.Tensor, shape: list[int], stride: list[int]) -> torch.Tensor:
    """A copy with its strides, in memory of torch's own: what a file is read into is not aligned."""
    return torch.empty_strided(shape, stride, dtype=tensor.dtype).copy_(tensor)
