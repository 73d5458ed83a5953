"""The layers of a captured program: products with constant weights become modules that can be quantized.

A layer is an operation. It is called by the path of the module whose weight it takes, and is one layer however often it
is called with that weight: the weight is stored once, and the work of the calls adds up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from amed_env.errors import NetworkError
from amed_env.problem.workload import Layer, LayerKind
from amed_env.tracing.capture import constant_of, module_path

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


QuantizableModule = nn.Conv1d | nn.Conv2d | nn.Conv3d | TransposedConvolution | nn.Linear
QUANTIZABLE = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
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
_PRODUCTS: tuple[Any, ...] = (aten.mm.default, aten.matmul.default)


@dataclass(frozen=True)
class _Operands:
    """A product with constant weights, as a module of torch.

    Attributes:
        read: The node whose values the layer reads.
        weight: The node of the weights; calls with the same one are calls of one layer.
        kind: The operation's name.
        options: What else must be equal for that.
        make: Makes the module.
    """

    read: fx.Node
    weight: fx.Node
    kind: str
    options: tuple[Any, ...]
    make: Callable[[], nn.Module]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for calls of one layer."""
        return str(self.weight.target), self.kind, self.options


def lower(module: fx.GraphModule, network: nn.Module) -> dict[str, nn.Module]:
    """Replace, in place, every product with constant weights by a call of a module; returns the modules by name.

    Args:
        module: The captured program of the network.
        network: The network itself, for the names of its modules.
    """
    users_modules = dict(network.named_modules(remove_duplicate=False))
    products: list[tuple[fx.Node, _Operands]] = []
    names: dict[tuple[Any, ...], str] = {}
    for node in module.graph.nodes:
        operands = _operands(module, node)
        if operands is not None:
            products.append((node, operands))
            if operands.key not in names:
                names[operands.key] = _free(_layer_name(node, operands, users_modules), set(names.values()))
    for key, name in names.items():  # a module with layers inside of it cannot be a layer by that name itself
        if any(other.startswith(f"{name}.") for other in names.values()):
            names[key] = _free(f"{name}.product", set(names.values()))
    layers: dict[str, nn.Module] = {}
    calls: dict[fx.Node, fx.Node] = {}
    for node, operands in products:
        name = names[operands.key]
        if name not in layers:
            layers[name] = operands.make()
        with module.graph.inserting_before(node):
            read = calls.get(operands.read, operands.read)
            calls[node] = call = module.graph.create_node("call_module", name, (read,))
        call.meta = {**node.meta, COMPUTES: node.name}
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
    for name, layer in layers.items():
        _add_module(module, name, layer)
    module.graph.eliminate_dead_code()
    module.recompile()
    return layers


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
    if isinstance(running, QUANTIZABLE) and path:
        return path
    has_parts = path == "" or (running is not None and next(running.children(), None) is not None)
    if not has_parts:
        return path
    # A module with parts calls a function with weights of its own; so do exported programs, which have lost theirs.
    parameter = operands.weight.meta.get(PATH)
    if parameter is not None:
        return re.sub(r"[._]?weight$", "", parameter) or operands.kind
    return f"{path}.{operands.kind}" if path else operands.kind


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
        return _linear(module, read, weight, None, transposed=True)
    return None


def _is_batched(node: Any) -> bool:
    shape = getattr(getattr(node, "meta", {}).get("val"), "shape", None)
    return shape is not None and len(shape) >= 2


def _linear(module: fx.GraphModule, read: Any, weight: Any, bias: Any, *, transposed: bool) -> _Operands | None:
    values, offset = constant_of(module, weight), constant_of(module, bias)
    if values is None or values.dim() != 2 or not isinstance(read, fx.Node) or read.op == "get_attr":
        return None
    if not _is_batched(read) or (bias is not None and (offset is None or offset.dim() != 1)):
        return None
    matrix = values.t() if transposed else values
    if offset is not None and len(offset) != len(matrix):
        return None

    def make() -> nn.Module:
        layer = nn.utils.skip_init(nn.Linear, matrix.shape[1], matrix.shape[0], bias=offset is not None)
        return _with_weights(layer, matrix, offset)

    return _Operands(read, weight, "linear", (transposed, _target(bias)), make)


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

    return _Operands(read, weight, kind.__name__.lower(), (str(options), _target(bias)), make)


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


def layer_of_call(name: str, layer: nn.Module, read: torch.Size, written: torch.Size, batch: int) -> Layer:
    """The shape of one call of a layer, for one sample.

    Args:
        name: The layer's name.
        layer: The layer.
        read: Shape of what it reads.
        written: Shape of what it returns.
        batch: Samples; they need not stand on the first axis, as recurrent layers show.
    """
    input_elements, output_elements = read.numel() // batch, written.numel() // batch
    if output_elements == 0:
        raise NetworkError(f"layer {name!r} has an empty output on the example input; give a larger input.")
    if isinstance(layer, nn.Linear):
        return Layer(
            name,
            "linear",
            m=max(1, output_elements // layer.out_features),
            n=layer.out_features,
            k=layer.in_features,
            input_elements=input_elements,
            output_elements=output_elements,
        )
    assert isinstance(layer, nn.modules.conv._ConvNd | TransposedConvolution)
    kernel, stride = _two_axes(layer.kernel_size), _two_axes(layer.stride)
    taps = layer.weight[0, 0].numel()
    if isinstance(layer, TransposedConvolution):
        # Every pixel that is read is multiplied with all weights of its channel, and the products are scattered.
        m = input_elements // layer.in_channels
        n, k = layer.out_channels // layer.groups * taps, layer.in_channels // layer.groups
    else:
        m = output_elements // layer.out_channels
        n, k = layer.out_channels // layer.groups, layer.in_channels // layer.groups * taps
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels and n == 1
    kind: LayerKind = "depthwise" if depthwise else "conv"
    return Layer(
        name,
        kind,
        m=m,
        n=n,
        k=k,
        groups=layer.groups,
        input_elements=input_elements,
        output_elements=output_elements,
        kernel=kernel,
        stride=stride,
    )


def _two_axes(sizes: tuple[int, ...]) -> tuple[int, int]:
    """Height and width; one axis is a width, and of three the first two are taken together."""
    if len(sizes) == 1:
        return 1, sizes[0]
    return (sizes[0], sizes[1]) if len(sizes) == 2 else (sizes[0] * sizes[1], sizes[2])


def add_call(first: Layer, again: Layer) -> Layer:
    """A layer that is called more than once: the same weights, more pixels."""
    return Layer(
        first.name,
        first.kind,
        m=first.m + again.m,
        n=first.n,
        k=first.k,
        groups=first.groups,
        input_elements=first.input_elements + again.input_elements,
        weight_elements=first.weight_elements,
        output_elements=first.output_elements + again.output_elements,
        kernel=first.kernel,
        stride=first.stride,
    )
