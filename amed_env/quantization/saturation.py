"""Whether this processor's integer kernels add products in 16 bits, and how exact sums are had of them all the same.

Without VNNI instructions, x86 kernels multiply codes of 8 bits by integers of 8 bits and add two such products into 16
bits, which saturate (instruction VPMADDUBSW; Intel, "Lower Numerical Precision Deep Learning Inference and Training",
2018). Two ways around that return the same sums.

- *Halves.* Two products of codes up to 255 and integers up to 64 fit. So an integer that may be larger is written as
  the sum of two halves, and the layer reads its input twice: twice the work.
- *Watched pairs.* The kernels add the products of neighbouring channels, 2 k and 2 k + 1 (checked on this machine, see
  `pairs_apart`), and two large codes seldom stand side by side in what trained networks compute. So the layer reads its
  input once, and only samples with a pair of codes whose sum is above `pair_limit` are computed again in halves: in
  ResNet-20 0 to 9 in 100 of a layer.
"""

from __future__ import annotations

import math
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


def pair_limit(largest_code: int, integers: torch.Tensor) -> int:
    """The largest sum of two neighbouring codes whose products surely fit 16 bits, whatever the two codes are.

    Args:
        largest_code: The largest code that the layer reads.
        integers: Its weights, int8 (out, in, ...), with an even number of channels.

    Returns:
        The limit, at least `largest_code` and at most twice as much.
    """
    first, second = integers[:, 0::2].int(), integers[:, 1::2].int()
    larger, smaller = torch.maximum(first.abs(), second.abs()), torch.minimum(first.abs(), second.abs())
    # Products of opposite signs never leave 16 bits, as one of 255 and -128 does not.
    apart = (first.sign() * second.sign() > 0) & (largest_code * (larger + smaller) > _LARGEST_SUM)
    if not apart.any():
        return 2 * largest_code
    # Of all pairs of codes with one sum, the worst has as much as it can on the larger integer.
    room = (_LARGEST_SUM - largest_code * larger[apart]) // smaller[apart]
    return largest_code + int(room.min())


def above_limit(codes: torch.Tensor, limit: int) -> torch.Tensor:
    """Which samples have two neighbouring codes whose sum is above a limit.

    Args:
        codes: uint8, (N, C) or (N, C, H, W) in channels-last layout, C even.
        limit: Largest sum that is none.

    Returns:
        bool (N,).
    """
    rows = codes if codes.dim() == 2 else codes.permute(0, 2, 3, 1)
    rows = rows.reshape(len(codes), -1)
    if rows.storage_offset() % 2:
        rows = rows.clone()
    pairs = rows.view(torch.int16)
    # On both bytes of an integer at once: several times as fast as on every second code.
    sums = pairs.bitwise_right_shift(8).bitwise_and_(0xFF).add_(pairs.bitwise_and(0xFF))
    return sums.amax(dim=1) > limit


def pairs_apart(channels: int, *size: int) -> torch.Tensor:
    """Codes of which one of every two neighbouring channels is 255, by chance, and the other 0: uint8 (N, C, ...).

    With weights of one sign at the end of their range, sums of any two products but neighbours' leave 16 bits
    somewhere: a kernel that is exact on these codes adds neighbours, or does not saturate. There are as many samples as
    leave a chance below 0.75 ^ 64, one in a hundred million, that two channels are never 255 at once.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (-(-64 // math.prod(size)), channels // 2, *size)
    chosen = torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8).mul_(255)
    return torch.stack([chosen, 255 - chosen], dim=2).flatten(1, 2)


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
