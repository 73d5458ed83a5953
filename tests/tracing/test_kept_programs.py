"""Captured programs in the cache: found again as they were, and never believed when they are not the network's."""

import hashlib
import json
import logging
import os

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F
from warm import warm_context

from amed_env import trace
from amed_env.tracing import kept_programs
from amed_env.tracing import trace as tracing


def rows(count=4):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(0))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AMED_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "programs"


@pytest.fixture
def captures(monkeypatch):
    """The names of the networks that were captured."""
    names, capture = [], tracing.capture

    def noted(network, example, call, name, **options):
        names.append(name)
        return capture(network, example, call, name, **options)

    monkeypatch.setattr(tracing, "capture", noted)
    return names


def test_a_network_is_captured_once(folder, captures):
    first, second = trace(network(), rows(), samples=rows(9)), trace(network(), rows(), samples=rows(9))
    assert captures == ["Sequential"]
    assert torch.equal(first.module(rows(7)), second.module(rows(7)))
    assert (first.workload, first.kept_float, first.difference) == (
        second.workload,
        second.kept_float,
        second.difference,
    )
    assert len(list(folder.iterdir())) == 1


def test_the_random_numbers_of_a_user_are_the_same_with_and_without_the_cache(folder):
    drawn = []
    for _ in range(2):
        given = network()
        torch.manual_seed(1)
        trace(given, rows())
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_samples_are_compared_with_a_kept_program_too(folder, captures):
    assert trace(network(), rows()).difference <= trace(network(), rows(), samples=1000 * rows(64)).difference
    assert captures == ["Sequential"]


DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-5],
    "one bit": lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:],
    "text": lambda content: b"no program",
    "another format": lambda content: changed(content, "format", "amed-program/0"),
    "code": lambda content: changed(content, "nodes", [["x", "call_function", "os.system", [], {"dict": {}}, ""]]),
    "another operation": lambda content: changed(content, "nodes", "aten.relu.default", "aten.sigmoid.default"),
    "no such operation": lambda content: changed(content, "nodes", "aten.relu.default", "aten.no.default"),
}


def changed(content, part, before, after=None):
    """A file with another value of a part of its document, or with one text in it for another."""
    tensors = load(content[32:])
    document = json.loads(tensors["document"].numpy().tobytes())
    document[part] = before if after is None else json.loads(json.dumps(document[part]).replace(before, after))
    tensors["document"] = torch.frombuffer(bytearray(json.dumps(document).encode()), dtype=torch.uint8)
    written = save(tensors)
    return hashlib.sha256(written).digest() + written


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_or_no_longer_true_is_captured_again(folder, captures, caplog, damage):
    expected = trace(network(), rows()).module(rows())
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(trace(network(), rows()).module(rows()), expected)
    assert str(path) in caplog.text and "captured again" in caplog.text
    trace(network(), rows())
    assert len(captures) == 2


def test_the_program_of_another_network_is_not_believed(folder, captures, caplog):
    trace(network(), rows())
    (path,) = folder.iterdir()
    other = path.read_bytes()
    path.unlink()
    expected = trace(network(1), rows()).module(rows())
    (path,) = folder.iterdir()
    path.write_bytes(other)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(trace(network(1), rows()).module(rows()), expected)
    assert "no longer what the network computes" in caplog.text
    assert len(captures) == 3


def test_a_folder_that_cannot_be_written_is_only_logged(folder, captures, caplog):
    folder.parent.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert len(trace(network(), rows()).workload.layers) == 2
    assert "cannot keep" in caplog.text and len(captures) == 1


def test_large_programs_are_not_kept(folder, captures, monkeypatch):
    monkeypatch.setattr(kept_programs, "LARGEST_FILE", 1000)
    trace(network(), rows())
    assert not folder.exists()


def test_those_that_were_not_used_for_longest_make_room(folder, captures, monkeypatch):
    for seed in range(3):
        trace(network(seed), rows())
    for age, path in enumerate(sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(path, (1000 + age, 1000 + age))
    trace(network(0), rows())  # the oldest one is used
    size = max(path.stat().st_size for path in folder.iterdir())
    monkeypatch.setattr(kept_programs, "LARGEST_FOLDER", 3 * size)
    trace(network(3), rows())
    assert len(list(folder.iterdir())) == 3 and len(captures) == 4
    for seed in (3, 2, 0):
        trace(network(seed), rows())
    assert len(captures) == 4
    trace(network(1), rows())
    assert len(captures) == 5


def test_processes_that_capture_at_once_leave_one_whole_file(tmp_path, monkeypatch, captures):
    cache = str(tmp_path / "common")
    processes = [warm_context().Process(target=_trace_with, args=(cache,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    monkeypatch.setenv("AMED_CACHE_DIR", cache)
    trace(network(), rows())
    assert not captures and len(list((tmp_path / "common" / "programs").iterdir())) == 1


def _trace_with(cache):
    os.environ["AMED_CACHE_DIR"] = cache
    trace(network(), rows())


class Flagged(nn.Module):
    """Small inputs do not show its flag."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.limit = nn.Linear(6, 3), None

    def forward(self, x):
        x = self.fc(x)
        return x if self.limit is None else F.hardtanh(x, -self.limit, self.limit)


def test_a_flag_that_no_example_shows_counts(folder, captures):
    """The program would pass the comparison, so only what it is found by can tell."""
    plain, limited = Flagged().eval(), Flagged().eval()
    limited.limit = 1000.0
    large = 1e6 * rows()
    for given in (plain, limited):
        assert torch.equal(trace(given, rows()).module(large), given(large))
    assert len(captures) == 2
