"""What the documents show runs as shown."""

import re
import shlex
from pathlib import Path

import pytest
from warm import run_warm

from amed_env.bench.suites import Cells, find_suite

ROOT = Path(__file__).parents[2]
AGENTS = (ROOT / "agents/README.md").read_text(encoding="utf-8")
WORKED = AGENTS[AGENTS.index("## A policy of your own") :].partition("\n## ")[0]
BENCHMARK = (ROOT / "docs/benchmark.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_worked_agent_runs_as_shown(tmp_path):
    blocks = BLOCK.findall(WORKED)
    assert [language for language, _ in blocks] == ["python", "", "", "", ""]
    for language, text in blocks:
        if language:
            (tmp_path / "my_module.py").write_text(text)
            continue
        program, *arguments = shlex.split(text)
        assert program == "amed"
        done = run_warm(["-m", "amed_env", *arguments], tmp_path)
        assert done.returncode == 0, (text, done.stdout, done.stderr)
    assert "`my_module:MyAgent`" in (tmp_path / "runs/tiny/LEADERBOARD.md").read_text()


def test_the_cells_of_the_document_are_those_of_the_suites():
    for which, start in ((Cells.HELD_OUT, "| held-out"), (Cells.DEVELOPMENT, "| development")):
        line = next(line for line in BENCHMARK.splitlines() if line.startswith(start))
        _, _, devices, budgets, _ = line.split("|")
        for name in ("tiny", "real"):
            cells = find_suite(name).cells(which)
            assert re.findall(r"`(.*?)`", devices) == list(dict.fromkeys(cell.device for cell in cells))
            factors = sorted({factor for cell in cells for _, factor in cell.budget})
            assert budgets.strip() == ", ".join(f"{factor:g}" for factor in factors)
            row = next(line for line in BENCHMARK.splitlines() if line.startswith(f"| `{name}`"))
            assert re.findall(r"`(.*?)`", row)[1:] == list(find_suite(name).tasks)


def test_every_key_of_a_file_is_described():
    from amed_env.bench.result_file import Header, Improvement, Run

    described = set(re.findall(r"`(\w+)`", BENCHMARK))
    names = {*Header.model_fields, *Run.model_fields, *Improvement.model_fields} - {"allocation"}
    assert names <= described
