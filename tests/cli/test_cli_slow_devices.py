"""Searches on programs and on devices that fail: answers kept for --resume, faults counted, the end of a dead one."""

import json
import sys

import pytest

PROGRAM = """\
import json, sys
request = json.load(sys.stdin)
with open("calls", "a") as stream:
    stream.write("call\\n")
with open("calls") as stream:
    calls = len(stream.readlines())
TROUBLE
bits = max(layer["w_bits"] for layer in request["layers"])
macs = sum(layer["m"] * layer["n"] * layer["k"] for layer in request["layers"])
print(json.dumps({"format": "amed-answer/1", "total": {"latency_ms": macs * bits * 1e-6}}))
"""


@pytest.fixture
def program(tmp_path):
    def write(trouble="", **options):
        (tmp_path / "simulator.py").write_text(PROGRAM.replace("TROUBLE", trouble))
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in options.items()]
        (tmp_path / "mine.yaml").write_text(
            f"format: amed-command/1\nname: mine\ncommand: {sys.executable} simulator.py\nbits: [2, 4, 8]\n"
            + "".join(lines)
        )
        return "mine.yaml"

    return write


@pytest.fixture
def search(amed, networks):
    def call(device, *arguments, agent="random", evaluations=4):
        return amed(
            *["search", "--network", f"{networks}:make", "--recipe", "nearest", "--device", device, "--agent", agent],
            *["--bits", "2,4,8", "--budget", "latency=0.8", "--evaluations", evaluations, "--out", "run", *arguments],
        )

    return call


def calls(folder):
    return len((folder / "calls").read_text().splitlines())


def result(folder):
    return json.loads((folder / "run" / "result.json").read_text())


def test_a_resumed_search_calls_the_program_for_nothing_that_it_has_answered(search, program, tmp_path):
    device = program()
    first = search(device)
    assert first.code == 0, first.err
    before, found = calls(tmp_path), result(tmp_path)
    again = search(device, "--resume")
    assert again.code == 0 and calls(tmp_path) == before
    assert result(tmp_path)["best"]["costs"] == found["best"]["costs"]
    search(device, "--resume", evaluations=6)
    assert before <= calls(tmp_path) <= before + 9


def test_another_program_is_another_search(search, program, tmp_path):
    search(program())
    answer = search(program("bits = 3"), "--resume")
    assert answer.code == 2 and "other settings: device" in answer.err


def test_single_failures_are_mended_or_counted(search, program, tmp_path):
    device = program("if calls in (5, 6): sys.exit('the board is hot')", retries=0)
    answer = search(device, evaluations=9)
    assert answer.code == 0
    document = result(tmp_path)
    assert document["device_faults"] == 2 and not document["gave_up"]
    assert "2 calls of the device failed for good" in answer.err and "the board is hot" in answer.err


def test_a_dead_program_stops_the_search_and_everything_is_kept(search, program, tmp_path):
    device = program("if calls > 7: sys.exit('out of order')", retries=0)
    answer = search(device, "--max-faults", 3, evaluations=9)
    assert answer.code == 1 and "too much failed in a row" in answer.err and "out of order" in answer.err
    document = result(tmp_path)
    assert document["gave_up"] and document["best"] is not None
    assert document["device_faults"] == 6  # three in a row for the first answers, three in the search
    assert (tmp_path / "run" / "allocation.json").is_file()


def test_a_hanging_class_is_ended_and_the_search_goes_on(amed, networks, tmp_path):
    (tmp_path / "hanging_device.py").write_text(
        "import time\nfrom amed_env.hardware import HardwareBackend\n\n\nclass Hangs(HardwareBackend):\n"
        "    bits = (2, 4, 8)\n    retries = 0\n\n"
        "    def evaluate(self, workload, allocation):\n"
        "        if len(set(allocation.values())) > 1:\n            time.sleep(3600)\n"
        "        return super().evaluate(workload, allocation)\n\n"
        "    def layer_cost(self, layer, precision):\n"
        "        return {'latency_ms': layer.macs * precision.weight_bits * 1e-6}\n"
    )
    answer = amed(
        *["search", "--network", f"{networks}:make", "--recipe", "nearest", "--device", "hanging_device:Hangs"],
        *["--agent", "greedy"],
        *["--device-timeout", "1", "--max-faults", "2", "--bits", "2,4,8", "--budget", "latency=0.8", "--out", "run"],
    )
    sys.modules.pop("hanging_device", None)
    assert answer.code == 1 and "took longer than 1 s; its process was ended" in answer.err
    assert result(tmp_path)["gave_up"] and 2 <= result(tmp_path)["device_faults"] <= 4


@pytest.mark.parametrize("arguments", [["--device-timeout", "0"], ["--max-faults", "0"], ["--device-retries", "-1"]])
def test_senseless_limits_are_refused(search, arguments, tmp_path):
    answer = search("bitfusion", *arguments)
    assert answer.code == 2 and answer.err and not (tmp_path / "run").exists()


def test_a_command_on_the_command_line(amed, program, tmp_path):
    program()
    device = f"command: {sys.executable} simulator.py"
    (tmp_path / "layers.csv").write_text("name,kind,m,n,k,groups\nfirst,conv,64,32,27,1\n")
    document = amed("simulate", "--layers", "layers.csv", "--bits", 4, "--device", device, "--json").json
    assert document["total"]["latency_ms"] == pytest.approx(64 * 32 * 27 * 4e-6) and document["layers"] == []
