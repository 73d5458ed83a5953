"""The format: what is written is read again, and nothing else is read."""

import json
import math

import pytest
from bench_suite import SUITE
from hypothesis import given
from hypothesis import strategies as st

from amed_env import AmedError
from amed_env.bench.result_file import Improvement, Run, contents_of, line_of, one_line, read_result, sequence_digest
from amed_env.errors import BenchFileError

claims = st.builds(
    Improvement,
    evaluation=st.integers(1, 10**6),
    choices=st.text("0123456789", min_size=1, max_size=60),
    accuracy=st.floats(0, 100),
    loss=st.floats(0, 1e6),
    correct=st.integers(0, 10**6),
    relative_costs=st.dictionaries(st.sampled_from(["latency", "energy"]), st.floats(1e-6, 10), min_size=1),
)
visible = st.text(max_size=20).map(one_line)
runs = st.builds(
    Run,
    task=visible,
    device=visible,
    budget=st.just({"latency": 0.45}),
    seed=st.integers(0, 2**32 - 1),
    evaluations=st.integers(0, 10**6),
    improvements=st.lists(claims, max_size=3).map(tuple),
    sequence=st.just(sequence_digest(["8/8"])),
    faults=st.integers(0, 5),
    seconds=st.floats(0, 1e6),
    note=st.none() | visible,
)


@given(st.lists(runs, max_size=4, unique_by=lambda run: run.key))
def test_what_is_written_is_read_again(tmp_path, result, written):
    path = tmp_path / "any.jsonl"
    path.write_bytes(contents_of(result.header, written))
    again = read_result(path)
    assert list(again.runs) == written and again.header == result.header


@given(st.binary(max_size=300))
def test_any_bytes_give_one_kind_of_error(tmp_path, result, noise):
    path = tmp_path / "any.jsonl"
    path.write_bytes(line_of(result.header) + noise)
    try:
        read_result(path)
    except BenchFileError as error:
        assert str(path) in str(error)
    else:
        assert noise == b""


def test_a_run_is_one_line_of_the_documented_keys(result):
    line = line_of(result.runs[0])
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    keys = set(json.loads(line))
    assert keys == {
        "task", "device", "budget", "seed", "evaluations", "improvements", "sequence", "faults", "seconds"
    }  # fmt: skip
    assert json.loads(line)["task"] == SUITE.tasks[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"regret": 0.0}, "regret"),
        ({"evaluations": -1}, "evaluations"),
        ({"evaluations": "500"}, "evaluations"),
        ({"evaluations": True}, "evaluations"),
        ({"seed": 2**32}, "seed"),
        ({"sequence": "abc"}, "sequence"),
        ({"seconds": math.nan}, "seconds"),
        ({"seconds": math.inf}, "seconds"),
        ({"budget": {"speed": 0.5}}, "unknown budget 'speed'"),
        ({"budget": {}}, "budget"),
        ({"budget": {"latency": 0}}, "budget.latency"),
        ({"improvements": None}, "improvements"),
    ],
)
def test_what_does_not_belong_is_named_with_its_line(tmp_path, result, change, reason):
    path = tmp_path / "any.jsonl"
    document = {**json.loads(line_of(result.runs[1])), **change}
    path.write_bytes(contents_of(result.header, result.runs[:1]) + json.dumps(document).encode() + b"\n")
    with pytest.raises(BenchFileError, match=r"any.jsonl, line 3 is no run") as caught:
        read_result(path)
    assert reason in str(caught.value) and isinstance(caught.value, AmedError)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"feasible": False}, "feasible"),
        ({"accuracy": 101.0}, "accuracy"),
        ({"loss": -0.1}, "loss"),
        ({"evaluation": 0}, "evaluation"),
        ({"choices": "01x"}, "choices"),
    ],
)
def test_claims_are_checked_too(tmp_path, result, change, reason):
    path = tmp_path / "any.jsonl"
    document = json.loads(line_of(result.runs[0]))
    document["improvements"][0].update(change)
    path.write_bytes(line_of(result.header) + json.dumps(document).encode() + b"\n")
    with pytest.raises(BenchFileError, match=f"line 2 is no run.*improvements.0.{reason}"):
        read_result(path)


def test_other_versions_and_other_encodings(tmp_path, result):
    path = tmp_path / "any.jsonl"
    path.write_bytes(line_of(result.header).replace(b'"version":1', b'"version":2'))
    with pytest.raises(BenchFileError, match="line 1 is no header"):
        read_result(path)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(BenchFileError, match="line 1: no UTF-8"):
        read_result(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seeds": 1001}, "seeds"),
        ({"evaluations": 100_001}, "evaluations"),
        ({"evaluations": 10**30}, "evaluations"),
        ({"versions": {}}, "versions"),
        ({"recipe": "abc"}, "recipe"),
    ],
)
def test_headers_are_small_and_readable(tmp_path, result, change, reason):
    path = tmp_path / "any.jsonl"
    path.write_text(json.dumps({**json.loads(line_of(result.header)), **change}) + "\n")
    with pytest.raises(BenchFileError, match=f"line 1 is no header.*{reason}"):
        read_result(path)


def test_texts_become_one_line_whoever_wrote_them(tmp_path, result):
    path = tmp_path / "any.jsonl"
    header = {**json.loads(line_of(result.header)), "description": "one line\n| 1 |", "saw": ["nothing\x1b[2K"]}
    path.write_text(json.dumps(header) + "\n")
    read = read_result(path).header
    assert read.description == "one line | 1 |" and read.saw == ("nothing [2K",)
    assert one_line("two\n  lines\x00 and\u200b more ") == "two lines and more"
    assert one_line("1 µs, 500 KiB × 2") == "1 µs, 500 KiB × 2"
