"""The pool of processes: what it sends, what it gives back, and what it leaves behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from amed_env.errors import AmedError, WorkerDiedError
from amed_env.support.processes import ProcessPool


def scaled(factor, number):
    if number == 3:
        os._exit(3)
    if number < 0:
        raise ValueError(f"{number} is negative")
    return factor * number


def threads(held, part):
    return torch.get_num_threads()


def sleep(held, path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(100)


def ended(process_id):
    """Whether a process is gone within a few seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return True
        multiprocessing.active_children()  # lets go of those that have ended
        time.sleep(0.02)
    return False


def test_a_process_that_dies_costs_the_part_that_killed_it_and_errors_arrive():
    with ProcessPool(2, 10) as pool:
        futures = dict(pool.completed(scaled, iter([*range(6), -1])))
        assert {part: future.result() for part, future in futures.items() if part not in (3, -1)} == {
            0: 0, 1: 10, 2: 20, 4: 40, 5: 50
        }  # fmt: skip
        with pytest.raises(WorkerDiedError, match="a worker process ended unexpectedly"):
            futures[3].result()
        with pytest.raises(ValueError, match="-1 is negative"):
            futures[-1].result()
        ((_, future),) = pool.completed(threads, [None])  # and goes on working
        assert future.result() == 1


def test_what_cannot_be_sent_is_reported():
    with pytest.raises(AmedError, match=r"cannot be sent to other processes.*one worker"):
        ProcessPool(1, lambda: None)


SCRIPT = """
import sys
from test_processes import sleep
from amed_env.support.processes import ProcessPool

if __name__ == "__main__":
    list(ProcessPool(1, None).completed(sleep, sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are those of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_the_one_that_started_them(tmp_path, number):
    (tmp_path / "script.py").write_text(SCRIPT)
    path = tmp_path / "process"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", path], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 100
        while not (path.exists() and path.read_text()):
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        parent.send_signal(number)
        parent.wait(timeout=30)
        assert ended(int(path.read_text()))
    finally:
        parent.kill()
