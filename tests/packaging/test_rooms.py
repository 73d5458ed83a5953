"""The order of the rooms is kept by a contract that sees imports inside functions too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging_tools import ROOT


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms")
    shutil.copy(ROOT / "setup.cfg", folder)
    ignored = shutil.ignore_patterns("__pycache__", "*.npz", "*.safetensors")
    shutil.copytree(ROOT / "amed_env", folder / "amed_env", ignore=ignored)
    return folder


def lint(folder):
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("room", "imported", "named"),
    [
        ("support/files.py", "amed_env.tasks.task", "amed_env.support is not allowed to import amed_env.tasks"),
        ("hardware/costs.py", "torch", "amed_env.hardware.costs -> torch"),
        ("tasks/make.py", "amed_env", "amed_env.tasks.make -> amed_env"),
    ],
)
def test_an_import_that_climbs_is_found_inside_a_function(copied, room, imported, named):
    path = copied / "amed_env" / room
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n\ndef _climbs():\n    import {imported}\n", encoding="utf-8")
    try:
        done = lint(copied)
    finally:
        path.write_text(before, encoding="utf-8")
    assert done.returncode == 1 and named in done.stdout


@pytest.mark.slow
def test_no_import_climbs(copied):
    done = lint(copied)
    assert done.returncode == 0, done.stdout
