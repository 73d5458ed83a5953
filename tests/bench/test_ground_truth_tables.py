"""`benchmarks/README.md` says what the tables say."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import typer

from amed_env import make_task

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("ground_truth_tables", ROOT / "benchmarks/ground_truth_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def block(script):
    return script.block()


def test_the_committed_block_is_the_generated_one(script, block):
    text = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    assert script.with_block(text, block) == text


def test_a_figure_of_the_block_by_hand(block):
    """The optimum of digits-cnn whose weights take 0.4 of 8 bit, from the columns of the table."""
    table = make_task("tabular/digits-cnn").evaluator.table
    weights = np.array([layer.weight_elements for layer in table.ties.full])
    rows = np.stack(np.unravel_index(np.arange(len(table)), (4,) * 8), axis=1)
    bits = np.array([2, 3, 4, 8])[rows]
    feasible = bits @ weights <= 0.4 * 8 * weights.sum() * (1 + 1e-9)
    best = 100 * table.correct["search"][feasible].max() / 500
    row = next(r for r in block.splitlines() if r.startswith("| `tabular/digits-cnn` | `edge-tpu-like` | memory 0.4 "))
    assert row.split("|")[4].strip() == f"{best:.2f}"


def test_a_file_that_differs_is_found_and_mended(script, block, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "block", lambda: block)
    path = tmp_path / "README.md"
    path.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    with pytest.raises(typer.Exit):
        script.main(check=True, file=path)
    script.main(check=False, file=path)
    script.main(check=True, file=path)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
