"""Devices behind a program: what it is asked, what it may answer, and what it may do wrong."""

import json
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hardware_samples import SMALL
from hypothesis import given
from hypothesis import strategies as st

from amed_env import AmedError, BitAllocation, Precision, TrialStore
from amed_env.errors import BackendError, DeviceError, UnsupportedPrecisionError
from amed_env.hardware import check_hardware, cost_table, evaluate_cost, evaluate_costs, load_device
from amed_env.hardware.costs import precision_costs
from amed_env.hardware.external.command_format import read_answer, request_text
from amed_env.tracing.trace import trace

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "examples" / "simulator.c"

HONEST = """\
import json, sys
request = json.load(sys.stdin)
open("calls", "a").write("call\\n")
layers = [
    {"name": i["name"], "latency_ms": i["m"] * i["n"] * i["k"] * i["groups"] * i["w_bits"] * 1e-6}
    for i in request["layers"]
]
total = {"latency_ms": sum(layer["latency_ms"] for layer in layers)}
"""
ANSWER = 'print(json.dumps({"format": "amed-answer/1", "total": total, "layers": layers}))\n'


def latency(bits):
    return sum(layer.macs for layer in SMALL) * bits * 1e-6


@pytest.fixture
def program(tmp_path):
    """Writes a program and its YAML, and loads the device."""

    def write(body=HONEST + ANSWER, **options):
        (tmp_path / "simulator.py").write_text(body)
        lines = [f"{key}: {json.dumps(value)}" for key, value in options.items()]
        text = f"format: amed-command/1\nname: mine\ncommand: {sys.executable} simulator.py\n" + "\n".join(lines)
        (tmp_path / "mine.yaml").write_text(text)
        return load_device(tmp_path / "mine.yaml")

    return write


def calls(folder):
    path = folder / "calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_costs_come_from_the_program(program):
    device = program(additive=True, bits=[2, 4, 8])
    cost = evaluate_cost(device, SMALL, SMALL.uniform(4, 8))
    assert cost["latency_ms"] == pytest.approx(latency(4))
    assert [layer.name for layer in cost.layers] == list(SMALL.layer_names)
    table = cost_table(device, SMALL, (2, 8), (4,))
    assert table.metrics["latency_ms"].sum(axis=0)[:, 0] == pytest.approx([latency(2), latency(8)])
    assert len(check_hardware(device)) > 5
    assert evaluate_cost(pickle.loads(pickle.dumps(device)), SMALL, SMALL.uniform(2))["latency_ms"] == pytest.approx(
        latency(2)
    )


def test_the_request_is_json_with_one_layer_a_line():
    text = request_text(SMALL, SMALL.uniform(4, 8))
    document = json.loads(text)
    assert document["format"] == "amed-request/1" and document["network"] == "small"
    assert [layer["name"] for layer in document["layers"]] == list(SMALL.layer_names)
    assert document["layers"][3] == {
        "name": "depthwise", "kind": "depthwise", "m": 64, "n": 1, "k": 9, "groups": 16, "input_elements": 1024,
        "weight_elements": 144, "output_elements": 1024, "kernel": [3, 3], "stride": [1, 1], "w_bits": 4, "a_bits": 8,
    }  # fmt: skip
    lines = [line for line in text.splitlines() if line.startswith('{"name": ')]
    assert [json.loads(line.rstrip(",")) for line in lines] == document["layers"]


def test_the_second_request_has_the_operations_between_the_layers(program, tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.Flatten())
    network.append(torch.nn.Linear(32, 3))
    workload = trace(network.eval(), torch.zeros(1, 1, 8, 8)).workload
    first, second = (json.loads(request_text(workload, workload.uniform(4), f"amed-request/{n}")) for n in (1, 2))
    assert first["layers"] == second["layers"] and "operations" not in first
    assert second["operations"] == [
        {
            "name": "0", "kind": "conv", "layer": "0", "inputs": ["input"], "input_shapes": [[1, 8, 8]],
            "output_shape": [2, 4, 4], "kernel": [3, 3], "stride": [2, 2], "padding": [1, 1], "dilation": [1, 1],
        },
        {"name": "relu", "kind": "relu", "layer": None, "inputs": ["0"], "input_shapes": [[2, 4, 4]],
         "output_shape": [2, 4, 4]},
        {"name": "3", "kind": "linear", "layer": "3", "inputs": ["relu"], "input_shapes": [[32]], "output_shape": [3]},
    ]  # fmt: skip
    device = program(request="amed-request/2")
    evaluate_cost(device, workload, workload.uniform(4))
    assert calls(tmp_path) == 1
    assert device.fingerprint != program().fingerprint


def test_answers_are_asked_for_once_and_survive_in_a_store(program, tmp_path):
    allocations = [SMALL.uniform(2), SMALL.uniform(4), SMALL.uniform(2)]
    device = program()
    for allocation in allocations:
        evaluate_cost(device, SMALL, allocation)
    assert calls(tmp_path) == 2
    store = TrialStore(tmp_path / "trials.sqlite")
    device.keep_answers(store)
    evaluate_cost(device, SMALL, SMALL.uniform(8))
    assert calls(tmp_path) == 3
    later = program()
    later.keep_answers(store)
    costs = evaluate_costs(later, SMALL, [*allocations, SMALL.uniform(8)])
    assert [cost["latency_ms"] for cost in costs] == pytest.approx([latency(b) for b in (2, 4, 2, 8)])
    assert calls(tmp_path) == 3
    changed = program(HONEST.replace("1e-6", "2e-6") + ANSWER)
    changed.keep_answers(store)
    assert evaluate_cost(changed, SMALL, SMALL.uniform(2))["latency_ms"] == pytest.approx(2 * latency(2))


def test_a_program_that_is_not_deterministic_is_always_asked(program, tmp_path):
    device = program(deterministic=False)
    device.keep_answers(TrialStore(tmp_path / "trials.sqlite"))
    for _ in range(3):
        evaluate_cost(device, SMALL, SMALL.uniform(2))
    assert calls(tmp_path) == 3


def test_tied_widths_take_one_call_each(program, tmp_path):
    precisions = [Precision(bits, bits) for bits in (2, 4, 8)]
    costs = precision_costs(program(additive=True), SMALL, precisions)
    assert calls(tmp_path) == 3
    assert costs["latency_ms"].sum(axis=0) == pytest.approx([latency(2), latency(4), latency(8)])


def test_workers_run_side_by_side(program, tmp_path):
    # Every run waits until there are three of them, which one after the other would never happen.
    body = HONEST + (
        "import os, time\nopen(f'here-{os.getpid()}', 'w')\n"
        "while sum(name.startswith('here-') for name in os.listdir('.')) < 3: time.sleep(0.01)\n"
    )
    device = program(body + ANSWER, workers=3, timeout_s=60)
    costs = evaluate_costs(device, SMALL, [SMALL.uniform(bits) for bits in (8, 2, 4)])
    assert [cost["latency_ms"] for cost in costs] == pytest.approx([latency(8), latency(2), latency(4)])


def test_one_failure_ends_the_runs_beside_it(program, tmp_path):
    # Two bits fail at once, the others would sleep for an hour.
    body = HONEST + "import time\nsys.exit('no 2 bits') if request['layers'][0]['w_bits'] == 2 else time.sleep(3600)\n"
    device = program(body + ANSWER, workers=2, timeout_s=1000, retries=0)
    with pytest.raises(BackendError, match="no 2 bits"):
        evaluate_costs(device, SMALL, [SMALL.uniform(bits) for bits in (2, 4, 8, 16)])
    assert calls(tmp_path) <= 4


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import sys\nsys.stderr.write('no licence')\nsys.exit(3)", "failed with exit code 3.*no licence"),
        ("import os\nos.abort()", "failed with signal SIGABRT"),
        ("print('hello')", "the answer is no JSON.*begins with 'hello"),
        ("print('[1]')", "the answer is list, expected a JSON object"),
        ("print('{}')", "'format' of the answer is None"),
        ("print('{\"format\": \"amed-answer/1\"}')", "no object 'total'"),
        ("print('{\"format\": \"amed-answer/1\", \"total\": {}}')", "declared metrics are missing: latency_ms"),
        ("print('{\"format\": \"amed-answer/1\", \"total\": {\"latency_ms\": NaN}}')", "expected a finite number"),
        ("print('{\"format\": \"amed-answer/1\", \"total\": {\"latency_ms\": -1}}')", "not negative"),
        ("print('{\"format\": \"amed-answer/1\", \"totel\": 1}')", "unknown keys 'totel'"),
        ("print('{\"format\": \"amed-answer/1\", \"error\": \"board is hot\"}')", "board is hot"),
        (HONEST + "layers.pop()\n" + ANSWER, "in this order"),
        (HONEST + "layers[0]['bound'] = 3\n" + ANSWER, "'bound' is 3"),
        ("import sys\nsys.stdout.buffer.write(b'\\xff')", "no UTF-8"),
    ],
)  # fmt: skip
def test_what_a_program_does_wrong_is_named(program, body, message):
    device = program(body, retries=0)
    with pytest.raises(BackendError, match=f"(?s)device 'mine'.*{message}"):
        evaluate_cost(device, SMALL, SMALL.uniform(4))


def test_microseconds_of_a_program_become_milliseconds(program, tmp_path):
    body = (HONEST + ANSWER).replace('"latency_ms"', '"latency_us"')
    device = program(body, metrics={"latency_us": "us"}, additive=True, bits=[2, 4, 8])
    assert device.metrics == {"latency_ms": "ms"}
    cost = evaluate_cost(device, SMALL, SMALL.uniform(4))
    assert cost["latency_ms"] == pytest.approx(latency(4) / 1000) and "latency_us" not in cost.metrics
    check_hardware(device)
    for metrics in ({"latency_us": "ms"}, {"latency_us": "us", "latency_ms": "ms"}):
        with pytest.raises(DeviceError, match="latency_us"):
            program(body, metrics=metrics)


def test_a_program_may_refuse_a_precision(program, tmp_path):
    refusal = 'print(json.dumps({"format": "amed-answer/1", "unsupported": "no 2 bits here"}))\n'
    device = program(HONEST + refusal, retries=3)
    with pytest.raises(UnsupportedPrecisionError, match="no 2 bits here"):
        evaluate_cost(device, SMALL, SMALL.uniform(2))
    assert calls(tmp_path) == 1


def test_retries_mend_what_passes(program, tmp_path):
    body = HONEST + "if len(open('calls').readlines()) < 3: sys.exit(1)\n" + ANSWER
    assert evaluate_cost(program(body, retries=2), SMALL, SMALL.uniform(4))["latency_ms"] == pytest.approx(latency(4))
    assert calls(tmp_path) == 3


def test_a_hanging_program_is_killed_with_everything_that_it_started(program, tmp_path):
    body = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
        "open('pid', 'w').write(str(child.pid))\nsys.stderr.write('waiting for the board')\nsys.stderr.flush()\n"
        "time.sleep(3600)\n"
    )
    device = program(body, timeout_s=2.0, retries=0)
    with pytest.raises(BackendError, match=r"longer than 2 s and was killed.*waiting for the board"):
        evaluate_cost(device, SMALL, SMALL.uniform(4))
    pid, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 30
    while Path(f"/proc/{pid}/stat").exists() and ") Z" not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_program_that_writes_without_end_is_killed(program, monkeypatch, stream):
    monkeypatch.setattr("amed_env.hardware.external.processes.LARGEST_OUTPUT_MIB", 1)
    device = program(f"import sys\nwhile True: sys.{stream}.write('x' * 9999)\n", retries=0, timeout_s=1000)
    with pytest.raises(BackendError, match=r"wrote more than .* MiB on standard .* and was killed"):
        evaluate_cost(device, SMALL, SMALL.uniform(8))


def test_nothing_of_a_program_can_control_a_terminal(program):
    for body in (
        "import sys\nsys.stderr.write('\\x1b[2Jgone\\x07')\nsys.exit(1)",
        'print(\'{"format": "amed-answer/1", "error": "\\\\u001b[2Jgone"}\')',
        "print('\\x1b[2Jgone')",
    ):
        with pytest.raises(BackendError, match=r"\\x1b\[2Jgone") as caught:
            evaluate_cost(program(body, retries=0), SMALL, SMALL.uniform(8))
        assert "\x1b" not in str(caught.value)


def test_a_program_that_neither_reads_nor_ends_its_children_does_not_hang(program):
    body = (
        "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
        'print(\'{"format": "amed-answer/1", "total": {"latency_ms": 1}}\')\n'
    )
    assert evaluate_cost(program(body), SMALL, SMALL.uniform(4))["latency_ms"] == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("./absent --fast", "cannot start .*absent: No such file or directory; check its path"),
        ("./plain.txt", "make it executable"),
        ("no-such-program-anywhere", "cannot start no-such-program-anywhere"),
        ("", "the command is empty"),
        ("./x 'open", "no command line"),
    ],
)
def test_programs_that_cannot_be_started(tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.txt").write_text("no program")
    with pytest.raises(DeviceError, match=message) as caught:
        evaluate_cost(load_device(f"command: {command}"), SMALL, SMALL.uniform(4))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("timeout: 3", "line 4: unknown key 'timeout'; did you mean 'timeout_s'"),
        ("timeout_s: -1", "line 4: timeout_s: input should be greater than 0, found -1"),
        ("timeout_s: .nan", "line 4: timeout_s"),
        ("timeout_s: 3 s", "line 4: timeout_s: .*found '3 s'"),
        ("workers: 0", "line 4: workers"),
        ("retries: 1.5", "line 4: retries"),
        ("metrics: {latency_ms: s}", "line 4: metrics: 'latency_ms' is in ms everywhere, not in s"),
        ("bits: [2, 99]", "line 4: bits: 99 is no width"),
        ("weight_bits: [2]", "give either bits, or both weight_bits and activation_bits"),
        ("kinds: [convolution]", "line 4: kinds"),
        ("folder: /", "line 4: unknown key 'folder'"),
        ("command: [3]", "line 4: key 'command' duplicates line"),
    ],
)
def test_faults_of_the_file_have_line_and_field(tmp_path, line, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"format: amed-command/1\nname: mine\ncommand: ./x\n{line}\n")
    with pytest.raises(DeviceError, match=rf"mine\.yaml.*{message}"):
        load_device(path)


def test_a_file_may_limit_widths_and_kinds(program):
    device = program(weight_bits=[2, 4], activation_bits=[8], kinds=["conv"])
    capabilities = device.capabilities()
    assert set(capabilities.weight_bits) == {"conv"} and capabilities.weight_bits["conv"] == (2, 4)
    with pytest.raises(UnsupportedPrecisionError, match="no support for kind 'depthwise'"):
        evaluate_cost(device, SMALL, SMALL.uniform(4, 8))


@given(st.text(max_size=200) | st.from_type(dict).map(json.dumps))
def test_no_answer_escapes_as_another_error(text):
    with pytest.raises(AmedError):
        read_answer(text, SMALL, BitAllocation.uniform(SMALL.layer_names, 4), "mine")


@pytest.mark.skipif(shutil.which("cc") is None, reason="the sample in C needs a compiler, cc")
def test_the_sample_in_c(tmp_path, monkeypatch):
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", tmp_path / "simulator", EXAMPLE], check=True)
    monkeypatch.chdir(tmp_path)
    device = load_device("command: ./simulator")
    cost = evaluate_cost(device, SMALL, SMALL.uniform(4))
    cycles = [max(layer.macs / 128, layer.weight_elements * 4 / 64) for layer in SMALL]
    assert [layer.metrics["latency_ms"] for layer in cost.layers] == pytest.approx([c / 100e3 for c in cycles])
    assert cost["latency_ms"] == pytest.approx(sum(cycles) / 100e3)
    assert {layer.bound for layer in cost.layers} == {"compute", "memory"}
    check_hardware(device)
    done = subprocess.run([tmp_path / "simulator"], input="{}", capture_output=True, text=True)
    assert done.returncode == 1 and "amed-request/1" in done.stderr
    assert device.config.folder.samefile(tmp_path)
