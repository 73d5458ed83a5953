"""Whether this processor's integer kernels add products in 16 bits, and how exact sums are had of them all the same.

Without VNNI instructions, x86 kernels multiply codes of 8 bits by integers of 8 bits and add two such products into 16
bits, which saturate (instruction VPMADDUBSW; Intel, "Lower Numerical Precision Deep Learning Inference and Training",
2018). Two products of codes up to 255 and integers up to 64 fit. So an integer that may be larger is written as the sum
of two halves, and the layer reads its input twice: twice the work, for layers of 8-bit weights only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional as F

from amed_env.quantization.layers import channels_last

_LARGEST_SUM = 2**15 - 1
_CHANNELS = 32


@lru_cache(maxsize=2)
def sums_saturate(depthwise: bool) -> bool:
    """Whether sums of the largest products come out wrong on this machine.

    Args:
        depthwise: Ask about kernels of depthwise convolutions, which are others.
    """
    read = torch.full((1, _CHANNELS, 5, 5), 255, dtype=torch.uint8)
    shape = ([1, 1], [1, 1], [1, 1], _CHANNELS if depthwise else 1)
    ones, zeros = torch.ones(_CHANNELS), torch.zeros(_CHANNELS, dtype=torch.int64)
    # Both ends of int16 are asked: 2 * 255 * 127 = 64,770 is above 32,767, and 2 * 255 * -128 below -32,768.
    for integer in (127, -128):
        weight = torch.full((_CHANNELS, 1 if depthwise else _CHANNELS, 3, 3), integer, dtype=torch.int8)
        packed = torch.ops.onednn.qconv_prepack(weight, ones, 1.0, 0, *shape, None)
        tail: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
        codes = channels_last(read)
        found = torch.ops.onednn.qconv2d_pointwise(codes, 1.0, 0, packed, ones, zeros, None, *shape, *tail)
        expected = F.conv2d(read.double(), weight.double(), padding=1, groups=shape[-1])
        if not torch.equal(found.double(), expected):
            return True
    return False


def two_products_fit(largest_code: int, integers: torch.Tensor) -> bool:
    """Whether 16 bits hold the sum of any two products of a code and one of the integers (int8)."""
    largest = max(-int(integers.min()), int(integers.max()))
    return 2 * largest_code * largest <= _LARGEST_SUM


def halves(integers: torch.Tensor) -> torch.Tensor:
    """Weights (out, in, ...) as (out, 2 in, ...): two halves, whose sum they are, for an input that is read twice."""
    # Rounded down, so that -128 becomes twice -64 and 127 becomes 63 + 64, which all fit.
    first = integers.div(2, rounding_mode="floor")
    return torch.cat([first, integers - first], dim=1)


def twice(tensor: torch.Tensor, dim: int, groups: int = 1) -> torch.Tensor:
    """An input whose channels come twice, within each group of a convolution.

    Args:
        tensor: The input.
        dim: Where its channels are.
        groups: Groups of channels.
    """
    if groups == 1:
        return torch.cat([tensor, tensor], dim=dim)
    parts = tensor.unflatten(dim, (groups, -1))
    return torch.cat([parts, parts], dim=dim + 1).flatten(dim, dim + 1)
