"""Symmetric integer grids, and rounding onto them."""

from __future__ import annotations

import torch

from amed_env.errors import UnsupportedPrecisionError
from amed_env.problem.allocation import FLOAT_BITS

SUPPORTED_BITS = (*range(2, 9), 16, FLOAT_BITS)
"""Widths that can be evaluated; one bit would need a binarised network."""


def check_supported(bits: int, where: str) -> int:
    """Return a width that can be evaluated.

    Raises:
        UnsupportedPrecisionError: If it is not one of `SUPPORTED_BITS`.
    """
    if bits not in SUPPORTED_BITS:
        raise UnsupportedPrecisionError(
            f"{where}: cannot quantize to {bits} bits; supported widths are "
            f"{', '.join(map(str, SUPPORTED_BITS))} (32 is float)."
        )
    return bits


def integer_range(bits: int, unsigned: bool) -> tuple[int, int]:
    """Smallest and largest integer of a width: two's complement, or from zero on."""
    return (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def round_to_grid(values: torch.Tensor, scale: torch.Tensor, bits: int, unsigned: bool) -> torch.Tensor:
    """Integers (as floats) that stand for `values`: round half to even of values / scale, clamped to the width.

    Args:
        values: Float tensor of any shape.
        scale: Float tensor without zeros that broadcasts against `values`.
        bits: Width of the integers.
        unsigned: Whether the grid starts at zero.
    """
    low, high = integer_range(bits, unsigned)
    return torch.clamp(torch.round(values / scale), low, high)
