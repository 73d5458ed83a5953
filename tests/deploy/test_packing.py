"""Weights as bits: read back by arithmetic of its own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from amed_env.deploy.packing import bit_stream, mirrored_channels, unsigned_codes


@given(st.integers(1, 8), st.integers(0, 40), st.randoms(use_true_random=False))
def test_a_stream_holds_the_codes_and_no_byte_more(bits, count, random):
    codes = np.array([random.randrange(2**bits) for _ in range(count)], dtype=np.uint8)
    stream = bit_stream(codes, bits)
    assert len(stream) == -(-count * bits // 8)
    number = int.from_bytes(stream.tobytes(), "little")
    assert [number >> (bits * i) & (2**bits - 1) for i in range(count)] == codes.tolist()


@given(st.integers(2, 8), st.randoms(use_true_random=False))
def test_mirrored_channels_fit_too(bits, random):
    half = 2 ** (bits - 1)
    plain = [random.randrange(-half, half) for _ in range(6)]
    mirrored = [half, *(random.randrange(-half + 1, half + 1) for _ in range(5))]
    integers = np.array([plain, mirrored]).reshape(2, 2, 3)
    codes, zeros = unsigned_codes(integers, bits)
    np.testing.assert_array_equal(codes.astype(int) - zeros.reshape(2, 1, 1), integers)
    assert codes.max() < 2**bits and mirrored_channels(integers, bits).tolist() == [False, True]
