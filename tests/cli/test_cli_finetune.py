import csv
import errno
import json
import os
import signal

import pytest
import torch

from amed_env import BitAllocation
from amed_env.training.trainer import Trainer

TUNE = ["finetune", "digits-cnn", "--recipe", "nearest", "--learning-rate", 0.01, "--out", "run"]
SHORT = [*TUNE, "--bits", 2, "--epochs", 2]


def without_times(document):
    found = {key: value for key, value in document.items() if key not in ("seconds", "files")}
    found["history"] = [{**epoch, "seconds": 0} for epoch in document["history"]]
    return found


def test_from_an_allocation_to_trained_weights(amed, tmp_path):
    allocation = BitAllocation.from_json(amed("evaluate", "digits-cnn", "--bits", 2, "--json").json["allocation"])
    allocation = allocation.replace({"stem": (8, 8), "pointwise": (3, 4)})
    allocation.save(tmp_path / "mine.json")
    answer = amed(*TUNE, "--allocation", "mine.json", "--epochs", 3, "--json")
    assert answer.code == 0 and "epoch 3 of 3" in answer.err
    document = answer.json
    assert document["format"] == "amed-finetuned/1" and document["float"]["test"]["correct"] == 496
    assert BitAllocation.from_json(document["allocation"]) == allocation
    assert document["after"]["test"]["samples"] == 500 and document["best_validation"]["samples"] == 200
    assert document["after"]["search"]["loss"] < document["before"]["search"]["loss"] - 0.1
    folder = tmp_path / "run"
    visible = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    files = {"config.json", "checkpoint.safetensors", "curve.csv", "weights.safetensors", "allocation.json"}
    assert visible == {*files, "result.json", "tensorboard"} and list((folder / "tensorboard").iterdir())
    assert json.loads((folder / "result.json").read_text()) == {k: v for k, v in document.items() if k != "files"}
    rows = list(csv.DictReader((folder / "curve.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    for row, epoch in zip(rows, document["history"], strict=True):
        assert float(row["validation_accuracy"]) == pytest.approx(epoch["validation"]["accuracy"], rel=1e-5)
    elements = {"stem": (144, 8), "pointwise": (512, 3)}
    others = 24_160 - 144 - 512
    mean = (others * 2 + sum(count * bits for count, bits in elements.values())) / 24_160
    assert document["mean_weight_bits"] == pytest.approx(mean)
    # The existing evaluator says the same of what lies in the folder.
    arguments = ["evaluate", "digits-cnn", "--finetuned", "run", "--recipe", "nearest", "--split", "all", "--json"]
    correct = sum(document["after"][split]["correct"] for split in ("search", "test"))
    assert amed(*arguments).json["correct"] == correct
    assert "fine-tuned" in amed(*TUNE, "--allocation", "mine.json", "--epochs", 3, "--resume").out


def interrupt_at(monkeypatch, step, number):
    train_step = Trainer.train_step

    def interrupted(self):
        if self.step == step:
            signal.raise_signal(number)
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)


def test_a_signal_keeps_a_checkpoint_and_resume_ends_alike(amed, tmp_path, monkeypatch):
    for number, step in ((signal.SIGINT, 2), (signal.SIGTERM, 5)):
        with monkeypatch.context() as patch:
            interrupt_at(patch, step, number)
            answer = amed(*SHORT, "--resume")
        assert answer.code == 128 + number and f"step {step + 1} of 8" in answer.err and "--resume" in answer.err
        assert (tmp_path / "run" / "checkpoint.safetensors").exists()
        assert not (tmp_path / "run" / "result.json").exists()
    answer = amed(*SHORT, "--resume", "--json")
    assert "continuing after step 6 of 8" in answer.err
    whole = amed(*SHORT, "--out", "whole", "--json")
    assert without_times(answer.json) == without_times(whole.json)


def test_the_walk_chooses_an_allocation_within_its_budget(amed, tmp_path):
    walk = [*TUNE, "--walk", "--budget", "memory=0.5", "--walk-epochs", 2, "--walk-every", 1, "--epochs", 3]
    answer = amed(*walk, "--bits", "2,4,8", "--pin", "first=8", "--activation-bits", 8, "--json")
    document = answer.json
    assert answer.code == 0 and document["walk"] == {"evaluations": 8, "every": 1}
    allocation = BitAllocation.from_json(document["allocation"])
    assert allocation["stem"] == (8, 8) and {p.weight_bits for p in allocation.values()} <= {2, 4, 8}
    assert {p.activation_bits for p in allocation.values()} == {8}
    assert document["relative_costs"]["memory"] <= 0.5 + 1e-9
    assert BitAllocation.load(tmp_path / "run" / "allocation.json") == allocation
    answer = amed(*walk, "--bits", "2,4,8", "--resume")
    assert answer.code == 2 and "pins (there" in answer.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits-cn", "--bits", 3], "did you mean 'digits-cnn'"),
        (["kws-dscnn", "--bits", 3], "no training set"),
        (["tabular/digits-cnn", "--bits", 3], "a table of accuracies"),
        (["digits-cnn"], "--allocation FILE or --bits N"),
        (["digits-cnn", "--bits", "2,3"], "a list belongs to --walk"),
        (["digits-cnn", "--bits", 3, "--allocation", "lacking.json"], "both are"),
        (["digits-cnn", "--allocation", "lacking.json"], "lacks 'block1.conv1'"),
        (["digits-cnn", "--allocation", "absent.json"], "absent.json"),
        (["digits-cnn", "--bits", 3, "--budget", "latency=0.5"], "belong to --walk"),
        (["digits-cnn", "--walk"], "needs a --budget"),
        (["digits-cnn", "--walk", "--budget", "memory=0.5", "--allocation", "lacking.json"], "leave --allocation out"),
        (["digits-cnn", "--walk", "--budget", "memory=0.1"], "smallest reachable"),
        (["digits-cnn", "--walk", "--budget", "memory=0.5", "--epochs", 2], "give more epochs"),
        (["digits-cnn", "--walk", "--budget", "memory=0.5", "--option", "temprature=1"], "temperature"),
        (["digits-cnn", "--bits", 3, "--learning-rate", "-1"], "learning_rate"),
        (["digits-cnn", "--bits", 3, "--distill", "2"], "--distill"),
    ],
)
def test_bad_input_leaves_no_folder(amed, tmp_path, arguments, message):
    BitAllocation({"stem": (8, 8)}).save(tmp_path / "lacking.json")
    answer = amed("finetune", *arguments, "--out", "run", "--recipe", "nearest")
    assert answer.code == 2 and message in answer.err and answer.out == ""
    assert not (tmp_path / "run").exists()


def test_missing_training_images_name_the_cure(amed, tmp_path, monkeypatch):
    monkeypatch.setenv("AMED_DATA_DIR", str(tmp_path))
    answer = amed("finetune", "cifar10-resnet20", "--bits", 3, "--out", "run")
    assert answer.code == 2 and "amed fetch cifar10-resnet20" in answer.err


def test_a_loss_of_nan_names_the_step(amed, monkeypatch):
    loss = Trainer._loss
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_loss", lambda self, *given: loss(self, *given) * (torch.nan if self.step == 2 else 1))
        answer = amed(*SHORT)
    assert answer.code == 1 and "step 3 of 8" in answer.err and "lower learning rate" in answer.err
    assert amed(*SHORT, "--resume").code == 0


def test_a_full_disk_keeps_the_last_checkpoint(amed, monkeypatch):
    from amed_env.training import finetuning

    write = finetuning.write_state

    def full(path, tensors, values):
        if values["step"] > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, tensors, values)

    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "write_state", full)
        answer = amed(*SHORT)
    assert answer.code == 1 and "No space left" in answer.err and "--resume" in answer.err
    assert "continuing after step 4 of 8" in amed(*SHORT, "--resume").err


def test_finetuned_folders_that_do_not_fit_are_refused(amed, tmp_path):
    evaluate = ["evaluate", "digits-cnn", "--recipe", "nearest", "--finetuned"]
    answer = amed(*evaluate, "absent")
    assert answer.code == 2 and "no finished training" in answer.err
    answer = amed(*evaluate, "absent", "--bits", 4)
    assert answer.code == 2 and "its own allocation" in answer.err
    answer = amed("evaluate", "tabular/digits-cnn", "--finetuned", "absent")
    assert answer.code == 2 and "looked up in a table" in answer.err


def test_an_allocation_without_narrow_widths_is_refused(amed):
    answer = amed("finetune", "digits-cnn", "--bits", 32, "--epochs", 1, "--out", "tuned")
    assert answer.code == 2 and "nothing to train" in answer.err


OWN_NETWORK = """
import torch
from torch import nn

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.attention = nn.Embedding(20, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, tokens):
        x = self.table(tokens)
        return self.head((x + self.attention(x, x, x)[0]).mean(1))

def samples(count, seed):
    tokens = torch.randint(0, 20, (count, 6), generator=torch.Generator().manual_seed(seed))
    return tokens, (tokens < 10).float().mean(1).gt(0.5).long()

def make():
    torch.manual_seed(0)
    names = ("calibration", "search", "test", "training")
    return {"network": Tokens(), **{name: samples(128, seed) for seed, name in enumerate(names)}}

def without_training():
    return {name: part for name, part in make().items() if name != "training"}
"""


def test_a_network_of_ones_own_brings_its_training_samples(amed, tmp_path, monkeypatch):
    (tmp_path / "own_tokens.py").write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    tune = ["finetune", "--network", "own_tokens:make", "--recipe", "nearest", "--bits", 3]
    answer = amed(*tune, "--epochs", 8, "--batch-size", 16, "--learning-rate", 0.05, "--out", "run", "--json")
    assert answer.code == 0
    document = answer.json
    assert document["after"]["search"]["loss"] < document["before"]["search"]["loss"]
    assert document["best_validation"]["samples"] == 12  # a tenth of what it brings
    assert (tmp_path / "run" / "weights.safetensors").exists()
    evaluated = amed("evaluate", *tune[1:-2], "--finetuned", "run", "--json")
    assert evaluated.json["correct"] == document["after"]["search"]["correct"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "own_tokens:without_training"], "add training=(inputs, labels)"),
        (["digits-cnn", "--network", "own_tokens:make"], "both are given"),
        ([], "neither is"),
    ],
)
def test_finetune_says_what_a_network_lacks(amed, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "own_tokens.py").write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    answer = amed("finetune", *arguments, "--recipe", "nearest", "--bits", 3, "--out", "run")
    assert answer.code == 2 and message in answer.err
