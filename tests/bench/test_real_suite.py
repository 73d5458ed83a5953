"""Suites without tables: quality is evaluated, results are checked by evaluating again, and nobody claims a regret."""

import json
from dataclasses import replace
from hashlib import sha256

import pytest

from amed_env.bench.leaderboard import rank
from amed_env.bench.suites import SUITES, BudgetedDevice, CellGrid, Cells, Suite, cell_task
from amed_env.bench.validation import validate
from amed_env.commands.bench.run import BenchOptions, bench
from amed_env.errors import InputError

GRID = CellGrid((BudgetedDevice("bitfusion", "latency"),), (0.6,))


@pytest.fixture
def evaluated(monkeypatch):
    suite = Suite("evaluated", "for tests", ("digits-cnn",), ((Cells.HELD_OUT, GRID), (Cells.DEVELOPMENT, GRID)))
    monkeypatch.setitem(SUITES, suite.name, suite)
    return suite


def test_results_on_a_network_hold_and_edited_ones_do_not(evaluated, tmp_path, capsys):
    assert bench("evaluated", BenchOptions(out=tmp_path, seeds=1, evaluations=3, as_json=True)) == 0
    rows = {row["agent"]: row for row in json.loads(capsys.readouterr().out)["agents"]}
    assert set(rows) == {"random", "greedy"} and "regret" not in rows["greedy"]

    path = tmp_path / "greedy.jsonl"
    header, run = map(json.loads, path.read_text().splitlines())
    task = cell_task(evaluated.cells()[0])
    assert header["tables"] == {"digits-cnn": sha256(task.evaluator.fingerprint.encode()).hexdigest()}
    assert rows["greedy"]["mean_accuracy"] == run["improvements"][-1]["accuracy"]
    assert validate(path, None).valid
    with pytest.raises(InputError, match="has no table, so nobody knows the regret"):
        rank([validate(path, 0)])

    run["improvements"][-1]["correct"] += 1
    path.write_text(f"{json.dumps(header)}\n{json.dumps(run)}\n")
    assert "correct is claimed" in validate(path, 0).problems[0]


def test_cells_of_one_network_share_its_evaluator(evaluated):
    cell = evaluated.cells()[0]
    one, two = cell_task(cell), cell_task(replace(cell, budget=(("latency", 0.7),)))
    assert one.evaluator is two.evaluator and one.predicted_loss is two.predicted_loss
