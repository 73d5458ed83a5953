"""Chips whose layers cannot all run at every width, from the command line with default options."""

import json
import shutil
import sys

import pytest
from layerwise_devices import FOLDER

import amed_env

CHIPS = '''
import math

from amed_env import HardwareBackend
from amed_env.errors import UnsupportedPrecisionError
from amed_env.hardware import Capabilities, Cost


class ByKind(HardwareBackend):
    """Depthwise layers at 8 bits only, linear ones with weights of 4 or 8, convolutions in three pairs."""

    metrics = {"latency_ms": "ms", "energy_uj": "uJ"}

    def capabilities(self):
        w = {"conv": (2, 4, 8), "depthwise": (8,), "linear": (4, 8), "matmul": (8,)}
        a = {"conv": (8, 16), "depthwise": (8,), "linear": (8,), "matmul": (8,)}
        return Capabilities(w, a, dict(self.metrics), pairs={"conv": ((4, 8), (8, 8), (2, 16))})

    def layer_cost(self, layer, p):
        bit_operations = layer.macs * p.weight_bits * p.activation_bits
        return {"latency_ms": bit_operations / 4e9, "energy_uj": layer.macs * 1e-6}


class FirstLayer8(HardwareBackend):
    """The first layer at 8 bits only, which it says by raising."""

    bits = (2, 4, 8)

    def layer_cost(self, layer, p):
        if layer.in_channels < 4 and p.weight_bits != 8:
            raise UnsupportedPrecisionError(f"{layer.name}: fewer than 4 input channels run at 8 bits only")
        return {"latency_ms": layer.macs * max(p) / 8 / 64e6}


class Dataflow(HardwareBackend):
    """All layers at once: the slowest one decides, look-up tables add up."""

    metrics = {"latency_ms": "ms", "luts": "LUT", "frame_time": "us"}
    bits = (2, 4, 8)

    def capabilities(self):
        return Capabilities.same_for_all_kinds(self.bits, self.metrics, additive=False)

    def evaluate(self, workload, allocation):
        times = [layer.macs / 64 / 1e5 * max(allocation[layer.name]) / 4 for layer in workload]
        luts = [64 * (1.1 * p.weight_bits * p.activation_bits + 20) for p in allocation.values()]
        totals = {"latency_ms": max(times), "luts": math.fsum(luts), "frame_time": 1e3 * max(times)}
        return Cost(self.name, totals)
'''
ENDS = ["--evaluations", 8, "--out", "run", "--json"]


@pytest.fixture
def chips(tmp_path):
    """A module of devices, device files, a table and a program, in the folder where `amed` runs."""
    (tmp_path / "chips.py").write_text(CHIPS)
    for path in FOLDER.glob("*.yaml"):
        shutil.copy(path, tmp_path)
    return tmp_path


def precisions(document):
    return {name: (p["w"], p["a"]) for name, p in document["best"]["allocation"]["layers"].items()}


@pytest.mark.parametrize("agent", [[], ["--agent", "milp"], ["--agent", "random"]])
def test_a_chip_with_pairs_by_kind(amed, chips, agent):
    document = amed("search", "digits-cnn", "--device", "chips:ByKind", "--budget", "latency=0.7", *agent, *ENDS).json
    assert document["best"]["feasible"]
    chosen = precisions(document)
    assert chosen["depthwise"] == (8, 8) and chosen["classifier"] in {(4, 8), (8, 8)}
    assert set(chosen.values()) <= {(4, 8), (8, 8), (2, 16)}
    assert document["choices"]["stem"] == ["w2a16", "w4a8", "w8a8"] and document["choices"]["depthwise"] == ["w8a8"]
    assert set(document["baselines"]) == {"uniform-2", "uniform-4", "uniform-8"}
    of_four = document["baselines"]["uniform-4"]["allocation"]["layers"]
    assert of_four["depthwise"] == {"w": 8, "a": 8} and of_four["stem"] == {"w": 4, "a": 8}


def test_a_chip_that_refuses_by_raising(amed, chips):
    document = amed("search", "digits-cnn", "--device", "chips:FirstLayer8", "--budget", "latency=0.6", *ENDS).json
    chosen = precisions(document)
    assert chosen.pop("stem") == (8, 8) and set(chosen.values()) <= {(2, 2), (4, 4), (8, 8)}
    assert document["choices"]["classifier"] == ["w2a2", "w4a4", "w8a8"]
    checked = amed("devices", "check", "chips:FirstLayer8")
    assert checked.code == 0 and "FAILED" not in checked.out


def test_without_a_budget(amed, chips):
    document = amed("search", "digits-cnn", "--device", "chips:ByKind", "--agent", "greedy", *ENDS).json
    assert document["best"] is not None


@pytest.mark.parametrize(
    ("budgets", "limits"),
    [
        (["luts=0.5"], {"luts": None}),
        (["luts=20000LUT", "frame_time=0.02ms"], {"luts": 20000.0, "frame_time": 20.0}),
        (["frame_time=0.5", "latency=1s"], {"frame_time": None, "latency_ms": 1000.0}),
    ],
)
def test_budgets_on_whatever_the_device_reports(amed, chips, budgets, limits):
    given = [part for budget in budgets for part in ("--budget", budget)]
    document = amed("search", "digits-cnn", "--device", "chips:Dataflow", "--agent", "greedy", *given, *ENDS).json
    assert document["best"]["feasible"]
    for metric, limit in limits.items():
        assert document["best"]["costs"][metric] <= document["limits"][metric]
        assert limit is None or document["limits"][metric] == pytest.approx(limit)
        assert document["limits"][metric] > 0
    assert {"luts", "frame_time"} & {*document["best"]["relative_costs"]} == {b.partition("=")[0] for b in budgets} - {
        "latency"
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "lutz=0.5"], "unknown budget 'lutz'; did you mean 'luts'?"),
        (["--budget", "luts=5ms"], "unknown unit 'ms'; use one of LUT"),
        (["--budget", "energy=0.5"], "this device reports no energy_uj"),
    ],
)
def test_budgets_that_make_no_sense(amed, chips, arguments, message):
    answer = amed("search", "digits-cnn", "--device", "chips:Dataflow", *arguments, *ENDS)
    assert answer.code == 2 and message in answer.err and not (chips / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--bits", "2,4"],
            "'stem' (conv) at what is left to choose from: it supports w2a16, w4a8, w8a8, and widths 2, 4",
        ),
        (["--pin", "depthwise=4"], "'depthwise' (depthwise) at w4a4, to which it is pinned; it supports w8a8."),
        (["--activation-bits", "16"], "'depthwise' (depthwise) at what is left to choose from: it supports w8a8"),
    ],
)
def test_what_leaves_a_layer_nothing_is_one_clear_error(amed, chips, arguments, message):
    answer = amed("search", "digits-cnn", "--device", "chips:ByKind", *arguments, *ENDS)
    assert answer.code == 2 and answer.err.count("error") == 1
    assert message in " ".join(answer.err.split())


@pytest.mark.parametrize("device", ["ethos-like.yaml", "hailo-like.yaml"])
def test_device_files(amed, chips, device):
    document = amed("search", "digits-cnn", "--device", device, "--budget", "energy=0.8", *ENDS).json
    assert document["best"]["feasible"] and precisions(document)["depthwise"][1] == 8
    assert amed("devices", "check", device).code == 0


def test_a_table_of_such_a_chip(amed, chips):
    assert amed("table", "--device", "chips:ByKind", "--network", "digits-cnn", "--out", "mixed.csv").code == 0
    rows = [line.split(",")[:3] for line in (chips / "mixed.csv").read_text().splitlines() if line.startswith("dep")]
    assert rows == [["depthwise", "8", "8"]]
    document = amed("search", "digits-cnn", "--device", "mixed.csv", "--budget", "latency=0.7", *ENDS).json
    assert document["best"]["feasible"] and precisions(document)["depthwise"] == (8, 8)
    shown = amed("devices", "show", "mixed.csv").out
    assert "w2a16, w4a8, w8a8" in shown and "depthwise" in shown
    refused = amed("table", "--device", "chips:ByKind", "--network", "digits-cnn", "--out", "mixed.npy")
    assert refused.code == 2 and "write a .csv file" in refused.err
    costs = amed("table", "--device", "chips:ByKind", "--network", "digits-cnn", "--json").json["costs"]["latency_ms"]
    assert costs[3].count(None) == 2


def test_a_program_with_pairs_and_kinds(amed, chips):
    (chips / "simulator.py").write_text(
        "import json, sys\n"
        "layers = json.load(sys.stdin)['layers']\n"
        "costs = [{'name': i['name'], 'latency_ms': i['m'] * i['n'] * i['k'] * i['w_bits'] * 1e-6} for i in layers]\n"
        "total = {'latency_ms': sum(cost['latency_ms'] for cost in costs)}\n"
        "print(json.dumps({'format': 'amed-answer/1', 'total': total, 'layers': costs}))\n"
    )
    config = {
        "format": "amed-command/1",
        "name": "mine",
        "command": [sys.executable, "simulator.py"],
        "additive": True,
        "kinds": ["conv", "depthwise", "linear"],
        "bits": [4, 8],
        "pairs": {"conv": [[4, 8], [8, 8]], "depthwise": [[8, 8]]},
        "layers": {"first": 8},
    }
    (chips / "mine.yaml").write_text(json.dumps(config))
    document = amed("search", "digits-cnn", "--device", "mine.yaml", "--budget", "latency=0.8", *ENDS).json
    chosen = precisions(document)
    assert document["best"]["feasible"] and chosen["stem"] == chosen["depthwise"] == (8, 8)
    assert document["choices"]["classifier"] == ["w4a4", "w8a8"]
    assert document["choices"]["block1.conv1"] == ["w4a8", "w8a8"]


@pytest.mark.parametrize("network", ["digits-cnn", "kws-dscnn"])
def test_a_mixed_table_of_a_shipped_network(amed, chips, network):
    """Rows are left out by hand: the first layer at 8 bits, every other depthwise layer too."""
    made = amed("table", "--device", "bitfusion", "--network", network, "--bits", "2,4,8", "--out", "all.csv", "--json")
    first = made.json["layers"][0]
    kept = []
    for line in (chips / "all.csv").read_text().splitlines():
        cells = line.split(",")
        wide_only = cells[0] == first or "depthwise" in cells[0]
        if line.startswith(("#", "layer,")) or cells[1:3] == ["8", "8"] or (not wide_only and cells[2] == "8"):
            kept.append(line)
    (chips / "mixed.csv").write_text("\n".join(kept) + "\n")
    document = amed(
        "search", f"tabular/{network}", "--device", "mixed.csv", "--budget", "memory=1.0", "--agent", "greedy", *ENDS
    ).json
    assert set(precisions(document).values()) == {(8, 8)}  # the quality table has equal widths only
    task = amed_env.make_task(f"tabular/{network}", device=chips / "all.csv", bits=(2, 4, 8))
    assert task.space.differing_choices == {}
    if network == "digits-cnn":
        ends = [*ENDS[:2], "--out", "again", "--json"]
        document = amed("search", network, "--device", "mixed.csv", "--budget", "energy=0.9", *ends).json
        chosen = precisions(document)
        assert chosen[first] == chosen["depthwise"] == (8, 8)
        assert {activation for _, activation in chosen.values()} == {8} and len(set(chosen.values())) > 1
