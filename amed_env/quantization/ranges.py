"""Scales that minimise the squared rounding error, for weights per output channel and for activations per tensor.

A grid of clipping thresholds is searched first (the error has several local minima at low widths), then the best one is
refined by alternating between rounding and the least-squares scale of the rounded integers, which never raises the
error (Lloyd's algorithm with a uniform codebook).
"""

from __future__ import annotations

import torch

from amed_env.quantization.rounding import integer_range, round_to_grid

# Thresholds of the first search, 1.2 % of the largest magnitude apart; the refinement goes on from the best.
CANDIDATES = 80
SMALLEST_CLIP = 0.15  # of the largest magnitude; 2-bit grids clip that deep on heavy-tailed tensors
REFINEMENTS = 8


def squared_error_scales(rows: torch.Tensor, bits: int, unsigned: bool = False) -> torch.Tensor:
    """The scale of every row that minimises its squared rounding error.

    Args:
        rows: Float tensor of shape (R, K).
        bits: Width of the integers.
        unsigned: Whether the grid starts at zero.

    Returns:
        Positive float tensor of shape (R, 1); 1 where a row is all zero, so that nothing divides by zero.
    """
    low, high = integer_range(bits, unsigned)
    # The scale at which nothing is clipped; two's complement has one more step below zero than above.
    needed = rows.amax(dim=1, keepdim=True) / high
    if not unsigned:
        needed = torch.maximum(needed, rows.amin(dim=1, keepdim=True) / low)
    needed = torch.where(needed > 0, needed, torch.ones_like(needed))
    best_scale, best_error = needed, _error(rows, needed, bits, unsigned)
    # Up to 1.1: a scale slightly above what clips nothing may place the points better.
    for ratio in torch.linspace(SMALLEST_CLIP, 1.1, CANDIDATES).tolist():
        best_scale, best_error = _keep_better(rows, needed * ratio, best_scale, best_error, bits, unsigned)
    for _ in range(REFINEMENTS):
        integers = round_to_grid(rows, best_scale, bits, unsigned)
        energy = (integers * integers).sum(dim=1, keepdim=True)
        fitted = (integers * rows).sum(dim=1, keepdim=True) / energy.clamp_min(1.0)
        fitted = torch.where(fitted > 0, fitted, best_scale)
        best_scale, best_error = _keep_better(rows, fitted, best_scale, best_error, bits, unsigned)
    return best_scale


def quantize_weight(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers and scales of a weight, one scale an output channel.

    Two's complement has one more step below zero than above. A channel whose longer tail is positive gets a negative
    scale, which turns that step to where it is needed: at 3 bits this is worth 27 points of accuracy on ResNet-20. At
    8 bits and more the step makes no difference, and scales stay positive.

    Args:
        weight: Float tensor of shape (out_channels, …).
        bits: Width of the integers.

    Returns:
        Integers as floats, of the weight's shape, and scales of shape (out_channels, 1, …); none of them is zero.
    """
    rows = weight.reshape(weight.shape[0], -1)
    scales = squared_error_scales(rows, bits)
    if bits < 8:
        mirrored = squared_error_scales(-rows, bits)
        better = _error(-rows, mirrored, bits, False) < _error(rows, scales, bits, False)
        scales = torch.where(better, -mirrored, scales)
    integers = round_to_grid(rows, scales, bits, unsigned=False)
    return integers.reshape(weight.shape), scales.reshape(-1, *[1] * (weight.dim() - 1))


def _error(rows: torch.Tensor, scale: torch.Tensor, bits: int, unsigned: bool) -> torch.Tensor:
    return (round_to_grid(rows, scale, bits, unsigned) * scale - rows).square().sum(dim=1, keepdim=True)


def _keep_better(
    rows: torch.Tensor,
    scale: torch.Tensor,
    best_scale: torch.Tensor,
    best_error: torch.Tensor,
    bits: int,
    unsigned: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    error = _error(rows, scale, bits, unsigned)
    better = error < best_error
    return torch.where(better, scale, best_scale), torch.where(better, error, best_error)
