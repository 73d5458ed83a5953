import json

import pytest
from warm import run_warm

from amed_env import BitAllocation


def test_uniform_width_with_costs(amed):
    document = amed("evaluate", "digits-cnn", "--bits", 4, "--json").json
    assert document["samples"] == 500 and document["accuracy"] == document["correct"] / 500 > 0.9
    assert document["relative_costs"]["memory"] == pytest.approx(0.5)
    assert document["relative_costs"]["bops"] == pytest.approx(0.25)
    assert document["device"] == "bitfusion" and document["costs"]["weight_kib"] > 0


def test_weights_only_on_all_samples_has_no_costs(amed):
    answer = amed("evaluate", "digits-cnn", "--bits", 8, "--activation-bits", 32, "--split", "all", "--json")
    document = answer.json
    assert document["samples"] == 1000 and document["costs"] is None and "32-bit" in document["costs_missing"]
    parts = [amed("evaluate", "digits-cnn", "--bits", 8, "--activation-bits", 32, "--split", split, "--json").json
             for split in ("search", "test")]  # fmt: skip
    assert document["correct"] == sum(part["correct"] for part in parts)


def test_allocation_file_and_tables(amed, tmp_path):
    document = amed("evaluate", "digits-cnn", "--bits", 3, "--json").json
    BitAllocation.from_json(document["allocation"]).save(tmp_path / "three.json")
    answer = amed("evaluate", "digits-cnn", "--allocation", "three.json")
    assert f"{100 * document['accuracy']:.2f} %" in answer.out and "of 8 bit" in answer.out


def test_own_network(amed, networks):
    document = amed("evaluate", "--network", f"{networks}:make", "--recipe", "nearest", "--bits", 8, "--json").json
    assert document["network"] == f"{networks}.make" and document["samples"] == 30


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["digits-cn", "--bits", 4], 2, "did you mean 'digits-cnn'"),
        (["digits-cnn"], 2, "--allocation FILE or --bits N"),
        (["digits-cnn", "--bits", 4, "--split", "tset"], 2, "tset"),
        (["digits-cnn", "--allocation", "absent.json"], 2, "absent.json"),
        (["--bits", 4], 2, "neither is given"),
        (["--network", "cli_networks:number", "--bits", 4], 2, "returned int"),
        (["--network", "cli_networks:mak", "--bits", 4], 2, "did you mean 'make'"),
        (["--network", "cli_networks:broken", "--bits", 4], 2, "no such thing"),
        (["--network", "no_such_module:make", "--bits", 4], 2, "no_such_module"),
        (["--network", "cli_networks:with_nan", "--bits", 4], 1, "NaN"),
    ],
)
def test_bad_input(amed, networks, arguments, code, message):
    answer = amed("evaluate", *arguments)
    assert answer.code == code and message in answer.err


def test_missing_data_names_the_cure(amed, tmp_path, monkeypatch):
    monkeypatch.setenv("AMED_DATA_DIR", str(tmp_path))
    for arguments in (["evaluate", "cifar10-resnet20", "--bits", 8], ["search", "cifar10-resnet20", "--out", "run"]):
        answer = amed(*arguments)
        assert answer.code == 2 and "amed fetch cifar10-resnet20" in answer.err
    assert not (tmp_path / "run").exists()


def test_tables_need_no_data(amed, tmp_path, monkeypatch):
    monkeypatch.setenv("AMED_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    task = "tabular/cifar10-resnet8"
    answer = amed("search", task, "--agent", "greedy", "--budget", "latency=0.5", "--evaluations", 3, "--out", "run")
    assert answer.code == 0 and (tmp_path / "run" / "result.json").exists()
    assert amed("evaluate", task, "--bits", 4, "--json").code == 0
    assert "block3.shortcut" in amed("inspect", task).out  # the layers of the network, without its weights


@pytest.mark.data
def test_fetch_says_what_is_there(amed, amed_data_dir):
    files = amed("fetch", "cifar10-resnet20", "--to", amed_data_dir, "--json").json["files"]
    assert [file["downloaded"] for file in files] == [False, False]
    assert "already in" in amed("fetch", "cifar10-resnet20", "--to", amed_data_dir).out


def test_fetch_of_a_task_that_needs_nothing(amed):
    assert "needs no download" in amed("fetch", "digits-cnn").out
    assert amed("fetch", "digits-cn").code == 2


def test_pinned_layers_of_a_uniform_allocation(amed):
    layers = amed("evaluate", "digits-cnn", "--bits", 4, "--pin", "last=8", "--json").json["allocation"]["layers"]
    assert layers.pop("classifier") == {"w": 8, "a": 8}
    assert set(map(str, layers.values())) == {"{'w': 4, 'a': 4}"}
    answer = amed("evaluate", "digits-cnn", "--allocation", "a.json", "--pin", "last=8")
    assert answer.code == 2


def test_what_compiled_code_prints_does_not_end_up_in_the_json_document(tmp_path):
    (tmp_path / "noisy.py").write_text(
        "import ctypes\n"
        "import torch\n"
        "from torch import nn\n"
        "def make():\n"
        "    ctypes.CDLL(None).puts(b'noise of a library')\n"
        "    images, labels = torch.rand(60, 1, 6, 6), torch.arange(60) % 3\n"
        "    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))\n"
        "    parts = {'calibration': images[:20], 'search': (images[20:40], labels[20:40])}\n"
        "    return {'network': network, 'test': (images[40:], labels[40:]), **parts}\n"
    )
    command = ["-m", "amed_env", "evaluate", "--network", "noisy:make", "--bits", "8"]
    done = run_warm([*command, "--recipe", "nearest", "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) and "noise of a library" in done.stderr
