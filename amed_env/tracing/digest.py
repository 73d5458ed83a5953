"""What a program computes, as a digest: two networks of the same weights may do different things with them."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import fx, nn


def program_digest(module: fx.GraphModule) -> str:
    """SHA-256 (hex) of a program's operations and what each reads; names of nodes and the weights are left out."""
    numbers: dict[fx.Node, int] = {}
    digest = hashlib.sha256()

    def numbered(node: fx.Node) -> Any:
        return f"%{numbers[node]}"

    for node in module.graph.nodes:
        arguments = fx.node.map_arg((node.args, node.kwargs), numbered)
        target = "" if node.op in ("placeholder", "output") else _text(node.target)
        options = _options(module.get_submodule(str(node.target))) if node.op == "call_module" else ""
        digest.update(f"{node.op} {target} {arguments} {options}\n".encode())
        numbers[node] = len(numbers)
    return digest.hexdigest()


def _options(layer: nn.Module) -> str:
    """Stride, padding and whatever else a layer has besides its tensors."""
    plain = {name: value for name, value in vars(layer).items() if isinstance(value, bool | int | float | str | tuple)}
    plain.pop("training", None)
    return f"{type(layer).__name__} {sorted(plain.items())}"


def _text(target: Any) -> str:
    """An operation by its name; the text of a Python function has its address in it."""
    name = getattr(target, "__qualname__", None)
    return str(target) if name is None else f"{getattr(target, '__module__', '')}.{name}"
