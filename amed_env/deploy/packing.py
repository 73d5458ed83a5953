"""Weights as a stream of bits: what an allocation promises, to the byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def mirrored_channels(integers: npt.NDArray[Any], bits: int) -> npt.NDArray[np.bool_]:
    """Channels (first axis) that hold +2^(bits-1), which two's complement lacks: bool (channels,).

    Their scale was negative once, so they hold no -2^(bits-1): counted from one less, they fit.
    """
    return np.asarray(integers.reshape(len(integers), -1).max(axis=1) > 2 ** (bits - 1) - 1)


def unsigned_codes(integers: npt.NDArray[Any], bits: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Integers of at most 8 bits as unsigned codes.

    Args:
        integers: (channels, …).
        bits: Their width.

    Returns:
        uint8 codes of the same shape, below 2^bits, and the code that stands for zero in each channel.
    """
    zeros = 2 ** (bits - 1) - mirrored_channels(integers, bits).astype(np.int64)
    codes = integers.astype(np.int64) + zeros.reshape(-1, *[1] * (integers.ndim - 1))
    assert codes.min() >= 0 and codes.max() < 2**bits
    return codes.astype(np.uint8), zeros


def bit_stream(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Codes below 2^bits one after the other, lowest bit first: uint8, ceil(codes · bits / 8) bytes."""
    single = codes.reshape(-1, 1) >> np.arange(bits, dtype=np.uint8) & 1
    return np.packbits(single.reshape(-1), bitorder="little")
