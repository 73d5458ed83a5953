"""Where NaN and infinity come from: a network's own weights, or the first module that returns them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import fx, nn

from amed_env.errors import NonFiniteError
from amed_env.support.text import first_few
from amed_env.tracing.capture import module_path


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


def first_non_finite(module: nn.Module, run: Callable[[], object]) -> str | None:
    """Name and type of the first module that turns finite inputs into NaN or infinity, or None if no module does.

    Args:
        module: The network.
        run: Runs it once more.
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
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None  # inner modules end, and so report, before those around them


class _FirstNonFinite(fx.Interpreter):
    """Runs a program, and notes the first operation that makes NaN or infinity of finite values."""

    found: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if self.found is None and n.op not in ("placeholder", "get_attr", "output"):
            read = [self.env[node] for node in n.all_input_nodes if isinstance(self.env[node], torch.Tensor)]
            if isinstance(result, torch.Tensor) and not _is_finite(result) and all(map(_is_finite, read)):
                self.found = n
        return result


def first_non_finite_operation(program: fx.GraphModule, inputs: torch.Tensor) -> str | None:
    """Module and name of the first operation that turns finite values into NaN or infinity, or None if none does.

    Args:
        program: A traced network; it is run once more.
        inputs: Tensor (N, ...) that it accepts.
    """
    interpreter = _FirstNonFinite(program, garbage_collect_values=False)
    with torch.no_grad(), suppress(NonFiniteError):  # a layer that refuses what it reads ends the run
        interpreter.run(inputs)
    node = interpreter.found
    if node is None:
        return None
    if node.op == "call_module":
        return f"{str(node.target)!r} ({type(program.get_submodule(str(node.target))).__name__})"
    operation = str(node.target).removeprefix("aten.").partition(".")[0]
    return f"{module_path(node) or 'forward'!r} ({operation})"


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
