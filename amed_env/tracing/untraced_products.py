"""Products of a network that are in none of its layers: attention, fixed filters, whatever `forward` multiplies itself.

They are neither quantized nor part of any cost, so they must not pass unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_MATRIX_PRODUCTS: frozenset[Any] = frozenset(
    {
        torch.matmul,
        torch.Tensor.matmul,
        torch.Tensor.__matmul__,
        torch.Tensor.__rmatmul__,
        torch.mm,
        torch.Tensor.mm,
        torch.mv,
        torch.Tensor.mv,
        torch.bmm,
        torch.Tensor.bmm,
    }
)
_SUMS_WITH_PRODUCTS: frozenset[Any] = frozenset(
    {torch.addmm, torch.Tensor.addmm, torch.baddbmm, torch.Tensor.baddbmm, torch.addmv, torch.Tensor.addmv}
)
_OTHERS: frozenset[Any] = frozenset(
    {
        torch.einsum,
        torch.tensordot,
        F.linear,
        F.bilinear,
        F.scaled_dot_product_attention,
        F.conv1d,
        F.conv2d,
        F.conv3d,
        F.conv_transpose1d,
        F.conv_transpose2d,
        F.conv_transpose3d,
    }
)


class ProductWatch(TorchFunctionMode):
    """While it is active, notes the products that a network computes outside of given modules.

    Args:
        module: The network, which runs once while this is active.
        layers: Kinds of modules whose own products are accounted for.

    Attributes:
        found: Path of a module (empty: the network) and name of a function, to multiply-accumulate operations of the
            whole batch; None where they are not known.
    """

    def __init__(self, module: nn.Module, layers: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.found: dict[tuple[str, str], int | None] = {}
        self._module, self._layers = module, layers
        self._running: list[tuple[str, bool]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> ProductWatch:
        for path, child in self._module.named_modules():
            known = isinstance(child, self._layers)
            self._handles.append(child.register_forward_pre_hook(self._enters(path, known)))
            self._handles.append(child.register_forward_hook(self._leaves, always_call=True))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, and note it if it is a product outside of the layers."""
        result = func(*args, **(kwargs or {}))
        inside = any(known for _, known in self._running)
        if not inside and (func in _MATRIX_PRODUCTS or func in _SUMS_WITH_PRODUCTS or func in _OTHERS):
            key = self._running[-1][0] if self._running else "", func.__name__.strip("_")
            macs, before = _macs(func, args, result), self.found.get(key, 0)
            self.found[key] = None if macs is None or before is None else before + macs
        return result

    def _enters(self, path: str, known: bool) -> Callable[..., None]:
        return lambda *_: self._running.append((path, known))

    def _leaves(self, *_: Any) -> None:
        self._running.pop()


def _macs(function: Any, arguments: tuple[Any, ...], result: Any) -> int | None:
    """Multiply-accumulate operations of a product of matrices: each number of the result sums a row."""
    factor = 0 if function in _MATRIX_PRODUCTS else 1 if function in _SUMS_WITH_PRODUCTS else None
    if factor is None or len(arguments) <= factor or not isinstance(result, torch.Tensor):
        return None
    return result.numel() * int(arguments[factor].shape[-1])
