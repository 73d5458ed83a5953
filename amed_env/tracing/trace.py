"""From a torch module and an example input to a `Workload`: which layers run, in which order, with which shapes.

Shapes are those of a real forward pass. Batch norms that directly follow a convolution or linear layer are folded.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from amed_env.errors import NetworkError, NonFiniteError
from amed_env.problem.workload import Layer, LayerKind, Workload
from amed_env.tracing.finite import check_finite_weights, first_non_finite
from amed_env.tracing.packing import Shapes, pack, take_packed
from amed_env.tracing.untraced_products import ProductWatch

logger = logging.getLogger(__name__)

Inputs = torch.Tensor | tuple[torch.Tensor, ...]
"""What a network takes: a float tensor (N, ...), or several."""

QUANTIZABLE = (nn.Conv1d, nn.Conv2d, nn.Linear)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# Their products would be missing from every cost, so they must not pass unnoticed.
_UNSUPPORTED = (
    nn.Conv3d,
    nn.modules.conv._ConvTransposeNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Bilinear,
)


@dataclass(frozen=True)
class KeptFloat:
    """A module, or a product of matrices in its `forward`, that computes in float, and why."""

    name: str
    type: str
    reason: str


@dataclass(frozen=True)
class TracedNetwork:
    """A network that is ready to be quantized.

    Attributes:
        module: A copy of the network in eval mode with batch norms folded.
        workload: Its quantizable layers in the order in which they first run.
        kept_float: Modules with parameters that stay in float, and products that are in no layer (attention).
    """

    module: nn.Module
    workload: Workload
    kept_float: tuple[KeptFloat, ...]


def trace(network: nn.Module, example_input: Inputs, name: str | None = None) -> TracedNetwork:
    """Find the quantizable layers of a network and their shapes.

    Args:
        network: Any module whose products are in `Conv1d`, `Conv2d` or `Linear` layers; it is not changed.
        example_input: Float tensor (N, …) that the network accepts; costs are per sample. A tuple of tensors for a
            network that takes several: the traced module then takes them packed (`packing.pack`).
        name: Name of the workload; the class name by default.

    Raises:
        NetworkError: If the network cannot be copied, cannot run on the input, has no quantizable layer, has modules or
            parameters whose products cannot be accounted for, or answers differently when it is called again; what is
            at fault is named.
        NonFiniteError: If a weight, or what a module returns on the example, is NaN or infinite; it is named.
    """
    name = name or type(network).__name__
    _check(network, example_input, name)
    check_finite_weights(network, name)
    module = _copied(network, name).eval()
    if not isinstance(example_input, torch.Tensor):
        take_packed(module, input_shapes(example_input))
        example_input = pack(example_input)
    if isinstance(module, QUANTIZABLE):
        module = nn.Sequential(module)  # a layer needs a name, which only a parent gives
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    _check_repeatable(module, example_input, name)
    kept_float = fold_batch_norms(module, example_input)
    with ProductWatch(module, QUANTIZABLE) as watch:
        layers = _observe_layers(module, example_input, name)
    ran = {layer.name for layer in layers}
    for path, child in module.named_modules():
        if isinstance(child, QUANTIZABLE) and path not in ran:
            kept_float.append(KeptFloat(path, type(child).__name__, "it does not run on the example input"))
        elif not isinstance(child, (*QUANTIZABLE, *_BATCH_NORMS)) and any(
            True for _ in child.parameters(recurse=False)
        ):
            kept_float.append(KeptFloat(path, type(child).__name__, "this kind of module is not quantized"))
    for (path, function), macs in watch.found.items():
        work = "" if macs is None else f", {macs // example_input.shape[0]:,} multiplications a sample"
        reason = f"a product that is in no layer: neither quantized nor part of any cost{work}"
        kept_float.append(KeptFloat(f"{path}.forward" if path else "forward", function, reason))
    return TracedNetwork(module, Workload(name, tuple(layers)), tuple(kept_float))


def input_shapes(inputs: Inputs) -> Shapes:
    """The shape of each input of a network, without the sample axis."""
    tensors = [inputs] if isinstance(inputs, torch.Tensor) else inputs
    return tuple(tuple(tensor.shape[1:]) for tensor in tensors)


def _copied(network: nn.Module, name: str) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except Exception as error:  # whatever a module's own tensors and attributes raise
        raise NetworkError(
            f"network {name!r} cannot be copied: {error}. If its weights are made by "
            "torch.nn.utils.weight_norm or spectral_norm, remove that with remove_weight_norm or remove_spectral_norm."
        ) from error


def _check(network: nn.Module, example_input: Inputs, name: str) -> None:
    if not isinstance(network, nn.Module):
        raise NetworkError(f"the network must be a torch.nn.Module, not {type(network).__name__}.")
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    if not inputs or not all(isinstance(i, torch.Tensor) and i.dim() >= 2 and i.shape[0] >= 1 for i in inputs):
        raise NetworkError(
            "the example input must be a tensor with at least one sample, shape (N, ...), or a tuple of such tensors."
        )
    if len({tensor.shape[0] for tensor in inputs}) > 1:
        raise NetworkError(
            f"the example inputs have {[tensor.shape[0] for tensor in inputs]} samples; give as many of each."
        )
    modules = dict(network.named_modules())
    unsupported = [
        f"{path or name} ({type(child).__name__})" for path, child in modules.items() if isinstance(child, _UNSUPPORTED)
    ]
    owners = tuple(
        {*QUANTIZABLE, *_UNSUPPORTED, nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.modules.batchnorm._NormBase}
    )
    unsupported += [
        f"{path + '.' if path else ''}{key} (a parameter of {type(child).__name__})"
        for path, child in modules.items()
        if not isinstance(child, owners)
        for key, parameter in child.named_parameters(recurse=False)
        if parameter.dim() >= 2 and min(parameter.squeeze().shape, default=1) > 1 and parameter.squeeze().dim() >= 2
    ]
    if unsupported:
        raise NetworkError(
            f"network {name!r} has products that cannot be quantized: {', '.join(unsupported)}. Supported "
            "are Conv1d, Conv2d (also depthwise and grouped) and Linear; rewrite these with them."
        )
    if not any(isinstance(child, QUANTIZABLE) for child in modules.values()):
        raise NetworkError(f"network {name!r} has no layer to quantize; it needs a Conv1d, Conv2d or Linear.")


def fold_batch_norms(module: nn.Module, example_input: torch.Tensor) -> list[KeptFloat]:
    """Fold, in place, every batch norm that alone reads the output of a convolution or linear layer.

    Args:
        module: A network in eval mode; it is changed.
        example_input: Float tensor (N, …) that the network accepts.

    Returns:
        The batch norms that remain, each with the reason.
    """
    norms = {path: child for path, child in module.named_modules() if isinstance(child, _BATCH_NORMS)}
    if not norms:
        return []
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # symbolic tracing fails on data-dependent control flow, with any type of error
        logger.warning("batch norms stay separate: the network cannot be traced symbolically (%s)", error)
        return [
            KeptFloat(path, type(child).__name__, "the network cannot be traced symbolically, so it is not folded")
            for path, child in norms.items()
        ]
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    over_time = _norms_over_time(module, example_input)
    kept = []
    for path, norm in norms.items():
        source = _foldable_source(module, calls, path)
        layer = None if source is None else module.get_submodule(source)
        misses_features = isinstance(layer, nn.Linear) and path in over_time
        if source is None or norm.running_mean is None or misses_features:
            kept.append(
                KeptFloat(path, type(norm).__name__, "it does not directly follow a layer, so it is not folded")
            )
            continue
        fuse: Any = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        module.set_submodule(source, fuse(layer, norm))
        module.set_submodule(path, nn.Identity())
    return kept


class _Tracer(fx.Tracer):
    """Keeps every torch.nn module whole, also when a user subclasses one."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*QUANTIZABLE, *_BATCH_NORMS)) or super().is_leaf_module(m, module_qualified_name)


def _foldable_source(module: nn.Module, calls: dict[str, list[fx.Node]], path: str) -> str | None:
    """The layer whose only reader is this batch norm, when both are called exactly once."""
    nodes = calls.get(path, [])
    if len(nodes) != 1 or len(nodes[0].all_input_nodes) != 1:
        return None
    source = nodes[0].all_input_nodes[0]
    if source.op != "call_module" or len(source.users) != 1 or len(calls[str(source.target)]) != 1:
        return None
    layer = module.get_submodule(str(source.target))
    if not isinstance(layer, QUANTIZABLE):
        return None
    norm = module.get_submodule(path)
    features = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return str(source.target) if norm.num_features == features else None


def _norms_over_time(module: nn.Module, example_input: torch.Tensor) -> set[str]:
    """Batch norms that read (N, T, C): they normalise T, which are no features of a linear layer before them."""
    found: set[str] = set()
    handles = [
        child.register_forward_hook(lambda _, inputs, __, path=path: found.add(path) if inputs[0].dim() == 3 else None)
        for path, child in module.named_modules()
        if isinstance(child, nn.BatchNorm1d)
    ]
    try:
        if handles:
            with torch.no_grad():
                module(example_input)
    except Exception as error:  # `_observe_layers` meets it again and reports it
        logger.debug("the network does not run: %s", error)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _observe_layers(module: nn.Module, example_input: torch.Tensor, name: str) -> list[Layer]:
    """Run the network once and record every call of a quantizable layer."""
    batch = example_input.shape[0]
    observed: dict[str, Layer] = {}
    failures: list[NetworkError] = []

    def hook(path: str) -> object:
        def record(
            layer: nn.Module, inputs: tuple[torch.Tensor, ...], keywords: dict[str, torch.Tensor], output: torch.Tensor
        ) -> None:
            try:
                read = inputs[0] if inputs else keywords["input"]
                seen = _layer_of_call(path, layer, read, output, batch)
                observed[path] = _add_call(observed[path], seen) if path in observed else seen
            except NetworkError as error:
                failures.append(error)

        return record

    handles = [
        child.register_forward_hook(hook(path), with_kwargs=True)  # type: ignore[arg-type]
        for path, child in module.named_modules()
        if isinstance(child, QUANTIZABLE)
    ]
    try:
        with torch.no_grad():
            output = module(example_input)
    except Exception as error:
        raise _does_not_run(name, module, example_input, error) from error
    finally:
        for handle in handles:
            handle.remove()
    if failures:
        raise failures[0]
    if not observed:
        raise NetworkError(f"network {name!r}: none of its layers runs on the example input.")
    if not isinstance(output, torch.Tensor) or output.dim() != 2 or output.shape[0] != batch:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise NetworkError(f"network {name!r} must return class scores of shape ({batch}, classes), not {shape}.")
    if not torch.isfinite(output).all():
        raise NonFiniteError(
            f"network {name!r} returns NaN or infinity on the example input: "
            f"{first_non_finite(module, example_input) or 'a function outside of its modules'} does first."
        )
    return list(observed.values())


def _does_not_run(name: str, module: nn.Module, example: torch.Tensor, error: Exception) -> NetworkError:
    shapes = getattr(module, "packed_shapes", None)
    several = None if shapes is None else [(example.shape[0], *shape) for shape in shapes]
    text = f"an input of shape {tuple(example.shape)}" if several is None else f"inputs of shapes {several}"
    return NetworkError(f"network {name!r} does not run on {text}: {type(error).__name__}: {error}.")


def _check_repeatable(module: nn.Module, example_input: torch.Tensor, name: str) -> None:
    """Check that two calls give the same answer and leave weights and buffers as they were.

    Raises:
        NetworkError: If not.
    """
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    try:
        with torch.no_grad():
            first, second = module(example_input), module(example_input)
    except Exception as error:
        raise _does_not_run(name, module, example_input, error) from error
    after = module.state_dict()
    changed = [key for key, tensor in before.items() if not torch.equal(tensor.nan_to_num(), after[key].nan_to_num())]
    if changed:
        raise NetworkError(
            f"network {name!r} changes {', '.join(changed)} when it is called in eval mode, so its answers depend on "
            "what it saw before; let them stay as they are outside of training."
        )
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor):
        return  # `_observe_layers` says what is wrong with it
    same = first.shape == second.shape
    # Kernels may sum in another order; what a module changes on purpose is larger.
    if not same or not torch.allclose(first, second, rtol=1e-4, atol=1e-5, equal_nan=True):
        by = "another shape" if not same else f"up to {float((first - second).abs().max()):.3g}"
        raise NetworkError(
            f"network {name!r} answers differently when it is called again on the same input (by {by}): it draws "
            "random numbers or keeps a state in eval mode; make it depend on its input alone."
        )


def _layer_of_call(path: str, layer: nn.Module, read: torch.Tensor, written: torch.Tensor, batch: int) -> Layer:
    input_elements, output_elements = read.numel() // batch, written.numel() // batch
    if isinstance(layer, nn.Linear):
        return Layer(
            path,
            "linear",
            m=max(1, output_elements // layer.out_features),
            n=layer.out_features,
            k=layer.in_features,
            input_elements=input_elements,
            output_elements=output_elements,
        )
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    kernel, stride = (size if len(size) == 2 else (1, size[0]) for size in (layer.kernel_size, layer.stride))
    if output_elements == 0:
        raise NetworkError(f"layer {path!r} has an empty output on the example input; give a larger input.")
    filters = layer.out_channels // layer.groups
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels and filters == 1
    kind: LayerKind = "depthwise" if depthwise else "conv"
    return Layer(
        path,
        kind,
        m=output_elements // layer.out_channels,
        n=filters,
        k=layer.in_channels // layer.groups * kernel[0] * kernel[1],
        groups=layer.groups,
        input_elements=input_elements,
        output_elements=output_elements,
        kernel=(kernel[0], kernel[1]),
        stride=(stride[0], stride[1]),
    )


def _add_call(first: Layer, again: Layer) -> Layer:
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
