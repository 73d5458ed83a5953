"""Processors against published rates and measured networks, and the proxies against their definitions."""

import pickle
import re

import numpy as np
import pytest
import torch
from hardware_samples import MLPERF_TINY, RESNET20, SMALL, known_device
from hypothesis import given, settings
from hypothesis import strategies as st

from amed_env import BitAllocation, Layer, Precision, Workload
from amed_env.errors import DeviceError, UnsupportedPrecisionError
from amed_env.hardware import SystolicBackend, cost_table, evaluate_cost, load_device, parse_device_config
from amed_env.hardware.registry import make_backend
from amed_env.tracing.trace import trace

LAYER = Layer("l", "conv", m=100, n=20, k=90)
MACS = 100 * 20 * 90

PROCESSOR_YAML = """\
format: amed-device/1
name: small-core
kind: processor
description: A core for tests
processor:
  clock_mhz: 100
  overhead_cycles_per_layer: 1000
  source: made up
throughput:
  weight_bits: [2, 4, 8]
  activation_bits: [4, 8]
  macs_per_cycle:
    4: {8: 2}
    8: {8: 1}
  cycles_per_output: 3
  source: made up
energy:
  power_mw: 5
  source: made up
"""


# Multiply-accumulates per cycle of MPIC by (weight, activation) width: arXiv 2010.04073, as listed in PLiNIO.
@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "rate"),
    [
        (2, 2, 6.5),
        (4, 2, 4.0),
        (8, 2, 2.2),
        (2, 4, 3.9),
        (4, 4, 3.5),
        (8, 4, 2.1),
        (2, 8, 2.5),
        (4, 8, 2.3),
        (8, 8, 2.1),
        (3, 5, 2.3),  # run as 4 x 8
        (7, 2, 2.2),  # run as 8 x 2
    ],
)
def test_mpic_runs_at_the_published_rates(weight_bits, activation_bits, rate):
    cost = load_device("mpic").layer_cost(LAYER, Precision(weight_bits, activation_bits))
    assert MACS / cost["cycles"] == pytest.approx(rate)
    assert cost["latency_ms"] == pytest.approx(MACS / rate / 250e3)
    assert cost["energy_uj"] == pytest.approx(cost["latency_ms"] * 5.3825)


def test_gap8_peaks_as_published_and_gains_nothing_below_8_bits():
    device = load_device("gap8")
    assert MACS / device.layer_cost(LAYER, Precision(8, 8))["cycles"] == pytest.approx(16)
    assert device.layer_cost(LAYER, Precision(2, 4)) == device.layer_cost(LAYER, Precision(8, 8))
    assert "energy_uj" not in device.metrics


# MLPerf Tiny v0.5, closed division, reference results on the Nucleo-L4R5ZI: latency in ms, energy in uJ.
@pytest.mark.parametrize(
    ("network", "latency_ms", "energy_uj", "macs", "error"),
    [
        ("ad", 10.0516, 416.312, 264_192, -0.001),
        ("ic", 704.2254, 29_207.010, 12_501_632, -0.008),
        ("kws", 181.9174, 7_373.704, 2_656_768, 0.058),
        ("vww", 600.6006, 24_312.648, 7_489_664, -0.057),
    ],
)
def test_cortex_m4_is_near_the_measured_networks(network, latency_ms, energy_uj, macs, error):
    workload = MLPERF_TINY[network]
    assert workload.macs == macs
    cost = evaluate_cost(load_device("cortex-m4"), workload, workload.uniform(8))
    assert cost["latency_ms"] / latency_ms - 1 == pytest.approx(error, abs=0.001)
    assert cost["energy_uj"] == pytest.approx(energy_uj, rel=0.07)


def test_a_processor_by_hand():
    device = make_backend(parse_device_config(PROCESSOR_YAML))
    cost = device.layer_cost(LAYER, Precision(2, 4))  # runs as 4 x 8: 2 a cycle
    assert cost["cycles"] == 1000 + 3 * 2000 + MACS / 2
    assert cost["latency_ms"] == pytest.approx(cost["cycles"] / 100e3)
    assert cost["energy_uj"] == pytest.approx(5 * cost["latency_ms"])


def test_kinds_without_a_rate_are_refused():
    text = re.sub(r"  macs_per_cycle:\n.*\n.*\n", "  cycles_per_mac: {conv: 6, linear: 4}\n", PROCESSOR_YAML)
    device = make_backend(parse_device_config(text))
    assert device.layer_cost(LAYER, Precision(8, 8))["cycles"] == 1000 + 3 * 2000 + MACS * 6
    with pytest.raises(UnsupportedPrecisionError, match=r"'depthwise'.*kind 'depthwise'"):
        device.evaluate(SMALL, SMALL.uniform(8))
    with pytest.raises(UnsupportedPrecisionError, match="kind 'depthwise'"):
        device.table(SMALL, [8], [8])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: processor", "kind: procesor", r"line 3: kind: 'procesor' is unknown; did you mean 'processor'"),
        ("kind: processor", "kind: [1]", r"line 3: kind: .*known: systolic, processor, proxy"),
        ("kind: processor\n", "", r"unknown key 'processor'|'array' is missing"),
        ("    8: {8: 1}\n", "", r"macs_per_cycle ends at 4 weight bits, but 8 are allowed"),
        ("    8: {8: 1}", "    8: {4: 1}", r"same activation widths for every weight width"),
        ("    8: {8: 1}", "    8: {8: 0}", r"macs_per_cycle.8.8: .*greater than 0"),
        ("    8: {8: 1}", "    8: {}", r"macs_per_cycle.8: .*at least 1"),
        ("  cycles_per_output: 3", "  cycles_per_mac: {conv: 1}", r"exactly one of macs_per_cycle and cycles_per_mac"),
        ("  cycles_per_output: 3", "  cycles_per_outputs: 3", r"did you mean 'cycles_per_output'"),
        ("power_mw: 5", "power_mw: -5", r"energy.power_mw: .*found -5"),
        ("clock_mhz: 100\n", "clock_mhz: 0\n", r"processor.clock_mhz"),
    ],
)
def test_faults_of_processor_files_are_named(old, new, message):
    assert PROCESSOR_YAML.count(old) == 1
    with pytest.raises(DeviceError, match=message):
        parse_device_config(PROCESSOR_YAML.replace(old, new), where="core.yaml")


def test_a_kind_belongs_to_its_simulator(tmp_path):
    path = tmp_path / "core.yaml"
    path.write_text(PROCESSOR_YAML)
    assert load_device(path).name == "small-core"
    with pytest.raises(DeviceError, match="kind 'processor'"):
        SystolicBackend.from_file(path)
    with pytest.raises(DeviceError, match="kind 'processor', expected 'systolic'"):
        SystolicBackend(parse_device_config(PROCESSOR_YAML))


def test_proxies_are_what_they_are_named_after():
    for bits in (Precision(8, 8), Precision(2, 4), Precision(16, 1)):
        bops = load_device("bops").layer_cost(LAYER, bits)["latency_ms"]
        assert bops == pytest.approx(MACS * bits.weight_bits * bits.activation_bits / 1e9)
        assert load_device("memory").layer_cost(LAYER, bits)["latency_ms"] == pytest.approx(20 * 90 * bits[0] / 8e6)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["mpic", "gap8", "cortex-m4", "bops", "memory"]))
def test_evaluate_equals_the_table_to_the_last_bit(data, name):
    device = known_device(name)
    widths = st.sampled_from([2, 3, 4, 8])
    chosen = {layer.name: (data.draw(widths), data.draw(widths)) for layer in RESNET20}
    allocation = BitAllocation(chosen)
    table = cost_table(device, RESNET20, (8, 4, 3, 2), (2, 3, 4, 8))
    assert table.totals(allocation) == dict(evaluate_cost(device, RESNET20, allocation).metrics)
    assert all(values.shape == (20, 4, 4) and values.dtype == np.float64 for values in table.metrics.values())


@pytest.mark.parametrize("name", ["mpic", "gap8", "cortex-m4", "bops", "memory"])
def test_they_pickle(name):
    device = load_device(name)
    copy = pickle.loads(pickle.dumps(device))
    workload = Workload("one", (LAYER,))
    assert copy.config == device.config
    assert evaluate_cost(copy, workload, workload.uniform(4)) == evaluate_cost(device, workload, workload.uniform(4))


def test_operations_between_layers_count_with_the_layer_before():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Conv2d(4, 2, 3),
    )  # fmt: skip
    workload = trace(network.eval(), torch.zeros(1, 1, 8, 8)).workload
    plain = make_backend(parse_device_config(PROCESSOR_YAML))
    text = PROCESSOR_YAML.replace(
        "  cycles_per_output: 3\n", "  cycles_per_output: 3\n  cycles_per_element: {max_pool2d: 5}\n"
    )
    pooling = make_backend(parse_device_config(text))
    allocation = workload.uniform(4)
    before, after = (evaluate_cost(device, workload, allocation) for device in (plain, pooling))
    assert after["cycles"] - before["cycles"] == pytest.approx(5 * 4 * 4 * 4)
    assert [layer.metrics["cycles"] for layer in after.layers][1] == before.layers[1].metrics["cycles"]
    assert after["energy_uj"] > before["energy_uj"]
    table = cost_table(pooling, workload, (4,), (4,))
    for row, layer in enumerate(after.layers):
        assert table.metrics["cycles"][row, 0, 0] == layer.metrics["cycles"]
