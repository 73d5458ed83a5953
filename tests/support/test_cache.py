import logging
import zipfile

import numpy as np
import pytest

from amed_env.support.cache import cache_dir, cached_array


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AMED_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counter:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return np.arange(6.0).reshape(2, 3) + self.calls


def test_it_is_computed_once(folder):
    compute = Counter()
    found = [cached_array("kind", "print", (2, 3), compute) for _ in range(3)]
    assert compute.calls == 1
    assert all(np.array_equal(each, np.arange(6.0).reshape(2, 3) + 1) for each in found)
    assert [path.suffix for path in folder.rglob("*") if path.is_file()] == [".npy"]


def test_another_fingerprint_or_kind_is_another_array(folder):
    compute = Counter()
    for kind, fingerprint in (("one", "a"), ("one", "b"), ("two", "a"), ("one", "a")):
        cached_array(kind, fingerprint, (2, 3), compute)
    assert compute.calls == 3


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"")


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "header alone": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "text": lambda path: path.write_text("not an array"),
    "pickle": lambda path: np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True),
    "zip": write_zip,
    "broken zip": lambda path: path.write_bytes(b"PK\x03\x04 nothing more"),
    "another shape": lambda path: np.save(path, np.zeros((3, 2))),
    "another type": lambda path: np.save(path, np.zeros((2, 3), dtype=np.float32)),
    "not finite": lambda path: np.save(path, np.full((2, 3), np.nan)),
    "a huge header": lambda path: path.write_bytes(path.read_bytes().replace(b"(2, 3)", b"(2" + b"0" * 15 + b", 3)")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_made_anew(folder, damage, caplog):
    compute = Counter()
    cached_array("kind", "print", (2, 3), compute)
    (path,) = folder.rglob("*.npy")
    damage(path)
    with caplog.at_level(logging.WARNING):
        found = cached_array("kind", "print", (2, 3), compute)
    assert compute.calls == 2
    assert np.array_equal(found, np.arange(6.0).reshape(2, 3) + 2)
    assert "computed again" in caplog.text
    assert np.array_equal(cached_array("kind", "print", (2, 3), compute), found)
    assert compute.calls == 2


def test_a_cache_that_cannot_be_written_is_only_logged(folder, caplog):
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert cached_array("kind", "print", (2, 3), Counter()).shape == (2, 3)
    assert "cannot" in caplog.text


def test_the_variable_names_the_folder(folder, monkeypatch):
    assert cache_dir() == folder
    monkeypatch.delenv("AMED_CACHE_DIR")
    assert cache_dir().name == "amed-env"
