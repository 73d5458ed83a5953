"""The choice at the end of a search, from the command line."""

import pytest

NETWORK = """
import torch
from torch import nn


def make():
    torch.manual_seed(3)
    inputs = torch.randn(400, 16, generator=torch.Generator().manual_seed(1))
    network = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)).eval()
    with torch.no_grad():
        labels = network(inputs).argmax(dim=1)
    parts = {"calibration": inputs[:50], "search": inputs[50:70], "test": (inputs[70:150], labels[70:150])}
    return {"network": network, **parts, "training": (inputs[150:], labels[150:])}


def without_training():
    return {name: part for name, part in make().items() if name != "training"}
"""
SEARCH = ["search", "--recipe", "nearest", "--agent", "local", "--budget", "memory=0.3", "-n", 8]


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own_finalists.py").write_text(NETWORK)
    return [*SEARCH, "--network", "own_finalists:make"]


def test_finalists_are_in_the_result_and_the_table_and_a_resumed_search_ends_alike(amed, own):
    document = amed(*own, "--finalists", 3, "--out", "run", "--json").json
    choice = document["finalists"]
    assert choice["samples"] == 270 and choice["tune_steps"] == 0
    names = [finalist["name"] for finalist in choice["finalists"]]
    assert names[:3] == ["1", "2", "3"] and choice["chosen"] in choice["equal"]
    chosen = choice["finalists"][names.index(choice["chosen"])]
    assert document["best"]["allocation"] == chosen["allocation"] and document["best"]["search"] == chosen["search"]
    assert chosen["quality"]["samples"] == 270 and chosen["quality"] == chosen["untuned"]
    again = amed(*own, "--finalists", 3, "--out", "run", "--resume")
    assert "Finalists on 270 samples" in again.out and choice["sentence"] in again.out
    resumed = amed(*own, "--finalists", 3, "--out", "run", "--resume", "--json").json
    assert resumed["finalists"] == choice and resumed["best"] == document["best"]


def test_tuned_weights_are_written_read_and_go_with_their_answer(amed, own, tmp_path):
    document = amed(*own, "--finalists", 2, "--tune-steps", 60, "--out", "run", "--json").json
    choice = document["finalists"]
    assert choice["samples"] == 45 and choice["tune_steps"] == 60  # 20 of the search and 25 held out of training
    assert any(finalist["tuned"] for finalist in choice["finalists"])
    chosen = next(finalist for finalist in choice["finalists"] if finalist["name"] == choice["chosen"])
    assert chosen["tuned"] and chosen["quality"]["score"] < chosen["untuned"]["score"]
    arguments = ["evaluate", "--network", "own_finalists:make", "--recipe", "nearest", "--split", "test", "--json"]
    evaluated = amed(*arguments, "--finetuned", "run").json
    assert evaluated["score"] == document["best"]["test"]["score"]
    untuned = amed(*arguments, "--allocation", "run/allocation.json").json
    assert untuned["score"] != evaluated["score"]
    assert (tmp_path / "run" / "weights.safetensors").is_file()
    assert amed(*own, "--out", "run", "--resume", "--json").json["finalists"]["tune_steps"] == 0
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_what_cannot_be_tuned_is_said_before_the_search_starts(amed, own, tmp_path):
    answer = amed(*own[:-1], "own_finalists:without_training", "--tune-steps", 5, "--out", "run")
    assert answer.code == 2 and "add training=(inputs, labels)" in " ".join(answer.err.split())
    answer = amed("search", "tabular/digits-cnn", "--budget", "latency=0.5", "--tune-steps", 5, "--out", "run")
    assert answer.code == 2 and "has no weights" in " ".join(answer.err.split())
    assert not (tmp_path / "run").exists()


def test_where_there_are_no_more_samples_nothing_is_chosen_again(amed, own):
    document = amed(*own[:-1], "own_finalists:without_training", "--out", "run", "--json").json
    assert document["finalists"] is None
    arguments = ["search", "tabular/digits-cnn", "--agent", "milp", "--budget", "latency=0.5", "-n", 3]
    assert amed(*arguments, "--finalists", 4, "--out", "table", "--json").json["finalists"] is None


def test_fewer_search_samples_are_another_search(amed, own):
    document = amed(*own, "--search-samples", 10, "--finalists", 3, "--out", "few", "--json").json
    assert document["best"]["search"]["samples"] == 10 and document["finalists"]["samples"] == 270
    resumed = amed(*own, "--finalists", 3, "--out", "few", "--resume")
    assert resumed.code != 0 and "fingerprint" in resumed.err
