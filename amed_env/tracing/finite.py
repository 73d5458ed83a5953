"""Where NaN and infinity come from: a network's own weights, or the first module that returns them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import nn

from amed_env.errors import NonFiniteError
from amed_env.support.text import first_few


def check_finite_weights(network: nn.Module, name: str) -> None:
    """Check all parameters of a network, and the statistics of its batch norms.

    Raises:
        NonFiniteError: If some hold NaN or infinity; they are named.
    """
    statistics = [(key, tensor) for key, tensor in network.named_buffers() if ".running_" in f".{key}"]
    # Other buffers may be infinite on purpose, such as masks.
    wrong = [key for key, tensor in (*network.named_parameters(), *statistics) if not _is_finite(tensor)]
    if wrong:
        raise NonFiniteError(
            f"network {name!r} has NaN or infinite weights in {first_few(wrong)}; repair or retrain it."
        )


def first_non_finite(module: nn.Module, inputs: torch.Tensor) -> str | None:
    """Name and type of the first module that turns finite inputs into NaN or infinity, or None if no module does.

    Args:
        module: The network; it is run once more.
        inputs: Float tensor (N, ...) that the network accepts.
    """
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(layer: nn.Module, read: tuple[Any, ...], keywords: dict[str, Any], written: Any) -> None:
            arguments = [value for value in (*read, *keywords.values()) if isinstance(value, torch.Tensor)]
            if isinstance(written, torch.Tensor) and all(map(_is_finite, arguments)) and not _is_finite(written):
                found.append(f"{name!r} ({type(layer).__name__})")

        return look

    handles = [
        child.register_forward_hook(hook(path), with_kwargs=True) for path, child in module.named_modules() if path
    ]
    try:
        with torch.no_grad(), suppress(NonFiniteError):  # a layer that refuses what it reads ends the run
            module(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None  # inner modules end, and so report, before those around them


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
