"""The network as its user gave it: how it is called, what counts of its answer, and whether that can be relied on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from amed_env.errors import AmedError, NetworkError, NonFiniteError
from amed_env.tracing.finite import first_non_finite
from amed_env.tracing.packing import InputForm, Inputs

Outputs = Callable[[Any], Any]
"""Picks of what a network returns what counts: a tensor, or any tree of tensors."""


@dataclass(frozen=True)
class Call:
    """How a network is called with one tensor that holds all of its inputs.

    Attributes:
        form: How the tensor holds them.
        outputs: What counts of the answer; everything by default.
    """

    form: InputForm
    outputs: Outputs | None = None

    def __call__(self, network: nn.Module, packed: torch.Tensor) -> list[torch.Tensor]:
        """The tensors that count of a network's answer; what else it returns, caches for example, is left out."""
        arguments, keywords = arguments_of(network, self.form.unpacked(packed))
        returned = network(*arguments, **keywords)
        return tensors_of(returned if self.outputs is None else self.outputs(returned))

    def in_float64(self) -> Call:
        """The same call with all floating-point inputs in float64."""
        return replace(self, form=self.form.with_float_types(lambda _: torch.float64))


def arguments_of(network: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call.

    A tuple has the positional ones. A mapping has keyword arguments if `forward` has parameters of these names, and is
    one argument itself if not; so is a mapping at the end of a tuple.
    """
    positional = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    *first, last = positional
    if isinstance(last, Mapping) and _takes(network, tuple(first), last):
        return tuple(first), dict(last)
    return positional, {}


def _takes(network: nn.Module, positional: tuple[Any, ...], keywords: Mapping[Any, Any]) -> bool:
    if not all(isinstance(key, str) for key in keywords):
        return False
    try:
        inspect.signature(network.forward).bind(*positional, **keywords)
    except (TypeError, ValueError):
        return False
    return True


def suited_to(network: nn.Module, form: InputForm) -> InputForm:
    """The form with its floating-point inputs in a type in which the network computes.

    Data are often float64 just because that is numpy's default, and samples are kept in float32.
    """
    tensors = (*network.parameters(), *network.buffers())
    own = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}

    def chosen(dtype: torch.dtype) -> torch.dtype:
        if dtype in own:
            return dtype
        return next(iter(own)) if len(own) == 1 else torch.float32

    return form.with_float_types(chosen)


@torch.no_grad()
def answer(network: nn.Module, call: Call, packed: torch.Tensor, name: str) -> list[torch.Tensor]:
    """The tensors that count of what the untouched network returns in eval mode.

    Raises:
        NetworkError: If it does not run, returns no tensor, changes its buffers, or answers differently when it is
            called again.
        NonFiniteError: If it returns NaN or infinity.
    """
    training = {module: module.training for module in network.modules()}
    buffers = {key: buffer.clone() for key, buffer in network.named_buffers()}
    network.eval()
    try:
        first, second = (call(network, packed.clone()) for _ in range(2))
    except AmedError:
        raise
    except Exception as error:
        raise NetworkError(_does_not_run(network, call, packed, name, error)) from error
    finally:
        for module, mode in training.items():
            module.training = mode
        changed = [key for key, buffer in network.named_buffers() if not _same(buffer, buffers[key])]
        for key in changed:
            network.get_buffer(key).copy_(buffers[key])
    if changed:
        raise NetworkError(
            f"network {name!r} changes {', '.join(changed)} when it is called in eval mode, so its answers depend on "
            "what it saw before; let them stay as they are outside of training."
        )
    if not first:
        raise NetworkError(
            f"network {name!r} returns no tensor that can be found; return tensors, or tuples and dicts of them, "
            "or pick them with outputs=function."
        )
    for one, other in zip(first, second, strict=True):
        same = one.shape == other.shape
        # Kernels may sum in another order; what a network changes on purpose is larger.
        if not same or not torch.allclose(one.float(), other.float(), rtol=1e-4, atol=1e-5, equal_nan=True):
            by = "another shape" if not same else f"up to {float((one.float() - other.float()).abs().max()):.3g}"
            raise NetworkError(
                f"network {name!r} answers differently when it is called again on the same input (by {by}): it draws "
                "random numbers or keeps a state in eval mode; make it depend on its input alone."
            )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in first):
        culprit = first_non_finite(network, lambda: call(network, packed)) or "a function outside of its modules"
        raise NonFiniteError(f"network {name!r} returns NaN or infinity on the samples given: {culprit} does first.")
    return first


def _does_not_run(network: nn.Module, call: Call, packed: torch.Tensor, name: str, error: Exception) -> str:
    inputs = call.form.unpacked(packed)
    reason = (str(error).strip() or "no reason given").splitlines()[0].rstrip(".:")  # torch adds pages of signatures
    text = f"network {name!r} does not run on {call.form.described(len(packed))}: {type(error).__name__}: {reason}."
    if isinstance(inputs, torch.Tensor) and inputs.dim() == 4 and inputs.shape[3] in (1, 3) and inputs.shape[1] > 3:
        text += " These look like images (N, height, width, channels); .permute(0, 3, 1, 2) makes (N, channels, …)."
    if isinstance(inputs, Mapping) and not arguments_of(network, inputs)[1]:
        names = ", ".join(inspect.signature(network.forward).parameters)
        text += (
            f" The dict is one argument, as forward has not these parameters but {names}; name its entries like those, "
            "and labels 'labels'."
        )
    if isinstance(inputs, tuple) and len(inputs) > 1 and len(inspect.signature(network.forward).parameters) == 1:
        text += " These are several inputs, but forward takes one; join images to one tensor with torch.stack."
    return text


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num())


def tensors_of(outputs: Any) -> list[torch.Tensor]:
    """The tensors of a tree, also of dataclasses in it."""
    found: list[torch.Tensor] = []
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_of([getattr(leaf, field.name) for field in fields(leaf)])
    return found


def class_scores(returned: Any) -> torch.Tensor:
    """The class scores of what a network returns: the only floating-point tensor, or `logits`.

    Raises:
        NetworkError: If there are several, or none; what is returned is listed.
    """
    logits = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    if isinstance(logits, torch.Tensor):
        return logits
    floats = [tensor for tensor in tensors_of(returned) if tensor.is_floating_point()]
    if len(floats) == 1:
        return floats[0]
    raise NetworkError(
        f"the network returns {_listed(returned)}, and which of it are class scores is not known; pass "
        "outputs=function, which picks them (outputs=lambda returned: returned[0]), or takes all as values "
        "(outputs=lambda returned: returned)."
    )


def as_rows(returned: Any) -> Any:
    """The only floating-point tensor that a network returns, or several side by side, a row a sample."""
    floats = [tensor for tensor in tensors_of(returned) if tensor.is_floating_point() and tensor.dim()]
    if len(floats) < 2:
        return floats[0] if floats else returned
    return torch.cat([tensor.reshape(tensor.shape[0], -1) for tensor in floats], dim=1)


class OneTensor:
    """Picks by a user's function what counts, and puts several floating-point tensors side by side, a row a sample.

    Args:
        outputs: The function.

    Attributes:
        several: Whether there were several tensors, so that the row is no row of class scores.
    """

    def __init__(self, outputs: Outputs) -> None:
        self.outputs, self.several = outputs, False

    def __call__(self, returned: Any) -> Any:
        """See `Outputs`."""
        picked = self.outputs(returned)
        tensor = as_rows(picked)
        if isinstance(tensor, torch.Tensor) and not tensor.dim():
            raise NetworkError("outputs=function returns one number for a whole batch; return a row for each sample.")
        self.several = isinstance(tensor, torch.Tensor) and tensor is not picked and len(tensors_of(picked)) > 1
        return tensor


def _listed(returned: Any) -> str:
    """Names, types and shapes of what a network returns, for messages."""
    leaves, _ = pytree.tree_flatten_with_path(returned)
    entries = []
    for path, leaf in leaves:
        kind = type(leaf).__name__
        if isinstance(leaf, torch.Tensor):
            kind = f"{str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape)}"
        entries.append(f"{pytree.keystr(path)} {kind}".strip())
    return ", ".join(entries) or "nothing"
