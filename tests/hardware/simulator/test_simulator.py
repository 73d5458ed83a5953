"""The simulator against costs worked out by hand, and its promises on the shipped devices."""

import math

import numpy as np
import pytest
from hardware_samples import EASY_YAML, RESNET18, RESNET20, SMALL, easy, known_device
from hypothesis import given, settings
from hypothesis import strategies as st

from amed_env import BitAllocation, Layer, Precision, Workload
from amed_env.errors import AllocationError, UnsupportedPrecisionError, WorkloadError
from amed_env.hardware import cost_table, evaluate_cost, load_device, parse_device_config
from amed_env.hardware.simulator.simulator import mac_energy_by_bits
from amed_env.problem.workload import KINDS

SHIPPED = ["bitfusion", "bitfusion-published", "bit-serial", "edge-tpu-like", "eyeriss", "eyeriss-ws", "systolic-32"]


def cost_of(device, layer, weight_bits, activation_bits=None):
    workload = Workload("one", (layer,))
    return evaluate_cost(device, workload, workload.uniform(weight_bits, activation_bits)).layers[0]


def test_a_layer_by_hand():
    # 8 pixels, 4 filters, 10 products each; 4 x 4 output stationary: 2 folds of 10 + 4 + 4 - 2 = 16
    # cycles.
    layer = Layer("l", "conv", m=8, n=4, k=10, input_elements=50)
    cost = cost_of(easy(), layer, 4, 8)
    assert cost.metrics["compute_cycles"] == 2 * 16 - 1
    # Traffic: 50 inputs of 8 bits, 40 weights of 4 bits, 32 outputs of 8 bits; all fit. 16 bits a cycle.
    bits_in, bits_weights, bits_out = 400, 160, 256
    assert cost.metrics["memory_cycles"] == math.ceil(816 / 16) == 51
    assert cost.metrics["cycles"] == 51 + 7
    assert cost.bound == "memory"
    assert cost.metrics["latency_ms"] == pytest.approx(58 / 1e6)  # 1000 MHz
    # 4-bit weights use the 8-bit entry of the table: 320 MACs of 16 pJ.
    arithmetic = 320 * 16
    # One fold of columns: inputs are read once (80 elements), weights twice (2 x 40), outputs are written
    # once.
    on_chip = 80 * 8 * 0.5 + bits_in * 0.25 + 80 * 4 * 2 + bits_weights * 3 + 32 * 32 * (0.125 + 1)
    external = (bits_in + bits_weights + bits_out) * 10
    assert cost.metrics["energy_uj"] == pytest.approx((arithmetic + on_chip + external) * 1e-6, rel=1e-12)
    assert cost.metrics["weight_kib"] == 40 * 4 / 8 / 1024
    assert cost.metrics["bops"] == 320 * 4 * 8


def test_arithmetic_of_unequal_widths_is_the_geometric_mean():
    silent = [
        (f"{buffer}_{way}_pj_per_bit: {value}", f"{buffer}_{way}_pj_per_bit: 0")
        for buffer, way, value in [
            ("ifmap", "read", "0.5"),
            ("ifmap", "write", "0.25"),
            ("weight", "read", "2"),
            ("weight", "write", "3"),
            ("ofmap", "read", "0.125"),
            ("ofmap", "write", "1"),
        ]
    ]
    device = easy(*silent, ("    pj_per_bit: 10", "    pj_per_bit: 0"))
    layer = Layer("l", "conv", m=8, n=4, k=10)
    assert cost_of(device, layer, 2, 2).metrics["energy_uj"] == pytest.approx(320e-6)
    assert cost_of(device, layer, 2, 8).metrics["energy_uj"] == pytest.approx(4 * 320e-6)


def test_energies_between_the_table():
    config = parse_device_config(EASY_YAML)
    assert mac_energy_by_bits(config.energy.mac)[1:].tolist() == [1, 1, 16, 16, 16, 16, 16, 16]
    text = EASY_YAML.replace("between: next", "between: interpolate")
    between = mac_energy_by_bits(parse_device_config(text).energy.mac)[1:]
    # From 1 pJ at 2 bits to 16 pJ at 8 bits the energy is the square of half the width.
    assert between == pytest.approx([1, 1, 2.25, 4, 6.25, 9, 12.25, 16])


def test_compute_cycles_are_the_closed_form():
    device = load_device("systolic-32")
    for bits in (2, 8):
        cost = evaluate_cost(device, RESNET18, RESNET18.uniform(bits))
        assert cost["compute_cycles"] == 2_133_315
    # One column of one element product per channel: 16 x ((2 folds of 9 + 32 + 32 - 2) - 1).
    depthwise = Layer("d", "depthwise", m=64, n=1, k=9, groups=16)
    assert cost_of(device, depthwise, 8).metrics["compute_cycles"] == 16 * (2 * 71 - 1)
    grouped = Layer("g", "conv", m=64, n=40, k=9, groups=3)
    assert cost_of(device, grouped, 8).metrics["compute_cycles"] == 3 * (4 * 71 - 1)


def test_latency_follows_clock_and_bandwidth():
    slow = easy(("clock_mhz: 1000", "clock_mhz: 500"))
    narrow = easy(("bandwidth_bits_per_cycle: 16", "bandwidth_bits_per_cycle: 0.5"))
    layer = SMALL.layers[1]
    normal = cost_of(easy(), layer, 8).metrics
    assert cost_of(slow, layer, 8).metrics["latency_ms"] == pytest.approx(2 * normal["latency_ms"])
    assert cost_of(narrow, layer, 8).metrics["memory_cycles"] == 32 * normal["memory_cycles"]
    assert cost_of(narrow, layer, 8).bound == "memory"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_devices_say_what_bound_held(name):
    cost = evaluate_cost(load_device(name), RESNET18, RESNET18.uniform(8))
    for layer in cost.layers:
        metrics = layer.metrics
        assert layer.bound == ("memory" if metrics["memory_cycles"] > metrics["compute_cycles"] else "compute")
        assert metrics["cycles"] == max(metrics["memory_cycles"], metrics["compute_cycles"])


@pytest.mark.parametrize("workload", [RESNET20, SMALL], ids=lambda workload: workload.name)
@pytest.mark.parametrize("name", ["bitfusion", "eyeriss-ws"])
def test_half_the_latency_is_a_budget_with_a_choice(name, workload):
    device = load_device(name)
    latency = {bits: evaluate_cost(device, workload, workload.uniform(bits))["latency_ms"] for bits in (2, 4, 8)}
    assert latency[2] < latency[4] < latency[8]
    assert latency[2] < 0.5 * latency[8]


def test_fixed_precision_only_saves_traffic():
    device = load_device("systolic-32")
    eight, two = (evaluate_cost(device, RESNET20, RESNET20.uniform(bits)) for bits in (8, 2))
    assert two["compute_cycles"] == eight["compute_cycles"]
    assert two["memory_cycles"] < 0.3 * eight["memory_cycles"]


widths = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8])
layers = st.builds(
    Layer,
    name=st.just("l"),
    kind=st.sampled_from([kind for kind in KINDS if kind != "depthwise"]),
    m=st.integers(1, 5000),
    n=st.integers(1, 700),
    k=st.integers(1, 5000),
    groups=st.integers(1, 9),
    input_elements=st.integers(1, 10**6),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(layers, min_size=1, max_size=6), st.data(), st.sampled_from(SHIPPED))
def test_evaluate_equals_the_table_to_the_last_bit(drawn, data, name):
    device = known_device(name)
    workload = Workload("w", tuple(Layer(**{**vars(layer), "name": f"l{i}"}) for i, layer in enumerate(drawn)))
    chosen = {layer.name: (data.draw(widths), data.draw(widths)) for layer in workload}
    allocation = BitAllocation(chosen)
    cost = evaluate_cost(device, workload, allocation)
    table = cost_table(device, workload, range(1, 9), (8, 7, 6, 5, 4, 3, 2, 1))
    assert table.totals(allocation) == dict(cost.metrics)
    for row, layer in enumerate(cost.layers):
        weight, activation = chosen[layer.name]
        for metric, value in layer.metrics.items():
            assert table.metrics[metric][row, weight - 1, 8 - activation] == value
        assert dict(device.layer_cost(workload.layers[row], layer.precision)).items() <= layer.metrics.items()


def test_tables_hold_float64_of_layers_by_widths():
    table = cost_table(load_device("bitfusion"), RESNET20, (2, 4, 8), (8, 4))
    assert table.layers == RESNET20.layer_names
    assert set(table.metrics) == {
        *("latency_ms", "energy_uj", "cycles", "compute_cycles", "memory_cycles"),
        *("weight_kib", "bops", "flash_kib"),
    }
    for values in table.metrics.values():
        assert values.shape == (20, 3, 2) and values.dtype == np.float64
    assert table.column("bops", [Precision(2, 8), Precision(8, 4)]).shape == (20, 2)
    with pytest.raises(UnsupportedPrecisionError, match="no 3 bits; it has 2, 4, 8"):
        table.totals(RESNET20.uniform(3, 8))
    with pytest.raises(AllocationError):
        table.totals(SMALL.uniform(8))


def test_wrong_widths_and_layers_are_refused():
    device = load_device("systolic-32")
    with pytest.raises(UnsupportedPrecisionError, match=r"'systolic-32'.*'stem'.*16-bit weights"):
        device.evaluate(SMALL, SMALL.uniform(16, 8))
    with pytest.raises(UnsupportedPrecisionError, match=r"'stem'.*32-bit activations"):
        device.table(SMALL, [8], [8, 32])
    with pytest.raises(UnsupportedPrecisionError):
        device.layer_cost(SMALL.layers[0], Precision(16, 8))
    with pytest.raises(AllocationError, match="lacks 'stem'"):
        device.evaluate(SMALL, RESNET20.uniform(8))


def test_layers_beyond_int64_are_refused():
    huge = Workload("huge", (Layer("l", "linear", 2**40, 2**40, 2**40, 1, 2**40, 2**40, 2**40),))
    for name in SHIPPED:
        with pytest.raises(WorkloadError, match="int64"):
            evaluate_cost(load_device(name), huge, huge.uniform(8))


def test_the_json_of_a_cost_has_whole_cycles():
    document = evaluate_cost(load_device("bitfusion"), SMALL, SMALL.uniform(4)).to_json()
    assert isinstance(document["total"]["cycles"], int)
    first = document["layers"][0]
    assert first["name"] == "stem" and first["w_bits"] == 4 and isinstance(first["compute_cycles"], int)
    assert first["bound"] in ("compute", "memory")


# Energy per multiply-accumulate at 45 nm: hsharma35/bitfusion, results/systolic_array_synth.csv, 4 x 4 arrays.
@pytest.mark.parametrize(("wide", "narrow", "published"), [(16, 8, 2.96), (8, 4, 2.47), (4, 2, 2.03)])
def test_energy_ratios_of_elements_built_for_a_width(wide, narrow, published):
    energies = mac_energy_by_bits(load_device("bit-serial").config.energy.mac)
    assert energies[wide] / energies[narrow] == pytest.approx(published, rel=0.01)


def test_leakage_is_power_over_latency():
    leaking = easy(
        ("  dram:\n    pj_per_bit: 10", "  leakage: {power_mw: 4, source: made up}\n  dram:\n    pj_per_bit: 10")
    )
    with_it, without = (cost_of(device, SMALL.layers[0], 8).metrics for device in (leaking, easy()))
    assert with_it["energy_uj"] == pytest.approx(without["energy_uj"] + 4 * with_it["latency_ms"])


def test_bit_serial_cycles_by_hand():
    # 1,000 windows by 16, 130 filters by 128, 500 products by 16: 63 x 2 x 32 steps of w x a cycles.
    layer = Layer("l", "conv", m=1000, n=130, k=500)
    for weight, activation in ((1, 1), (3, 7), (16, 8)):
        metrics = load_device("bit-serial").layer_cost(layer, Precision(weight, activation))
        assert metrics["compute_cycles"] == 63 * 2 * 32 * weight * activation


def test_on_chip_traffic_by_hand():
    # 8 pixels, 4 filters, 10 products on 4 x 4 output stationary: inputs once, weights twice, sums once.
    layer = Layer("l", "conv", m=8, n=4, k=10, input_elements=50)
    sram = easy().sram_traffic([layer], 4, 8)
    assert (sram.ifmap_read_bits[0], sram.weight_read_bits[0], sram.ofmap_write_bits[0]) == (80 * 8, 80 * 4, 32 * 32)


@pytest.mark.parametrize("name", SHIPPED)
def test_tables_computed_in_blocks_equal_single_costs_to_the_last_bit(name, monkeypatch):
    # At unequal widths in any order; with so few places at a time, 100 layers make several blocks.
    monkeypatch.setattr("amed_env.hardware.simulator.simulator._BLOCK", 64)
    device = load_device(name)
    layers = (
        Layer(f"l{i}", "conv", m=1 + i % 97, n=1 + i % 301, k=9 * (1 + i % 53), kernel=(3, 3)) for i in range(100)
    )
    network = Workload("many", tuple(layers))
    weights, activations = (device.bits[-1], 2, 5), (3, device.bits[-1])
    table = cost_table(device, network, weights, activations)
    for (i, weight), (j, activation) in [((0, weights[0]), (1, activations[1])), ((2, 5), (0, 3))]:
        cost = device.evaluate(network, network.uniform(weight, activation))
        for metric in cost.metrics:
            assert [layer.metrics[metric] for layer in cost.layers] == table.metrics[metric][:, i, j].tolist()
