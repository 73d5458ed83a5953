"""`amed export`: files that run, what is printed of them, and clear lines for what cannot be."""

import json

import pytest

from amed_env.deploy.c.building import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
NEAREST = ("--recipe", "nearest", "--threads", 1)


def test_an_allocation_becomes_files_with_a_report(amed, tmp_path):
    result = amed("export", "digits-cnn", "--bits", 4, "--pin", "first=8", *NEAREST, "--out", tmp_path / "c")
    assert "same answer" in result.out and "100.00 %" in result.out
    document = json.loads((tmp_path / "c" / "export.json").read_text())
    (agreement,) = document["agreement"]
    assert agreement["samples"] == 500 and agreement["bit_equal"] == 1
    assert document["allocation"]["layers"]["stem"] == {"w": 8, "a": 8}
    assert document["float_bytes"] > 6 * document["bytes"]


def test_a_search_ends_with_files(amed, tmp_path):
    command = ("search", "digits-cnn", "--agent", "milp", "--budget", "memory=0.4", "-n", 1, *NEAREST)
    amed(*command, "--export", "onnx", "--out", tmp_path / "run")
    document = json.loads((tmp_path / "run" / "export" / "export.json").read_text())
    assert document["agreement"][-1]["same_answer"] == 1
    found = json.loads((tmp_path / "run" / "allocation.json").read_text())
    assert document["allocation"]["layers"] == found["layers"]
    again = amed(
        "export", "digits-cnn", "--run", tmp_path / "run", "--no-verify", *NEAREST, "--out", tmp_path / "c", "--json"
    )
    assert json.loads(again.out)["agreement"] == []
    assert json.loads(again.out)["ideal_weight_bytes"] == document["ideal_weight_bytes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of --allocation FILE, --bits N, --run DIR and --finetuned DIR, not none"),
        (("--bits", 4, "--run", "x"), "not --bits and --run"),
        (("--run", "nowhere"), "nowhere has no allocation.json"),
        (("--bits", 4, "--verify", "0"), "--verify takes test, search or a number of samples, not '0'"),
        (("--bits", 4, "--verify", 5, "--no-verify"), "exclude each other"),
        (("--bits", 32), "C is exported for integers of at most 8 bits"),
        (("--pin", "first=8", "--run", "x"), "--pin goes with --bits"),
    ],
)
def test_what_cannot_be_exported_is_one_line(amed, tmp_path, arguments, message):
    result = amed("export", "digits-cnn", *NEAREST, *arguments, "--out", tmp_path / "out")
    assert result.code == 2 and message in " ".join(result.err.split())


def test_tables_have_nothing_to_export(amed, tmp_path):
    for command in (("export", "--bits", 4), ("search", "--export", "c", "--budget", "latency=0.5")):
        result = amed(command[0], "tabular/digits-cnn", *command[1:], "--out", tmp_path / command[0])
        assert result.code == 2 and "table" in result.err
