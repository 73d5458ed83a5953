import numpy as np
import pytest

from amed_env.errors import DeviceError, UnknownNameError
from amed_env.hardware.simulator.arrays import SystolicArray
from amed_env.hardware.simulator.layer_arrays import GemmShapes
from amed_env.hardware.simulator.precision_models import PRECISION_MODELS, SerialPrecision, make_precision_model


def shapes(m, n, k, groups=1, positions=1):
    return GemmShapes(*(np.array([value], dtype=np.int64) for value in (m, n, k, groups, positions, 1)))


def cycles(model, shape, weight_bits, activation_bits, array=None):
    array = array or SystolicArray(16, 16, "ws")
    model = make_precision_model(model) if isinstance(model, str) else model
    effect = model.effect(np.array([weight_bits]), np.array([activation_bits]))
    return int((array.cycles(shape, effect.reduction_split) * effect.passes)[0])


# Products per cycle of one fused element by (weight, activation) width: Bit Fusion's simulator,
# get_perf_factor.
@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "at_once"),
    [
        (8, 8, 1),
        (4, 8, 2),
        (2, 8, 4),
        (8, 4, 2),
        (4, 4, 4),
        (2, 4, 8),
        (8, 2, 4),
        (4, 2, 8),
        (2, 2, 16),
        (1, 1, 16),
        (3, 3, 4),
        (5, 5, 1),
        (7, 2, 4),
    ],
)
def test_fusion_splits_as_published(weight_bits, activation_bits, at_once):
    effect = make_precision_model("fusion").effect(np.array(weight_bits), np.array(activation_bits))
    assert effect.reduction_split == at_once and effect.passes == 1


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "split", "passes"),
    [(16, 8, 1, 2), (8, 16, 1, 2), (16, 16, 1, 4), (16, 4, 2, 2), (9, 9, 1, 4), (16, 2, 4, 2)],
)
def test_fusion_runs_wide_operands_in_passes(weight_bits, activation_bits, split, passes):
    effect = make_precision_model("fusion").effect(np.array(weight_bits), np.array(activation_bits))
    assert (effect.reduction_split, effect.passes) == (split, passes)


def test_fusion_cycles_by_hand():
    # k = 1152 at 4 x 4 bits becomes 288 = 18 folds of 16 rows; 128 filters are 8 folds of 16 columns; a fold
    # takes 784 + 2 * 16 + 16 - 2 = 830 cycles.
    assert cycles("fusion", shapes(784, 128, 1152), 4, 4) == 18 * 8 * 830 - 1
    assert cycles("fusion", shapes(784, 128, 1152), 8, 8) == 478_079
    assert cycles("fusion", shapes(784, 128, 1152), 16, 16) == 4 * 478_079
    # 9 products in elements that do 16 at once still take one row.
    assert cycles("fusion", shapes(64, 1, 9, groups=5), 2, 2) == 5 * (64 + 32 + 16 - 2 - 1)


@pytest.mark.parametrize("bits", [(8, 8), (2, 2), (1, 8), (16, 16)])
def test_fixed_precision_never_changes_cycles(bits):
    assert cycles("fixed", shapes(784, 128, 1152), *bits) == 478_079


def test_widths_broadcast():
    grid = make_precision_model("fusion").effect(np.array([[2], [4], [8]]), np.array([[2, 4, 8]]))
    assert grid.reduction_split.tolist() == [[16, 8, 4], [8, 4, 2], [4, 2, 1]]


@pytest.mark.parametrize("model", PRECISION_MODELS)
@pytest.mark.parametrize("wrong", [0, -2, 17, 32])
def test_widths_out_of_range_are_refused(model, wrong):
    with pytest.raises(DeviceError, match=str(wrong)):
        make_precision_model(model).effect(np.array([8, wrong]), np.array([8]))
    with pytest.raises(DeviceError, match=str(wrong)):
        make_precision_model(model).effect(np.array([8]), np.array([8, wrong]))


def test_unknown_model_names_the_nearest():
    with pytest.raises(UnknownNameError, match="'fusion'"):
        make_precision_model("fussion")


@pytest.mark.parametrize(
    ("operands", "steps"), [("weights", lambda w, a: w), ("activations", lambda w, a: a), ("both", lambda w, a: w * a)]
)
@pytest.mark.parametrize("bits", [(1, 1), (2, 8), (8, 2), (16, 3)])
def test_serial_cycles_grow_with_the_serial_bits(operands, steps, bits):
    # Output stationary without gaps: 2 x 3 folds of 64 / 16 products, once for every step.
    array = SystolicArray(16, 8, "os", fill_and_drain=False)
    assert cycles(SerialPrecision(operands, lanes=16), shapes(32, 24, 64), *bits, array) == 6 * 4 * steps(*bits)


def test_serial_operands_are_read_again_for_bits_of_weights_only():
    weights, activations = np.array([4]), np.array([7])
    both = SerialPrecision("both").effect(weights, activations)
    assert (both.passes, both.ifmap_rereads, both.weight_rereads) == (28, 4, 1)
    stripes = SerialPrecision("activations").effect(weights, activations)
    assert (stripes.passes, stripes.ifmap_rereads, stripes.weight_rereads) == (7, 1, 1)


def test_direct_convolution_counts_folds_of_channels_at_every_kernel_position():
    array = SystolicArray(16, 32, "ws", convolution="direct", fill_and_drain=False)
    # 3 x 3 positions, 40 channels: 3 folds of 16 rows each; 33 filters: 2 folds of columns; 100 pixels.
    assert cycles("fixed", shapes(100, 33, 360, positions=9), 8, 8, array) == 9 * 3 * 2 * 100
    # 4 x 4 bits: 4 products at once, 10 rows.
    assert cycles("fusion", shapes(100, 33, 360, positions=9), 4, 4, array) == 9 * 1 * 2 * 100
    # Without a kernel it is a matrix product: 360 / 16 = 22.5 folds.
    assert cycles("fixed", shapes(100, 33, 360), 8, 8, array) == 23 * 2 * 100
    # Output stationary, the sum takes as long as it has products.
    stationary = SystolicArray(10, 33, "os", convolution="direct", fill_and_drain=False)
    assert cycles("fusion", shapes(100, 33, 360, positions=9), 4, 4, stationary) == 10 * 9 * 10
