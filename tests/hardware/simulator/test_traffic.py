"""Traffic to external memory by hand, and against a slow search over the same loop orders in plain integers."""

from math import ceil

import numpy as np
import pytest
from hardware_samples import easy
from hypothesis import given, settings
from hypothesis import strategies as st

from amed_env import Layer, Precision
from amed_env.hardware.simulator.layer_arrays import LayerArrays
from amed_env.hardware.simulator.traffic import MemorySystem, plan_traffic


# The buffers of the easy device hold 8192 bits each, which are 256 sums; it has 4 columns.
@pytest.mark.parametrize(
    ("m", "n", "k", "ifmap", "weights"),
    [
        # Both fit: 16 x 8 inputs, 16 x 8 weights of 8 bits.
        (16, 16, 8, 1024, 1024),
        # Inputs do not fit (400 x 8 x 8 = 25,600 bits), weights do: each is read once.
        (400, 16, 8, 25600, 1024),
        # Weights do not fit, inputs do: each is read once.
        (16, 400, 8, 1024, 25600),
        # Neither fits: inputs 200 x 128 x 8 = 204,800, weights 32 x 128 x 8 = 32,768 bits. The sums of 16 filters
        # and 16 pixels stay: 2 tiles of filters read the inputs twice, 13 tiles of pixels the weights 13 times,
        # together 835,584. Keeping 8 filters (1,024 bits each) would read the inputs 4 times: 851,968.
        (200, 32, 128, 2 * 204800, 13 * 32768),
        # The other way round.
        (32, 200, 128, 13 * 32768, 2 * 204800),
        # The output buffer holds the sums of 8192 / (4 columns x 32 bits) = 64 pixels, fewer than the 73
        # pixels of 112 bits in the input buffer: 3 tiles of 130 pixels would read 1,120,000 bits of weights 3
        # times. Keeping 72 filters of 112 bits (18 groups of 4 columns; 73 would fit) takes 139 tiles, each
        # reading 14,560 bits of inputs, which is less.
        (130, 10000, 14, 139 * 14560, 1120000),
    ],
)
def test_external_traffic_by_hand(m, n, k, ifmap, weights):
    traffic = easy().dram_traffic([Layer("l", "conv", m=m, n=n, k=k)], 8, 8)
    assert (traffic.ifmap_bits[0], traffic.weight_bits[0]) == (ifmap, weights)
    assert (traffic.ofmap_read_bits[0], traffic.ofmap_write_bits[0]) == (0, m * n * 8)
    assert traffic.total_bits[0] == ifmap + weights + m * n * 8


def test_sums_that_do_not_fit_leave_and_come_back():
    # One filter of 20,000 weights in a buffer for 1,024; 300 pixels of 20,000 inputs in one for 1,024. Sums of 300
    # pixels take 9,600 bits. Weights stay, 1,024 at a time: 20 parts, 19 of which write and read all sums.
    layer = Layer("l", "conv", m=300, n=1, k=20000)
    traffic = easy().dram_traffic([layer], 8, 8)
    assert (traffic.ifmap_bits[0], traffic.weight_bits[0]) == (300 * 160000, 2 * 160000)
    assert traffic.ofmap_read_bits[0] == 0
    # Twice the weights are 160,000 bits more; 19 x 2 x 9,600 would be 364,800. With a buffer for two sums only:
    small = easy(("ofmap_kib: 1", "ofmap_kib: 0.0078125"))
    traffic = small.dram_traffic([layer], 8, 8)
    assert (traffic.ifmap_bits[0], traffic.weight_bits[0]) == (300 * 160000, 160000)
    assert traffic.ofmap_read_bits[0] == 19 * 9600
    assert traffic.ofmap_write_bits[0] == 19 * 9600 + 300 * 8


def test_half_of_a_double_buffer_holds_a_tile():
    double = easy(("source: made up\ndram", "double_buffered: true\n  source: made up\ndram"))
    halved = easy(
        ("ifmap_kib: 1", "ifmap_kib: 0.5"), ("weight_kib: 1", "weight_kib: 0.5"), ("ofmap_kib: 1", "ofmap_kib: 0.5")
    )
    layer = Layer("l", "conv", m=200, n=32, k=128)
    assert double.dram_traffic([layer], 8, 8) == halved.dram_traffic([layer], 8, 8)


def test_sums_in_external_memory():
    sums = easy(
        (
            "bandwidth_bits_per_cycle: 16",
            "bandwidth_bits_per_cycle: 16\n  outputs: sums\n  loads_sums: true\n  whole_columns: true",
        )
    )
    traffic = sums.dram_traffic([Layer("l", "conv", m=16, n=6, k=8)], 8, 2)
    # 6 filters fill 2 groups of 4 columns; 16 x 8 sums of 32 bits are loaded and stored.
    assert traffic.ofmap_read_bits[0] == traffic.ofmap_write_bits[0] == 16 * 8 * 32
    assert (traffic.ifmap_bits[0], traffic.weight_bits[0]) == (16 * 8 * 2, 6 * 8 * 8)


def test_compute_waits_for_what_stays_on_the_chip():
    layer = Layer("l", "conv", m=8, n=4, k=10, input_elements=50)
    exposed = easy(("bandwidth_bits_per_cycle: 16", "bandwidth_bits_per_cycle: 16\n  exposed_transfers: true"))
    metrics = exposed.layer_cost(layer, Precision(8, 8))
    # 50 inputs, 40 weights, 32 outputs of 8 bits all fit: 976 bits, 61 cycles; 31 cycles of compute; 7 overhead.
    assert (metrics["memory_cycles"], metrics["compute_cycles"], metrics["cycles"]) == (61, 31, 61 + 31 + 7)


def test_groups_are_tiled_one_by_one():
    # 100 groups, each far below the buffers, together far above: everything moves once.
    layer = Layer("l", "depthwise", m=64, n=1, k=9, groups=100)
    traffic = easy().dram_traffic([layer], 8, 8)
    assert traffic.ifmap_bits[0] == 100 * 64 * 9 * 8 and traffic.weight_bits[0] == 100 * 9 * 8


def least_traffic(m, n, k, w, a, memory):
    """Bits moved by the best loop order, one group, by trying them one after the other."""
    inputs, weights = m * k * a, n * k * w
    filters = ceil(n / memory.cols) * memory.cols if memory.whole_columns else n
    sums = m * filters * memory.accumulator_bits
    sums_fit, held = sums <= memory.ofmap_room, memory.ofmap_room // memory.accumulator_bits

    def cost(input_reads, weight_reads, parts=1):
        moved = inputs * (1 if inputs <= memory.ifmap_room else input_reads)
        moved += weights * (1 if weights <= memory.weight_room else weight_reads)
        return moved + (0 if sums_fit else 2 * sums * (parts - 1))

    whole = int(memory.weight_room * n // weights)
    if whole >= memory.cols:
        whole -= whole % memory.cols
    pixels = min(int(memory.ifmap_room * m // inputs), int(held // min(n, memory.cols)))
    costs = [cost(1, 1, ceil(inputs / memory.ifmap_room))]
    costs += [cost(ceil(n / max(1, whole)), 1)] if whole or inputs <= memory.ifmap_room else []
    costs += [cost(1, ceil(m / pixels))] if pixels else [cost(1, 1)] if weights <= memory.weight_room else []
    together = memory.cols
    while True:
        q = min(n, together)
        pixels = int(held // (ceil(q / memory.cols) * memory.cols if memory.whole_columns else q))
        depth = int(memory.weight_room // (q * w))
        pixels = max(pixels, 1) if together == memory.cols else pixels
        if pixels or weights <= memory.weight_room:
            costs.append(cost(ceil(n / q), ceil(m / max(1, pixels))))
        if depth or sums_fit:
            costs.append(cost(ceil(n / q), 1, ceil(k / max(1, depth))))
        if together >= n:
            break
        together *= 2
    first = sums if memory.loads_sums else 0
    last = sums if memory.writes_sums else m * filters * a
    return min(costs) + first + last


memories = st.builds(
    MemorySystem,
    ifmap_room=st.integers(64, 5000).map(float),
    weight_room=st.integers(64, 5000).map(float),
    ofmap_room=st.integers(64, 5000).map(float),
    cols=st.integers(1, 9),
    accumulator_bits=st.sampled_from([16, 32]),
    writes_sums=st.booleans(),
    loads_sums=st.booleans(),
    whole_columns=st.booleans(),
)
small, widths = st.integers(1, 60), st.integers(1, 16)


@settings(max_examples=300, deadline=None)
@given(small, small, small, widths, widths, memories)
def test_traffic_is_that_of_the_best_order(m, n, k, w, a, memory):
    layers = LayerArrays.of([Layer("l", "conv", m=m, n=n, k=k)], (1,))
    traffic = plan_traffic(layers, np.array([w]), np.array([a]), memory)
    assert traffic.total_bits[0] == pytest.approx(least_traffic(m, n, k, w, a, memory), rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(small, small, small, st.integers(1, 4), widths, widths, memories)
def test_traffic_is_never_below_what_must_move(m, n, k, groups, w, a, memory):
    layer = Layer("l", "conv", m=m, n=n, k=k, groups=groups)
    traffic = plan_traffic(LayerArrays.of([layer], (1,)), np.array([w]), np.array([a]), memory)
    assert traffic.ifmap_bits[0] >= layer.input_elements * a * (1 - 1e-12)
    assert traffic.weight_bits[0] >= layer.weight_elements * w * (1 - 1e-12)
    word = memory.accumulator_bits if memory.writes_sums else a
    assert traffic.ofmap_write_bits[0] >= layer.output_elements * word * (1 - 1e-12)
    assert 0 <= traffic.resident_bits[0] <= traffic.total_bits[0] * (1 + 1e-12)


@settings(max_examples=100, deadline=None)
@given(small, small, small, widths, widths, memories)
def test_boundless_buffers_move_everything_once(m, n, k, w, a, memory):
    layers = LayerArrays.of([Layer("l", "conv", m=m, n=n, k=k)], (1,))
    bits = np.array([w]), np.array([a])
    unlimited = MemorySystem(1e12, 1e12, 1e12, memory.cols, memory.accumulator_bits)
    assert plan_traffic(layers, *bits, unlimited).total_bits[0] == (m * k * a + n * k * w + m * n * a)
