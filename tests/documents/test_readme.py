"""The README is true: every Python block runs as printed, and every command that it shows exists."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner
from warm import run_warm

from amed_env.cli import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    line.partition(";")[0]
    for language, text in BLOCKS
    if not language
    for line in text.splitlines()
    if line.startswith("amed ")
]


def test_there_is_something_to_run():
    assert len(PYTHON) == 4 and len(COMMANDS) == 11


@pytest.mark.parametrize("block", PYTHON, ids=["own-network", "train", "benchmark", "device"])
def test_python_blocks_run_as_printed(block, tmp_path):
    (tmp_path / "block.py").write_text(block, encoding="utf-8")
    done = run_warm(["block.py"], tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_network_of_ones_own_is_searched_as_the_readme_says(tmp_path):
    (tmp_path / "my_network.py").write_text(PYTHON[0], encoding="utf-8")
    command = next(line for line in COMMANDS if "my_network" in line)
    done = run_warm(["-m", "amed_env", *shlex.split(command)[1:], "--agent", "greedy"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/mine/allocation.json").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_of_every_command_exist(command):
    words = shlex.split(command)
    command_words = words[1:3] if words[1] == "bench" else words[1:2]
    help_text = CliRunner().invoke(app, [*command_words, "--help"]).stdout
    missing = [word for word in words if word.startswith("--") and word not in help_text]
    assert not missing
