"""How the tests call `amed`: in this process where they can, in another one where signals and locks matter."""

import json
import sqlite3
import sys
import time
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner
from warm import WarmPopen

from amed_env.cli import app

NETWORKS = """
import torch
from torch import nn


def _parts(network):
    inputs = torch.randn(90, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(90) % 3
    parts = {"calibration": inputs[:30], "search": (inputs[30:60], labels[30:60]), "test": (inputs[60:], labels[60:])}
    return {"network": network, **parts}


def make():
    print("noise on stdout")
    torch.manual_seed(0)
    return _parts(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)))


def with_nan():
    parts = make()
    parts["network"][1].weight.data[0, 0] = float("nan")
    return parts


def number():
    return 3


def broken():
    raise RuntimeError("no such thing")
"""


@dataclass
class Answer:
    """What a call of `amed` left."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        def refuse(constant):
            raise ValueError(constant)

        return json.loads(self.out, parse_constant=refuse)


@pytest.fixture
def amed(tmp_path, monkeypatch):
    """Calls `amed` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))

    def call(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def networks(tmp_path):
    """A module of networks in the current folder."""
    (tmp_path / "cli_networks.py").write_text(NETWORKS)
    yield "cli_networks"
    sys.modules.pop("cli_networks", None)


class Process:
    """An `amed` in another process, in a folder."""

    def __init__(self, folder, arguments):
        self.popen = WarmPopen(["-m", "amed_env", *arguments], folder)

    def wait_for_trials(self, store, number):
        """Wait until the store holds so many trials."""
        deadline = time.monotonic() + 120
        while len(stored_rows(store)) < number:
            assert self.popen.poll() is None, self.popen.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def finish(self):
        out, err = self.popen.communicate(timeout=120)
        return Answer(self.popen.returncode, out, err)


@pytest.fixture
def start(tmp_path):
    """Starts `amed` in another process; none outlives the test."""
    processes = []

    def call(*arguments):
        processes.append(Process(tmp_path, arguments))
        return processes[-1]

    yield call
    for process in processes:
        process.popen.kill()
        process.popen.communicate()


def stored_rows(store):
    """(allocation key, time of creation) of every trial in a store, in order; read only."""
    if not store.exists():
        return []
    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        return connection.execute("SELECT allocation_key, created FROM trials ORDER BY number").fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


@pytest.fixture
def rows_of():
    return stored_rows
