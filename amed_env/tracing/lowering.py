"""The layers of a captured program: products, and look-ups of constant rows, become modules that can be quantized.

A layer is an operation. With constant weights it is called by the path of the module whose weight it takes, and is one
layer however often it is called with that weight: the weight is stored once, and the work of the calls adds up. A
product of two activations is a layer a call, as each has other operands.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from amed_env.tracing.capture import PARAMETERS, constant_of, module_path

aten = torch.ops.aten


class TransposedConvolution(nn.Module):
    """A transposed convolution whose weights have the output channel first, as those of every other layer.

    Args:
        layer: The convolution as torch has it, with weights (in, out / groups, …).

    Attributes:
        weight: (out, in / groups, …).
    """

    def __init__(self, layer: nn.modules.conv._ConvTransposeNd) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = layer.in_channels, layer.out_channels, layer.groups
        self.kernel_size, self.stride, self.padding = layer.kernel_size, layer.stride, layer.padding
        self.output_padding, self.dilation = layer.output_padding, layer.dilation
        self.weight = nn.Parameter(self._turned(layer.weight.detach(), layer.in_channels), requires_grad=False)
        self.bias = layer.bias

    def _turned(self, weight: torch.Tensor, first: int) -> torch.Tensor:
        """Weights with the two channel axes exchanged within each group; `first` is the length of the first axis."""
        grouped = weight.reshape(self.groups, first // self.groups, *weight.shape[1:]).transpose(1, 2)
        return grouped.reshape(-1, *grouped.shape[2:])

    def compute(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The convolution with other weights, output channel first."""
        function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(self.kernel_size) - 1]
        turned = self._turned(weight, self.out_channels)
        result: torch.Tensor = function(
            inputs, turned, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )
        return result

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The convolution with its own weights."""
        return self.compute(inputs, self.weight, self.bias)


class EmbeddingTable(nn.Module):
    """Rows that are looked up.

    Args:
        weight: Float tensor (rows, values of a row).

    Attributes:
        weight: The same.
        bias: None; every layer has one or none.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None

    def compute(self, indices: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The rows (…, values of a row) of other weights at indices (…)."""
        return F.embedding(indices, weight)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """The rows at indices, int64 or int32."""
        return self.compute(indices, self.weight)


class Product(nn.Module):
    """The product of two activations, as `torch.matmul` has it; it has no weights."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """(…, M, K) by (…, K, N): (…, M, N)."""
        return torch.matmul(left, right)


QuantizableModule = nn.Conv1d | nn.Conv2d | nn.Conv3d | TransposedConvolution | nn.Linear
QUANTIZABLE = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    nn.Embedding,
)
_CONVOLUTIONS: dict[Any, tuple[type[nn.Module], int]] = {
    aten.conv1d.default: (nn.Conv1d, 1),
    aten.conv1d.padding: (nn.Conv1d, 1),
    aten.conv2d.default: (nn.Conv2d, 2),
    aten.conv2d.padding: (nn.Conv2d, 2),
    aten.conv3d.default: (nn.Conv3d, 3),
    aten.conv3d.padding: (nn.Conv3d, 3),
}
_TRANSPOSED: dict[Any, tuple[type[nn.Module], int]] = {
    aten.conv_transpose1d.default: (nn.ConvTranspose1d, 1),
    aten.conv_transpose2d.input: (nn.ConvTranspose2d, 2),
    aten.conv_transpose3d.input: (nn.ConvTranspose3d, 3),
}
COMPUTES = "computes"
"""Key of a node's meta: the name of the captured operation whose result it returns."""
PATH = "path"
"""Key of the meta of a node that takes a parameter or buffer of the network: its path there."""
_PRODUCTS: tuple[Any, ...] = (aten.mm.default, aten.bmm.default, aten.matmul.default)


@dataclass(frozen=True)
class _Operands:
    """An operation that becomes a layer, as a module of torch.

    Attributes:
        read: The nodes whose values the layer reads.
        weight: The node of the weights; calls with the same one are calls of one layer. None in a product of two
            activations.
        kind: The operation's name.
        options: What else must be equal for that.
        make: Makes the module.
    """

    read: tuple[fx.Node, ...]
    weight: fx.Node | None
    kind: str
    options: tuple[Any, ...]
    make: Callable[[], nn.Module]
    turned: bool = False
    """Whether the constant stands on the left: (A x)ᵀ = xᵀ Aᵀ, so both what is read and the result are transposed."""


@dataclass(frozen=True)
class Lowered:
    """The layers of a program.

    Attributes:
        layers: Modules by name, in the order in which they first run.
        shared: Layer to the earlier layer that has the same weights.
    """

    layers: dict[str, nn.Module]
    shared: dict[str, str]


def lower(module: fx.GraphModule, network: nn.Module) -> Lowered:
    """Replace, in place, every operation that can be a layer by a call of a module.

    Args:
        module: The captured program of the network.
        network: The network itself, for the names of its modules.
    """
    users_modules = dict(network.named_modules(remove_duplicate=False))
    weights = _same_weights(network)
    products: list[tuple[fx.Node, _Operands, tuple[Any, ...]]] = []
    names: dict[tuple[Any, ...], str] = {}
    for node in module.graph.nodes:
        operands = _operands(module, node)
        if operands is not None:
            key = _whose(node, operands, weights), operands.kind, operands.options
            products.append((node, operands, key))
            if key not in names:
                names[key] = _free(_layer_name(node, operands, users_modules), set(names.values()))
    for key, name in names.items():  # a module with layers inside of it cannot be a layer by that name itself
        if any(other.startswith(f"{name}.") for other in names.values()):
            names[key] = _free(f"{name}.product", set(names.values()))
    layers: dict[str, nn.Module] = {}
    shared: dict[str, str] = {}
    owners: dict[Any, str] = {}
    calls: dict[fx.Node, fx.Node] = {}
    for node, operands, key in products:
        name = names[key]
        if name not in layers:
            layers[name] = operands.make()
            if owners.setdefault(key[0], name) != name:
                shared[name] = owners[key[0]]
        with module.graph.inserting_before(node):
            read = tuple(calls.get(source, source) for source in operands.read)
            if operands.turned:
                turned = module.graph.call_function(aten.transpose.int, (read[0], -2, -1))
                product = module.graph.create_node("call_module", name, (turned,))
                call = module.graph.call_function(aten.transpose.int, (product, -2, -1))
            else:
                call = module.graph.create_node("call_module", name, read)
        calls[node] = call
        call.meta = {**node.meta, COMPUTES: node.name}
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
    for name, layer in layers.items():
        _add_module(module, name, layer)
    module.graph.eliminate_dead_code()
    module.recompile()
    return Lowered(layers, shared)


def _same_weights(network: nn.Module) -> dict[str, str]:
    """Path of a parameter to the first path of that parameter: a tied one has several."""
    first: dict[int, str] = {}
    return {p: first.setdefault(id(weight), p) for p, weight in network.named_parameters(remove_duplicate=False)}


def _whose(node: fx.Node, operands: _Operands, weights: dict[str, str]) -> str:
    """Equal for operations with the same weights."""
    if operands.weight is None:
        return node.name
    path = operands.weight.meta.get(PATH)  # of a parameter itself, and not of what is computed from it
    return str(operands.weight.target) if path is None else weights.get(path, path)


def _free(name: str, taken: set[str]) -> str:
    """The name, or the first of `name#2`, `name#3`, … that is not taken."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}#{number}"
    return free


def _layer_name(node: fx.Node, operands: _Operands, users_modules: dict[str, nn.Module]) -> str:
    """The path of the module that runs the product, or of the parameter that it takes."""
    path = module_path(node)
    running = users_modules.get(path)
    if path and (isinstance(running, QUANTIZABLE) or _has_one_matrix(running)):
        return path
    if operands.weight is None:
        return f"{path}.{operands.kind}" if path else operands.kind
    parameters = operands.weight.meta[PARAMETERS]
    if len(parameters) == 1:  # a module with parts calls a function, or an exported program has lost its modules
        return re.sub(r"[._]?weight$", "", parameters[0]) or operands.kind
    if path and (running is None or next(running.children(), None) is None):
        return path
    return f"{path}.{operands.kind}" if path else operands.kind


def _has_one_matrix(module: nn.Module | None) -> bool:
    """Whether a module has nothing inside of it but one tensor that can be multiplied with."""
    if module is None or next(module.children(), None) is not None:
        return False
    return sum(tensor.dim() >= 2 for tensor in (*module.parameters(), *module.buffers())) == 1


def _add_module(root: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a module at a path; what stands on the way is kept."""
    *owners, last = name.split(".")
    owner = root
    for part in owners:
        child = owner._modules.get(part)
        if child is None:
            child = nn.Module()
            owner._modules[part] = child
        owner = child
    owner._modules[last] = layer


def _operands(module: fx.GraphModule, node: fx.Node) -> _Operands | None:
    """What a product with constant weights takes, or None for another operation."""
    if node.op != "call_function":
        return None
    if node.target in _CONVOLUTIONS or node.target in _TRANSPOSED:
        return _convolution(module, node)
    if node.target is aten.linear.default:
        read, weight, bias = (*node.args, None)[:3]
        return _linear(module, read, weight, bias, transposed=False)
    if node.target is aten.addmm.default and not node.kwargs:
        bias, read, weight = node.args
        return _linear(module, read, weight, bias, transposed=True)
    if node.target in _PRODUCTS:
        read, weight = node.args
        return (
            _linear(module, read, weight, None, transposed=True)
            or _linear(module, weight, read, None, transposed=False, turned=True)
            or _product(read, weight)
        )
    if node.target is aten.embedding.default:
        return _embedding(module, node)
    return None


def _embedding(module: fx.GraphModule, node: fx.Node) -> _Operands | None:
    arguments: tuple[Any, ...] = node.args
    weight, indices = arguments[:2]
    values = constant_of(module, weight)
    if values is None or not values.is_floating_point() or not isinstance(indices, fx.Node):
        return None
    assert isinstance(weight, fx.Node)
    return _Operands((indices,), weight, "embedding", (), lambda: EmbeddingTable(values.detach().float().clone()))


def _product(left: Any, right: Any) -> _Operands | None:
    """A product of two activations that are matrices, or stacks of them."""
    if min(_axes(left), _axes(right)) < 2 or "get_attr" in (left.op, right.op):
        return None
    if left.meta["val"].shape[-1] == 1:
        return None  # nothing is summed: every value is multiplied by one other
    return _Operands((left, right), None, "matmul", (), Product)


def _axes(node: Any) -> int:
    return len(getattr(getattr(node, "meta", {}).get("val"), "shape", ()))


def _linear(
    module: fx.GraphModule, read: Any, weight: Any, bias: Any, *, transposed: bool, turned: bool = False
) -> _Operands | None:
    values, offset = constant_of(module, weight), constant_of(module, bias)
    if values is None or not isinstance(read, fx.Node) or read.op == "get_attr":
        return None
    if 2 < values.dim() <= _axes(read):  # a stack of one matrix, as sums over indices make it, or that one repeated
        first = values[(0,) * (values.dim() - 2)]
        values = first if torch.equal(values, first.expand_as(values)) else values
    if values.dim() != 2 or _axes(read) < 2 or (bias is not None and (offset is None or offset.dim() != 1)):
        return None
    matrix = values.t() if transposed else values
    if offset is not None and len(offset) != len(matrix):
        return None

    def make() -> nn.Module:
        layer = nn.utils.skip_init(nn.Linear, matrix.shape[1], matrix.shape[0], bias=offset is not None)
        return _with_weights(layer, matrix, offset)

    return _Operands((read,), weight, "linear", (transposed, _target(bias)), make, turned)


def _convolution(module: fx.GraphModule, node: fx.Node) -> _Operands | None:
    arguments: tuple[Any, ...] = node.args
    read, weight, *others = arguments
    values = constant_of(module, weight)
    if values is None or not isinstance(read, fx.Node) or read.op == "get_attr":
        return None
    transposed = node.target in _TRANSPOSED
    kind, axes = (_TRANSPOSED if transposed else _CONVOLUTIONS)[node.target]
    names = (
        ("bias", "stride", "padding", "output_padding", "groups", "dilation")
        if transposed
        else ("bias", "stride", "padding", "dilation", "groups")
    )
    given: dict[str, Any] = {**dict(zip(names, others, strict=False)), **node.kwargs}
    bias = given.get("bias")
    offset = constant_of(module, bias)
    if bias is not None and offset is None:
        return None
    shape = getattr(read.meta.get("val"), "shape", None)
    if shape is not None and len(shape) != axes + 2:
        return None  # a sample without a batch
    groups = int(given.get("groups", 1))
    options: dict[str, Any] = {
        "stride": _sizes(given.get("stride", 1), axes),
        "padding": given["padding"] if isinstance(given.get("padding"), str) else _sizes(given.get("padding", 0), axes),
        "dilation": _sizes(given.get("dilation", 1), axes),
        "groups": groups,
    }
    if transposed:
        options["output_padding"] = _sizes(given.get("output_padding", 0), axes)
    if transposed:
        inputs, outputs = values.shape[0], values.shape[1] * groups
    else:
        inputs, outputs = values.shape[1] * groups, values.shape[0]

    def make() -> nn.Module:
        layer = nn.utils.skip_init(kind, inputs, outputs, tuple(values.shape[2:]), bias=offset is not None, **options)
        made = _with_weights(layer, values, offset)
        return TransposedConvolution(made) if isinstance(made, nn.modules.conv._ConvTransposeNd) else made

    return _Operands((read,), weight, kind.__name__.lower(), (str(options), _target(bias)), make)


def _target(node: Any) -> str | None:
    return str(node.target) if isinstance(node, fx.Node) else None


def _sizes(value: Any, axes: int) -> tuple[int, ...]:
    sizes = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(int(size) for size in (sizes * axes if len(sizes) == 1 else sizes))


def _with_weights(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight.detach().float().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().float().clone(), requires_grad=False)
    return layer.eval()
