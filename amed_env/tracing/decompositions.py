"""Operations of torch that are taken apart, so that the products in them are seen: each computes what torch does."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

aten = torch.ops.aten

_TAKEN_APART = (
    # Linear layers, one a time step.
    *("gru.input", "lstm.input", "rnn_tanh.input", "rnn_relu.input"),
    *("gru_cell.default", "lstm_cell.default", "rnn_tanh_cell.default", "rnn_relu_cell.default"),
    *("einsum.default", "tensordot.default", "inner.default"),
)
"""Taken apart by torch, so that their products and weights are seen."""


@cache
def decompositions() -> dict[Any, Any]:
    """What is taken apart into products: recurrent layers, attention, and sums over indices."""
    table = torch.export.default_decompositions()
    chosen: dict[Any, Any] = {}
    for operation in list(table):
        if str(operation).removeprefix("aten.") in _TAKEN_APART:
            chosen[operation] = table[operation]
    chosen[aten.scaled_dot_product_attention.default] = _attention
    chosen[aten.baddbmm.default] = _added_product
    chosen[aten.addmm.default] = _added_matrix
    chosen[aten.embedding_renorm.default] = _bounded_rows
    return chosen


def _added_matrix(
    added: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> Any:
    """`torch.addmm` with factors as a product and what is added to it; without them it is a linear layer as it is."""
    if alpha == beta == 1:
        return NotImplemented
    return _added_product(added, left, right, beta=beta, alpha=alpha)


def _bounded_rows(table: torch.Tensor, indices: torch.Tensor, max_norm: float, norm_type: float) -> torch.Tensor:
    """An embedding's table whose rows are scaled down to a norm: all of them, as only those looked up count."""
    norms = table.norm(norm_type, 1, keepdim=True)
    return torch.where(norms > max_norm, table * (max_norm / (norms + 1e-7)), table)


def _added_product(
    added: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    """`torch.baddbmm` and its like as a product and what is added to it."""
    product = torch.matmul(left, right)
    product = product if alpha == 1 else product * alpha
    return product if beta == 0 else product + (added if beta == 1 else added * beta)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attention as its two products and the softmax between them (Vaswani et al., arXiv 1706.03762)."""
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    factor = query.size(-1) ** -0.5 if scale is None else scale
    scores = torch.matmul(query * factor, key.transpose(-2, -1))
    if is_causal:
        allowed = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(allowed.logical_not(), -torch.inf)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(attn_mask.logical_not(), -torch.inf)
        else:
            scores = scores + attn_mask
    # Where a mask leaves nothing to attend to, torch's attention returns zero.
    weights = scores.softmax(-1) if attn_mask is None else aten._safe_softmax.default(scores, -1)
    return torch.matmul(weights, value)
