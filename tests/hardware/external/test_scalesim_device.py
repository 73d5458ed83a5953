"""The device behind SCALE-Sim: what it reads of the simulator's report. The simulator is not started."""

import json
import sys
from pathlib import Path

import pytest
from hardware_samples import SMALL

from amed_env.hardware import load_device
from amed_env.hardware.external.command_format import read_answer, request_text

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks" / "devices" / "scalesim"
REPORT = "LayerID, Total Cycles (incl. prefetch), Total Cycles, Stall Cycles,\n0, 120, 100, 0,\n1, 80, 70, 0,\n"


@pytest.fixture
def device(monkeypatch):
    """The module of the device."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import scalesim_device

    yield scalesim_device
    sys.modules.pop("scalesim_device", None)


def test_cycles_of_a_product_count_for_every_group(device):
    allocation = SMALL.uniform(8)
    cycles = {(layer.m, layer.n, layer.k): 100.0 * layer.k for layer in SMALL}
    found = device.answer(json.loads(request_text(SMALL, allocation)), 200.0, cycles)
    cost = read_answer(json.dumps(found), SMALL, allocation, "scalesim")
    for layer, of_layer in zip(SMALL, cost.layers, strict=True):
        assert of_layer.metrics["cycles"] == 100 * layer.k * layer.groups
        assert of_layer.metrics["latency_ms"] == pytest.approx(100 * layer.k * layer.groups / 200e3)
    assert cost["cycles"] == sum(of_layer.metrics["cycles"] for of_layer in cost.layers)


def test_the_report_is_read_by_the_name_of_its_column(device, tmp_path):
    (tmp_path / "report.csv").write_text(REPORT)
    assert device.read_report(tmp_path / "report.csv") == [100.0, 70.0]


def test_the_device_file_is_in_order():
    backend = load_device(FOLDER / "scalesim.yaml")
    assert backend.capabilities().additive and backend.metrics == {"latency_ms": "ms", "cycles": "cycles"}
