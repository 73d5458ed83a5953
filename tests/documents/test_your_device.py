"""`docs/your_device.md` is true: every file that it shows works, and every command runs as printed."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from warm import run_warm

from amed_env import AmedError

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "your_device.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)(?: (\S+))?\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
FILES = {name: text for language, name, text in BLOCKS if name and language != "sh"}
SCRIPTS = [(text, name == "cc") for language, name, text in BLOCKS if language == "sh"]


PROGRAMS = {"amed": ["-m", "amed_env"], "python": []}
"""Arguments of Python that stand for a program of the page, so that those under test run."""


@pytest.fixture
def folder(tmp_path):
    """A folder with every file of the page."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "docs" / "examples" / "simulator.c", tmp_path)
    return tmp_path


def run(script, folder):
    """Run the lines of a script until one fails; returns the last that ran."""
    for line in script.splitlines():
        program, *arguments = shlex.split(line)
        if program in PROGRAMS:
            done = run_warm([*PROGRAMS[program], *arguments], folder)
        else:
            done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            break
    return done


def test_the_page_has_all_ways():
    assert set(FILES) == {
        "my_device.yaml", "my_board.csv", "my_layers.csv", "my_array.json", "my_board_smooth.yaml", "my_npu.py",
        "test_my_npu.py", "my_simulator.yaml", "my_chip.yaml", "my_fpga.py", "other_names.csv", "other_names.yaml",
    }  # fmt: skip
    assert len(SCRIPTS) == 10
    for name in ("my_device.yaml", "my_board.csv", "my_npu.py", "my_simulator.yaml"):
        assert len([line for line in FILES[name].splitlines() if line.strip()]) <= 10, name


@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_commands_run_as_printed(folder, number):
    script, needs_compiler = SCRIPTS[number]
    if needs_compiler:
        if shutil.which("cc") is None:
            pytest.skip("the example in C needs a compiler, cc")
        compiled = run(SCRIPTS[[c for _, c in SCRIPTS].index(True)][0].splitlines()[0], folder)
        assert compiled.returncode == 0, compiled.stderr
    done = run(script, folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_array_of_the_page(folder):
    np.save(folder / "my_array.npy", np.full((2, 2, 1), 1000.0))
    done = run("amed simulate --layers my_layers.csv --bits 4 --activation-bits 8 --device my_array.npy --json", folder)
    assert json.loads(done.stdout)["total"]["latency_ms"] == pytest.approx(2 * 1000 / 200e3)


def test_formats_of_the_page_are_those_of_the_program():
    from amed_env import Workload
    from amed_env.hardware.external.command_format import ANSWER_FORMAT, REQUEST_FORMAT, read_answer, request_text
    from amed_env.tasks.catalogue import named_workload

    network = named_workload("digits-cnn")
    request = next(text for language, _, text in BLOCKS if not language and REQUEST_FORMAT in text)
    head = request.partition("…")[0].rstrip().rstrip(",")
    assert request_text(network, network.uniform(4)).startswith(head)
    answers = next(text for language, _, text in BLOCKS if not language and ANSWER_FORMAT in text).splitlines()
    first = Workload("one", network.layers[:1])
    cost = read_answer(answers[0].replace(", …", ""), first, first.uniform(4), "it")
    assert cost["latency_ms"] == 1.5 and cost.layers[0].bound == "memory"
    for answer, message in zip(answers[1:], ("no 2 bits", "the board"), strict=True):
        with pytest.raises(AmedError, match=message):
            read_answer(answer, first, first.uniform(4), "it")
