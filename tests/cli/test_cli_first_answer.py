"""A search answers before it learns or evaluates anything; stopping it there leaves the answer, and it goes on."""

import json

from amed_env import BitAllocation
from amed_env.quantization.learned_rounding import RoundingLearner

NETWORKS = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    inputs = torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    parts = {"calibration": inputs[:200], "search": inputs[200:300], "test": inputs[300:]}
    return {"network": nn.Sequential(*layers), **parts}
"""
SEARCH = ["search", "--network", "own:make", "--budget", "latency=0.5", "--agent", "milp", "-n", 3, "--out", "run"]


def test_stopping_a_search_while_it_learns_leaves_its_first_answer(amed, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(NETWORKS)
    monkeypatch.setenv("AMED_CACHE_DIR", str(tmp_path / "cache"))

    def stopped(learner, on_step=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as while_learning:
        while_learning.setattr(RoundingLearner, "run", stopped)
        answer = amed(*SEARCH)
    assert answer.code == 130 and "first answer" in answer.err and "--resume" in answer.err
    folder = tmp_path / "run"
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == ["allocation.json"]
    first = BitAllocation.load(folder / "allocation.json")
    costs = amed("simulate", "--network", "own:make", "--allocation", folder / "allocation.json", "--json").json
    eight = amed("simulate", "--network", "own:make", "--bits", 8, "--json").json
    assert costs["total"]["latency_ms"] <= 0.5 * eight["total"]["latency_ms"] * (1 + 1e-9)

    again = amed(*SEARCH)
    assert again.code == 2 and "allocation.json" in again.err
    resumed = amed(*SEARCH, "--resume", "--prepare-time", 0)
    assert resumed.code == 0 and "rounding learned in 30 of 3,000 steps" in resumed.err
    document = json.loads((folder / "result.json").read_text())
    assert BitAllocation.from_json(document["first_answers"][-1]["allocation"]) == first
    steps = json.loads((folder / "config.json").read_text())["settings"]["recipe"]["steps"]
    assert steps == 30
    # It goes on with what there was time for, whatever there is time for now; so does what else needs the network.
    longer = amed(*SEARCH, "--resume", "-n", 5, "--prepare-time", 1000)
    assert longer.code == 0 and json.loads((folder / "result.json").read_text())["evaluations"] == 5


def test_a_table_answers_at_once_anyway(amed, tmp_path):
    answer = amed("search", "tabular/digits-cnn", "--budget", "latency=0.5", "-n", 2, "--agent", "milp", "--out", "run")
    assert answer.code == 0 and "first answer" not in answer.err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["first_answers"] == []
