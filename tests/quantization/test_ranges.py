import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amed_env.errors import UnsupportedPrecisionError
from amed_env.quantization.layers import prepared_width
from amed_env.quantization.ranges import quantize_weight, squared_error_scales
from amed_env.quantization.rounding import SUPPORTED_BITS, check_supported, integer_range, round_to_grid

WIDTHS = [bits for bits in SUPPORTED_BITS if bits < 32]
FLOATS = st.floats(-100, 100, width=32)


def squared_error(row, scale, low, high):
    """Of one row, in float64 and by numpy alone."""
    integers = np.clip(np.rint(row / scale), low, high)
    return float(np.square(integers * scale - row).sum())


def finest_error(row, low, high, steps=4000):
    """The least error over a fine grid of scales, up to the one that clips nothing."""
    largest = max(row.max() / high, row.min() / low if low else 0)
    return min(squared_error(row, scale, low, high) for scale in largest * np.linspace(0.02, 1.2, steps))


def samples(kind, count, seed):
    generator = np.random.default_rng(seed)
    values = {
        "normal": lambda: generator.normal(size=count),
        "heavy": lambda: generator.standard_t(2, size=count),
        "skewed": lambda: generator.exponential(size=count) - 0.5,
        "positive": lambda: np.abs(generator.normal(size=count)),
        "sparse": lambda: np.where(generator.random(count) < 0.2, generator.normal(size=count), 0.0),
        "outlier": lambda: np.append(generator.normal(size=count - 1), 25.0),
    }[kind]()
    return values.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("kind", ["normal", "heavy", "skewed", "positive", "sparse", "outlier"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_scales_are_as_good_as_a_fine_search(kind, bits):
    for seed in range(3):
        row = samples(kind, 40, seed)
        for unsigned in (False, True) if kind == "positive" else (False,):
            low, high = integer_range(bits, unsigned)
            scale = float(squared_error_scales(torch.tensor(row, dtype=torch.float32)[None], bits, unsigned))
            # At 8 bits all errors are so small that the search may be coarse.
            slack = 1e-4 * float(np.square(row).sum()) if bits == 8 else 1e-12
            assert squared_error(row, scale, low, high) <= finest_error(row, low, high) * 1.02 + slack


@pytest.mark.parametrize("bits", WIDTHS)
def test_integer_ranges(bits):
    assert integer_range(bits, unsigned=False) == (-(2**bits) // 2, 2**bits // 2 - 1)
    assert integer_range(bits, unsigned=True) == (0, 2**bits - 1)


@given(st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=1, max_size=5), st.sampled_from(WIDTHS))
def test_weight_integers_are_whole_and_within_range(rows, bits):
    integers, scales = quantize_weight(torch.tensor(rows), bits)
    low, high = integer_range(bits, unsigned=False)
    assert torch.equal(integers, integers.round())
    assert low <= integers.min() and integers.max() <= high
    assert scales.shape == (len(rows), 1)
    assert torch.isfinite(scales).all() and (scales != 0).all()
    assert bits < 8 or (scales > 0).all()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("tiny", [0.0, 1e-45, 1e-30])
def test_a_channel_of_zeros_stays_zero(bits, tiny):
    weight = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[1] = tiny
    integers, scales = quantize_weight(weight, bits)
    assert torch.isfinite(scales).all()
    assert (integers * scales)[1].abs().max() <= 2 * tiny
    assert (integers * scales)[0].abs().max() > 0.1


def test_channels_do_not_influence_each_other():
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[2] *= 1000
    _, together = quantize_weight(weight, 4)
    for channel in range(4):
        _, alone = quantize_weight(weight[channel : channel + 1], 4)
        assert torch.equal(alone[0], together[channel])


def test_a_long_positive_tail_gets_the_longer_side_of_the_grid():
    row = torch.tensor([[-1.0, 0.0, 1.0, 2.0]])
    integers, scales = quantize_weight(row, 2)
    assert torch.allclose(integers * scales, row)
    assert float(scales) == pytest.approx(-1.0)


def weight_error(weight, bits):
    integers, scales = quantize_weight(weight, bits)
    return float((integers * scales - weight).double().square().sum())


@given(st.lists(FLOATS, min_size=2, max_size=24), st.sampled_from(WIDTHS))
def test_the_error_is_at_most_that_of_a_grid_without_clipping(values, bits):
    weight = torch.tensor([values])
    step = float(weight.abs().max()) / (2 ** (bits - 1) - 1)
    assert weight_error(weight, bits) <= len(values) * (step / 2) ** 2 * 1.001 + 1e-9 * float(weight.square().sum())


@pytest.mark.parametrize("kind", ["normal", "heavy", "skewed", "positive", "sparse", "outlier"])
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=5)
def test_more_bits_are_never_worse(kind, seed):
    weight = torch.tensor(samples(kind, 48, seed), dtype=torch.float32)[None]
    errors = [weight_error(weight, bits) for bits in WIDTHS]
    assert all(wide <= narrow * (1 + 1e-6) for narrow, wide in itertools.pairwise(errors))


@pytest.mark.parametrize("bits", [0, 1, 9, 10, 15, 17, 31, 64, -8])
def test_widths_that_cannot_be_evaluated(bits):
    with pytest.raises(UnsupportedPrecisionError, match=rf"layer 'a': cannot quantize to {bits} bits; .*2, 3, 4"):
        check_supported(bits, "layer 'a'")


@given(
    st.lists(FLOATS, min_size=1, max_size=20), st.floats(0.0078125, 8, width=32), st.sampled_from(WIDTHS), st.booleans()
)
def test_rounding_is_to_the_nearest_step(values, scale, bits, unsigned):
    found = round_to_grid(torch.tensor(values), torch.tensor(scale), bits, unsigned).double().numpy()
    low, high = integer_range(bits, unsigned)
    assert low <= found.min() and found.max() <= high
    exact = np.clip(np.asarray(values) / scale, low, high)
    assert np.abs(found - exact).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(("bits", "held"), [(4, 8), (8, 127), (9, 256), (16, 32_767)])
def test_a_negative_scale_turns_the_lowest_integer_into_what_fits(bits, held):
    lowest = -(2 ** (bits - 1))
    integers = torch.tensor([[float(lowest), 3.0], [float(lowest), 3.0]])
    prepared = prepared_width(integers, torch.tensor([0.5, -0.5]), None, 1.0, bits)
    assert prepared.integers.tolist() == [[lowest, 3], [held, -3]] and prepared.scales.tolist() == [0.5, 0.5]
