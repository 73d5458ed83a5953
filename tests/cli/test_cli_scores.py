"""What is optimised and measured, from the command line."""

import json

import pytest

UNLABELLED = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    inputs = torch.randn(90, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    return {"network": network, "calibration": inputs[:30], "search": inputs[30:]}


def regression():
    parts = make()
    torch.manual_seed(0)
    parts["network"] = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
    test = torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    return {**parts, "test": (test, test.mean(dim=(1, 2, 3)))}


def furthest(outputs, float_outputs):
    return (outputs - float_outputs).abs().amax(dim=1)


class Wrong:
    higher_is_better = False

    def __init__(self):
        self.wrong = self.count = 0

    def update(self, outputs, targets):
        self.wrong, self.count = self.wrong + int((outputs.argmax(1) != targets).sum()), self.count + len(targets)

    def compute(self):
        return self.wrong / self.count
"""
SEARCH = ["search", "--recipe", "nearest", "--agent", "milp", "--budget", "memory=0.6", "-n", 6, "--out", "run"]


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own_scores.py").write_text(UNLABELLED)
    return "own_scores"


def test_a_network_without_labels_and_without_test_samples(amed, own):
    answer = amed(*SEARCH, "--network", f"{own}:make", "--json")
    document = answer.json
    assert answer.code == 0 and document["score"]["name"] == "divergence" and document["verdict"] is None
    best = document["best"]
    assert best["search"]["score"] > 0 and "accuracy" not in best["search"] and best["test"] is None
    said = " ".join(answer.err.split())
    assert "60 samples score allocations" in said and "nothing unseen confirms the result" in said
    shown = amed(*SEARCH, "--network", f"{own}:make", "--resume")
    assert "search divergence" in shown.out and "divergence" in shown.out.splitlines()[-5]


def test_a_regressor_is_judged_by_its_absolute_error(amed, own):
    document = amed(*SEARCH, "--network", f"{own}:regression", "--json").json
    assert document["score"]["name"] == "squared-error"
    assert document["best"]["search"]["metrics"] == {} and set(document["best"]["test"]["metrics"]) == {"mae"}
    verdict = document["verdict"]
    assert verdict["score"]["name"] == "mae" and verdict["samples"] == 40
    assert verdict["chosen"]["value"] == pytest.approx(document["best"]["test"]["metrics"]["mae"])


def test_functions_and_metrics_of_ones_own(amed, own):
    arguments = ["evaluate", "digits-cnn", "--recipe", "nearest", "--bits", 4, "--json"]
    found = amed(*arguments, "--score", f"{own}:furthest", "--metric", f"{own}:Wrong", "--metric", "macro-f1").json
    assert found["score_name"] == "furthest" and set(found["metrics"]) == {"Wrong", "macro-f1", "top-1"}
    assert found["metrics"]["Wrong"] == pytest.approx(1 - found["accuracy"])
    by_metric = amed(*arguments, "--score", f"{own}:Wrong").json
    assert by_metric["score_name"] == "Wrong" and by_metric["score"] == found["metrics"]["Wrong"]
    assert not by_metric["higher_is_better"]
    table = amed(*arguments[:-1], "--metric", "macro-f1").out
    assert "divergence" in table and "macro F1" in table and "accuracy" in table


def test_the_verdict_is_the_last_word(amed):
    arguments = ["search", "digits-cnn", "--recipe", "nearest", "--agent", "milp", "--budget", "latency=0.5", "-n", 3]
    document = amed(*arguments, "--out", "run", "--json").json
    verdict = document["verdict"]
    assert verdict["score"]["name"] == "top-1" and verdict["samples"] == 500
    assert verdict["chosen"]["value"] == pytest.approx(document["best"]["test"]["accuracy"])
    uniform = document["baselines"][f"uniform-{verdict['uniform_bits']}"]
    assert uniform["feasible"]
    gain = document["best"]["test"]["accuracy"] - uniform["test"]["accuracy"]
    assert verdict["over_uniform"]["value"] == pytest.approx(gain)
    shown = amed(*arguments, "--out", "run", "--resume").out
    assert "on 500 unseen samples" in shown


def test_a_search_is_continued_with_its_own_score(amed, tmp_path):
    arguments = ["search", "digits-cnn", "--recipe", "nearest", "--agent", "milp", "--budget", "latency=0.5", "-n", 3]
    arguments += ["--out", "run"]
    assert amed(*arguments, "--score", "metric").code == 0
    answer = amed(*arguments, "--resume")
    assert answer.code == 2 and 'score (there "top-1", now "divergence")' in answer.err
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    del config["settings"]["score"]  # as earlier versions, which knew accuracy only
    path.write_text(json.dumps(config))
    assert 'score (there "top-1"' in amed(*arguments, "--resume").err
    assert amed(*arguments, "--score", "metric", "--resume").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits-cnn", "--score", "divergance"], "did you mean 'divergence'"),
        (["digits-cnn", "--metric", "macro-f"], "did you mean 'macro-f1'"),
        (["digits-cnn", "--score", "nowhere:function"], "cannot import 'nowhere'"),
        (["tabular/digits-cnn", "--score", "mae"], "unknown score of a table 'mae'"),
        (["tabular/digits-cnn", "--metric", "mcc"], "other metrics belong to the task of the network itself"),
    ],
)
def test_scores_and_metrics_that_there_are_not(amed, arguments, message):
    answer = amed("evaluate", *arguments, "--bits", 4)
    assert answer.code != 0 and message in " ".join(answer.err.split())
