"""`amed devices show`, `amed devices check` and `amed table`."""

import json
import sys

import numpy as np
import pytest

LAYERS = "name,kind,m,n,k,groups\nfirst,conv,64,32,27,1\nsecond,linear,1,10,128,1\n"
BROKEN = """
from amed_env.hardware import Capabilities, HardwareBackend


class Forgetful(HardwareBackend):
    '''Forgets.'''
    calls = 0

    def layer_cost(self, layer, precision):
        type(self).calls += 1
        return {"latency_ms": float(self.calls)}


class Backwards(HardwareBackend):
    def layer_cost(self, layer, precision):
        return {"latency_ms": layer.macs / precision.weight_bits}


class Pooling(HardwareBackend):
    '''Knows a kind that there is not.'''

    def capabilities(self):
        return Capabilities({"pool": (8,), "conv": (8,)}, {"conv": (8,)}, {"latency_ms": "ms"})


class OnlyLinear(HardwareBackend):
    def capabilities(self):
        return Capabilities({"linear": (8,)}, {"linear": (8,)}, {"latency_ms": "ms"})

    def layer_cost(self, layer, precision):
        self.capabilities().require(layer, precision, self.name)
        return {"latency_ms": 1.0}
"""


@pytest.fixture
def layers(tmp_path):
    path = tmp_path / "layers.csv"
    path.write_text(LAYERS)
    return path


@pytest.fixture
def module(tmp_path):
    (tmp_path / "cli_devices.py").write_text(BROKEN)
    yield "cli_devices"
    sys.modules.pop("cli_devices", None)


def test_show_has_constants_and_sources(amed):
    answer = amed("devices", "show", "bitfusion")
    assert answer.code == 0
    assert all(
        text in answer.out for text in ("clock_mhz: 500", "source: ", "latency_ms (ms)", "1 2 3 4 5 6 7 8 16 bits")
    )
    document = amed("devices", "show", "bitfusion", "--json").json
    assert document["config"]["array"]["rows"] == 16 and document["additive"] is True
    assert [4, 8] in document["precisions"]["conv"]


def test_show_a_device_with_pairs_and_one_that_does_not_add_up(amed):
    assert "no" in amed("devices", "show", "bitfusion-chained").out
    assert amed("devices", "show", "bitfusion-chained", "--json").json["additive"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "bitfuson"], "did you mean 'bitfusion'"),
        (["check", "bitfuson"], "did you mean 'bitfusion'"),
        (["check", "absent.yaml"], "cannot read the device file"),
        (["check", "cli_devices:Forgetfull"], "did you mean 'Forgetful'"),
        (["check", "bitfusion", "--network", "digits-cn"], "did you mean 'digits-cnn'"),
        (["shw", "bitfusion"], "show"),
    ],
)
def test_typing_errors_name_the_nearest_and_exit_with_2(amed, module, arguments, message):
    answer = amed("devices", *arguments)
    assert answer.code == 2 and message in answer.err and answer.out == ""


def test_check_lists_every_promise(amed, layers):
    answer = amed("devices", "check", "eyeriss-ws", "--layers", layers)
    assert answer.code == 0 and answer.out.count("ok  ") == 10 and "FAILED" not in answer.out
    document = amed("devices", "check", "eyeriss-ws", "--json").json
    assert len(document["passed"]) == 10 and document["failed"] == {}


def test_check_says_what_is_broken_and_exits_with_1(amed, module):
    answer = amed("devices", "check", f"{module}:Forgetful")
    assert answer.code == 1 and "FAILED  equal calls give equal answers: latency_ms of" in answer.out
    answer = amed("devices", "check", f"{module}:Forgetful", "--json")
    assert answer.code == 1 and "equal calls give equal answers" in answer.json["failed"]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("Pooling", "has the kind 'pool', which no layer has; kinds are conv, depthwise"),
        ("OnlyLinear", "supports no layers of kind 'conv', such as 'first' of network 'layers'"),
    ],
)
def test_kinds_that_do_not_exist_and_kinds_that_the_device_does_not_run(amed, module, layers, device, message):
    answer = amed("devices", "check", f"{module}:{device}", "--layers", layers)
    assert answer.code in (1, 2) and message in answer.err and "Traceback" not in answer.err


def test_names_cannot_control_the_terminal(amed, tmp_path):
    name = "\x1b]0;owned\x07\x9b2J:fire:"
    (tmp_path / "layers.csv").write_text(f"name,kind,m,n,k,groups\n{name},linear,1,10,128,1\n")
    answer = amed("simulate", "--layers", tmp_path / "layers.csv", "--device", "bitfusion", "--bits", "8")
    assert answer.code == 0 and r"\x1b]0;owned\x07\x9b2J:fire:" in answer.out
    answer = amed("simulate", "--layers", tmp_path / "layers.csv", "--device", "bitfusion", "--bits", "8", "--json")
    assert "\x9b" not in answer.out and "\x1b" not in answer.out and answer.json
    (tmp_path / "device.yaml").write_text('format: "\\e[2J"\n"\\a\\e[2J": 1\n')
    answer = amed("devices", "show", tmp_path / "device.yaml")
    assert answer.code == 2 and r"\x1b[2J" in answer.err and "\x1b[2J" not in answer.err


def test_where_fewer_bits_cost_more_is_a_warning(amed, module):
    answer = amed("devices", "check", f"{module}:Backwards")
    assert answer.code == 0 and "latency_ms falls as weights get wider in conv" in " ".join(answer.err.split())


def test_a_table_is_a_device(amed, layers, tmp_path):
    made = amed("table", "--device", "bitfusion", "--layers", layers, "--bits", "2,4,8", "--out", "mine.csv")
    assert made.code == 0 and "wrote mine.csv" in made.out
    text = (tmp_path / "mine.csv").read_text()
    assert "# device: bitfusion" in text and "# network: layers" in text and text.count("\nfirst,") == 9
    arguments = ["simulate", "--layers", layers, "--bits", "4", "--activation-bits", "8", "--json", "--device"]
    one, other = (amed(*arguments, device).json for device in ("bitfusion", "mine.csv"))
    for metric in ("latency_ms", "energy_uj", "cycles", "weight_kib", "bops"):
        assert other["total"][metric] == one["total"][metric]
    assert amed("devices", "show", "mine.csv", "--json").json["config"]["device"] == "bitfusion"


def test_tables_as_arrays_on_stdout_and_as_json(amed, layers, tmp_path):
    assert amed("table", "--layers", layers, "--bits", "2,8", "--out", "mine.npy").code == 0
    assert np.load(tmp_path / "mine.npy").shape == (5, 2, 2, 2)
    assert json.loads((tmp_path / "mine.json").read_text())["layers"] == ["first", "second"]
    assert amed("devices", "check", "mine.npy").code == 0
    out = amed("table", "--layers", layers, "--bits", "2,8", "--tied").out
    assert out.startswith("# format: amed-table/1\n") and "\nsecond,8,8," in out and "2,8," not in out
    document = amed("table", "--layers", layers, "--bits", "2,8", "--tied", "--json").json
    assert document["precisions"] == [[2, 2], [8, 8]]
    assert np.array(document["costs"]["latency_ms"]).shape == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--bits", "2,9"], 2, "9-bit"),
        (["--out", "mine.txt"], 2, "a table ends in .csv or .npy"),
        (["--device", "bitfusion-chained"], 1, "do not add up"),
        (["--tied", "--bits", "2,8", "--out", "mine.npy"], 2, "write a .csv file"),
        (["--network", "digits-cnn"], 2, "both are given"),
    ],
)
def test_tables_that_cannot_be_made(amed, layers, tmp_path, arguments, code, message):
    answer = amed("table", "--layers", layers, *arguments)
    assert answer.code == code and message in answer.err and not (tmp_path / "mine.npy").exists()
