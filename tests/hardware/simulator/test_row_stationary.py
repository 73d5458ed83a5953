"""The row-stationary mapping against the measured Eyeriss chip, and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amed_env import Layer, Precision
from amed_env.errors import WorkloadError
from amed_env.hardware import load_device
from amed_env.hardware.simulator.layer_arrays import LayerArrays
from amed_env.hardware.simulator.row_stationary import row_stationary_mapping

BATCH = 4
# AlexNet on the Eyeriss chip, batch 4, 200 MHz (Chen et al., JSSC 2017): output size, kernel, channels and filters of
# a group, groups, padded input size, MACs of the batch, active elements, processing latency in ms, DRAM MB.
MEASURED = {
    "CONV1": (55, 11, 3, 96, 1, 227, 421_660_800, 154, 16.5, 5.0),
    "CONV2": (27, 5, 48, 128, 2, 31, 895_795_200, 135, 39.2, 4.0),
    "CONV3": (13, 3, 256, 384, 1, 15, 598_081_536, 156, 21.8, 3.0),
    "CONV4": (13, 3, 192, 192, 2, 15, 448_561_152, 156, 16.0, 2.1),
    "CONV5": (13, 3, 192, 128, 2, 15, 299_040_768, 156, 10.0, 1.3),
}


def layer_of(name, batch=BATCH):
    out, kernel, channels, filters, groups, size, *_ = MEASURED[name]
    return Layer(
        name,
        "conv",
        m=batch * out**2,
        n=filters,
        k=channels * kernel**2,
        groups=groups,
        input_elements=batch * size**2 * channels * groups,
        kernel=(kernel, kernel),
        batch=batch,
    )


def mapping_of(layer, rows=12, cols=14):
    shapes = LayerArrays.of([layer], (1,)).shapes
    return row_stationary_mapping(shapes, np.ones(1, dtype=np.int64), rows, cols)


@pytest.mark.parametrize("name", MEASURED)
def test_the_elements_at_work_are_those_of_the_chip(name):
    # CONV1 works in strips of 14 rows here, the last of them narrower, and in two half-strips on the chip.
    assert mapping_of(layer_of(name)).active[0] == pytest.approx(MEASURED[name][7], rel=0.015)


def test_a_batch_is_not_folded_into_one_image():
    for name in MEASURED:
        one, four = (mapping_of(layer_of(name, batch)) for batch in (1, 4))
        assert four.cycles[0] == 4 * one.cycles[0] and four.active[0] == one.active[0]
        assert four.weight_reads[0] == 4 * one.weight_reads[0] and four.sum_writes[0] == 4 * one.sum_writes[0]


@pytest.mark.parametrize("name", MEASURED)
def test_compute_is_a_lower_bound_near_the_measured_processing(name):
    layer = layer_of(name)
    assert layer.macs == MEASURED[name][6]
    processing_ms = load_device("eyeriss").layer_cost(layer, Precision(16, 16))["compute_cycles"] / 200e3
    assert 1.04 <= MEASURED[name][8] / processing_ms <= 1.19


def test_external_traffic_is_above_the_compressed_traffic_of_the_chip():
    """The chip leaves out zeros: hardly any in the images of CONV1, 78 % of what CONV5 reads."""
    device = load_device("eyeriss")
    for name, low, high in (("CONV1", 0.95, 1.05), ("CONV2", 1.5, 1.8), ("CONV5", 2.9, 3.2)):
        bits = float(device.dram_traffic([layer_of(name)], [16], [16]).total_bits[0])
        assert low <= bits / 8 / 2**20 / MEASURED[name][9] <= high


def test_cycles_by_hand():
    # 13 x 13 outputs, 3 x 3 kernels: blocks of 3 x 13 elements, four above each other. 384 x 256 pairs of filters and
    # channels take 24,576 rounds; each makes 13 pixels of a row by 3 products.
    assert mapping_of(layer_of("CONV3", batch=1)).cycles[0] == 384 * 256 // 4 * 13 * 3
    # A fully connected layer is one row of one pixel: 12 x 14 filters or channels at a time.
    assert mapping_of(Layer("fc", "linear", m=1, n=100, k=50)).cycles[0] == -(-5000 // 168)
    # A kernel of 15 rows on an array of 12 is folded: 8 rows, twice.
    tall = Layer("tall", "conv", m=196, n=1, k=225, kernel=(15, 15))
    assert mapping_of(tall).cycles[0] == 2 * 15 * 14


@settings(max_examples=200, deadline=None)
@given(*[st.integers(1, 300)] * 3, st.integers(1, 7), st.integers(1, 16), st.integers(1, 16))
def test_no_element_does_more_than_one_product_a_cycle(m, n, channels, kernel, rows, cols):
    layer = Layer("l", "conv", m=m, n=n, k=channels * kernel**2, kernel=(kernel, kernel))
    mapping = mapping_of(layer, rows, cols)
    assert mapping.cycles[0] * rows * cols >= layer.macs
    assert 1 <= mapping.active[0] <= rows * cols
    assert mapping.ifmap_reads[0] >= 1 and mapping.weight_reads[0] >= n * channels * kernel**2
    assert mapping.sum_writes[0] >= m * n


def test_layers_beyond_int64_are_refused():
    huge = Layer("l", "conv", m=2**40, n=2**40, k=2**40, input_elements=1, weight_elements=1, output_elements=1)
    with pytest.raises(WorkloadError, match="int64"):
        mapping_of(huge)
