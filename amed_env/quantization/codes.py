"""Codes: integers that stand for values.

Codes are uint8 and stand for (code - zero point) x scale; signed values have the zero point 128. Narrower widths use
fewer codes of the same 8 bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from amed_env.quantization.layers import SIGNED_ZERO

WIDEST = 8
# Codes are uint8 whatever the sign of the values: oneDNN's convolutions take no signed inputs.
LARGEST_CODE = 255


class Format(NamedTuple):
    """What codes stand for, and which of them a width allows.

    Attributes:
        scale: Value of one step.
        zero_point: The code of zero.
        low, high: The smallest and the largest code.
    """

    scale: float
    zero_point: int
    low: int
    high: int

    @classmethod
    def of(cls, scale: float, bits: int, unsigned: bool) -> Format:
        """The codes of a width."""
        if unsigned:
            return cls(scale, 0, 0, 2**bits - 1)
        half = 2 ** (bits - 1)
        return cls(scale, SIGNED_ZERO, SIGNED_ZERO - half, SIGNED_ZERO + half - 1)

    def clamped(self, low: float, high: float) -> tuple[int, int]:
        """The smallest and the largest code of values that are clamped to a range."""
        least, most = self.low, self.high
        if low > -math.inf:
            least = min(most, max(least, self.zero_point + round(low / self.scale)))
        if high < math.inf:
            most = max(least, min(most, self.zero_point + round(high / self.scale)))
        return least, most


class Codes(NamedTuple):
    """A tensor of codes with its format."""

    tensor: torch.Tensor
    format: Format

    def integers(self) -> torch.Tensor:
        """The multiples of the scale that the codes stand for: float32."""
        numbers = self.tensor.float()
        return numbers.sub_(self.format.zero_point) if self.format.zero_point else numbers

    def values(self) -> torch.Tensor:
        """What the codes stand for: float32."""
        return self.integers().mul_(self.format.scale)


def quantize(values: torch.Tensor, written: Format, low: float = -math.inf, high: float = math.inf) -> Codes:
    """Float values as codes: clamped to a range, rounded half to even, and clamped to the codes that are allowed."""
    least, most = written.clamped(low, high)
    # In the order of the kernels: times the inverse scale, plus the zero point, then rounded. Dividing, or rounding
    # before the zero point is added, goes to the other code where a value lies in the middle between two.
    codes = values.mul(1.0 / written.scale).add_(written.zero_point).round_().clamp_(least, most).to(torch.uint8)
    return Codes(codes, written)
