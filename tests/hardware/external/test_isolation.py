"""A device in a process of its own: equal answers, a limit on time, and an end for whatever it does."""

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hardware_samples import SMALL
from misbehaving_devices import CannotStart, Steady, Troubled

from amed_env.errors import AllocationError, BackendError, InputError, PluginError, UnsupportedPrecisionError
from amed_env.hardware import check_hardware, cost_table, evaluate_cost, isolated, load_device
from amed_env.hardware.external.isolation import IsolatedBackend


@pytest.fixture
def make():
    """Isolates devices; no process outlives the test."""
    made = []

    def call(device, timeout_s=20.0, retries=None):
        made.append(isolated(device, timeout_s, retries))
        return made[-1]

    yield call
    for device in made:
        device.close()


def expected_latency(bits):
    return sum(layer.macs for layer in SMALL) * bits * 1e-6


def test_answers_are_those_of_the_device(make):
    device = make(Steady())
    assert isinstance(device, IsolatedBackend) and device.name == "steady" and device.description
    assert evaluate_cost(device, SMALL, SMALL.uniform(4))["latency_ms"] == pytest.approx(expected_latency(4))
    table = cost_table(device, SMALL, (2, 8), (8,))
    assert table.metrics["latency_ms"][3, 1, 0] == pytest.approx(SMALL.layers[3].macs * 8e-6)
    assert len(check_hardware(device)) > 5
    copy = pickle.loads(pickle.dumps(device))
    assert evaluate_cost(copy, SMALL, SMALL.uniform(2))["latency_ms"] == pytest.approx(expected_latency(2))
    copy.close()


def test_a_device_that_declares_a_limit_is_isolated_and_others_are_not():
    device = load_device("misbehaving_devices:Steady")
    assert isinstance(device, IsolatedBackend) and device.timeout_s == 20
    assert not isinstance(load_device("bitfusion"), IsolatedBackend)
    assert isolated(device) is device and isolated(device, 5.0).timeout_s == 5


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("hang", r"evaluate\(\) took longer than 1 s; its process was ended"),
        ("fail", "RuntimeError: the licence server is away"),
        ("leave", "SystemExit: 3"),
        ("die", r"died during evaluate\(\) \(signal SIGABRT\).*out of registers"),
        ("nan", "expected a finite number"),
    ],
)
def test_trouble_is_a_backend_error_and_the_next_call_works(make, trouble, message):
    device = make(Troubled(trouble), timeout_s=1.0)
    with pytest.raises(BackendError, match=message):
        evaluate_cost(device, SMALL, SMALL.uniform(2))
    assert evaluate_cost(device, SMALL, SMALL.uniform(4))["latency_ms"] == pytest.approx(expected_latency(4))


def test_a_device_that_prints_without_end_is_ended(make, monkeypatch):
    monkeypatch.setattr("amed_env.hardware.external.isolation.LARGEST_OUTPUT_MIB", 1)
    device = make(Troubled("babble"), timeout_s=1000.0)
    with pytest.raises(BackendError, match=r"printed more than 1 MiB during evaluate\(\)"):
        evaluate_cost(device, SMALL, SMALL.uniform(2))
    assert evaluate_cost(device, SMALL, SMALL.uniform(8))["latency_ms"] == pytest.approx(expected_latency(8))


@pytest.mark.parametrize("trouble", ["fail", "die"])
def test_passing_trouble_is_mended_by_a_retry(make, tmp_path, trouble):
    device = make(Troubled(trouble, times=2, counter=str(tmp_path / "count")), retries=2)
    retried = []
    cost = evaluate_cost(device, SMALL, SMALL.uniform(2), retried.append)
    assert cost["latency_ms"] == pytest.approx(expected_latency(2)) and len(retried) == 2
    assert (tmp_path / "count").read_text() == "3"


def test_errors_of_input_pass_through_and_are_not_tried_again(make, tmp_path):
    device = make(Troubled("refuse", counter=str(tmp_path / "count")), retries=5)
    with pytest.raises(UnsupportedPrecisionError, match="Tuesdays"):
        evaluate_cost(device, SMALL, SMALL.uniform(2))
    assert (tmp_path / "count").read_text() == "1"
    with pytest.raises(AllocationError, match="stem"):
        device.evaluate(SMALL, SMALL.uniform(8).__class__({"other": (8, 8)}))


def test_the_process_of_a_hanging_device_is_gone(make):
    device = make(Troubled("hang"), timeout_s=0.5)
    evaluate_cost(device, SMALL, SMALL.uniform(4))
    pid = device._child.process.pid
    with pytest.raises(BackendError, match="longer than"):
        device.evaluate(SMALL, SMALL.uniform(2))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_process_goes_when_its_parent_is_killed(tmp_path):
    program = (
        "import os, sys; from hardware_samples import SMALL; from misbehaving_devices import Troubled\n"
        "from amed_env.hardware import isolated; d = isolated(Troubled('hang'), 100.0)\n"
        "d.evaluate(SMALL, SMALL.uniform(4)); print(d._child.process.pid, flush=True)\n"
        "d.evaluate(SMALL, SMALL.uniform(2))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while _lives(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(pid):
    try:
        # A zombie that nobody waits for has ended too.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_cannot_be_isolated_says_why(make):
    class Local(Steady):
        pass

    with pytest.raises(PluginError, match="cannot be sent to a process of its own"):
        isolated(Local(), 1.0)
    script = type("Scripted", (Steady,), {"__module__": "__main__"})
    with pytest.raises(PluginError, match="a module of its own"):
        isolated(script(), 1.0)
    with pytest.raises(PluginError, match="cannot be loaded in a process of its own"):
        make(CannotStart()).capabilities()


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), float("inf"), "3", True])
def test_limits_are_positive_numbers(wrong):
    with pytest.raises(InputError, match="timeout_s"):
        isolated(Steady(), wrong)


@pytest.mark.parametrize("wrong", [0, -5.0])
def test_limits_of_devices_that_keep_to_them_on_their_own_are_checked_too(wrong):
    device = Steady()
    device.limits_itself = True
    with pytest.raises(InputError, match="timeout_s"):
        isolated(device, wrong)
    assert device.timeout_s == 20 and isolated(device, 3).timeout_s == 3


def test_the_device_of_the_caller_stays_as_it_is(tmp_path):
    class Plain(Steady):
        timeout_s = None

    device = Plain()
    changed = isolated(device, retries=7)
    assert (changed.retries, device.retries) == (7, 1) and type(changed) is Plain
    assert isolated(device, retries=1) is device
    inner = isolated(Steady(), 20.0)
    changed = isolated(inner, 5.0, 7)
    assert (changed.timeout_s, changed.retries, inner.timeout_s, inner.retries) == (5, 7, 20, 1)
    program = load_device("command: ./absent")
    changed = isolated(program, 5.0, 7)
    assert (changed.timeout_s, changed.retries, program.timeout_s, program.retries) == (5, 7, 60, 1)
    closing = type("Closing", (Plain,), {"__del__": lambda self: None})()
    with pytest.raises(PluginError, match="cannot be copied to set retries: it has a method __del__"):
        isolated(closing, retries=7)
    assert isolated(closing) is closing


@pytest.mark.parametrize("wrong", [-1, 1.5, True])
def test_retries_are_whole_numbers(wrong):
    with pytest.raises(InputError, match="retries"):
        isolated(Steady(), 1.0, wrong)
