"""From sums of integers to values: in the order in which this processor's integer kernels multiply.

A sum is multiplied by the activation's scale and by the channel's. With AVX512-VNNI oneDNN's kernels do one after the
other; with AVX2 they multiply both scales first. The last bit differs, and whatever it decides between two codes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch


@lru_cache(maxsize=1)
def multiplies_scales_first() -> bool:
    """Whether the kernels of this processor multiply both scales before the sum is multiplied; found out by trying."""
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 128, (64, 16), generator=generator).to(torch.uint8)  # nothing saturates
    weights = torch.randint(-64, 64, (32, 16), generator=generator).to(torch.int8)
    scales = torch.rand(32, generator=generator) + 0.1
    step = 0.37
    try:
        packed = torch.ops.onednn.qlinear_prepack(weights, None)
        zeros = torch.zeros(32, dtype=torch.int64)
        tail: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")
        found = torch.ops.onednn.qlinear_pointwise(codes, step, 0, packed, scales, zeros, *tail)
    except RuntimeError:
        return False
    sums = codes.float() @ weights.float().t()
    return torch.equal(found, sums * (scales * step))


def bias_integers(bias: torch.Tensor, step: float, scales: torch.Tensor) -> torch.Tensor:
    """Biases as integer-only devices add them to sums: multiples of the product of both scales, in 32 bits.

    Args:
        bias: float32 (channels,).
        step: The activation's scale.
        scales: The channels' scales, float32 (channels,).

    Returns:
        int64 (channels,), within the range of 32 bits.
    """
    integers = (bias.double() / (scales.double() * step)).round()
    return integers.clamp(-(2**31), 2**31 - 1).long()


def rescale_(sums: torch.Tensor, step: float, scales: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`rescaled` in place, where the sums are needed no more."""
    values = sums.mul_(scales * step) if multiplies_scales_first() else sums.mul_(step).mul_(scales)
    return values if bias is None else values.add_(bias)


def rescaled(sums: torch.Tensor, step: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The values of sums, as the kernels compute them.

    Args:
        sums: Sums of products of integers, float.
        step: The activation's scale.
        scales: The channels' scales; broadcasts with the sums.
        bias: The channels' biases, or None; broadcasts likewise.
    """
    values = sums * (scales * step) if multiplies_scales_first() else sums * step * scales
    return values if bias is None else values + bias
