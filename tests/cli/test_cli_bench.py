"""`amed bench`: a benchmark from the command line, its results checked and ranked."""

import json
import signal
import sys
import time

import pytest
from warm import run_warm

TRY = ("--task", "digits-cnn", "--seeds", 2, "--evaluations", 6, "--cells", "development")

AGENT = """
from amed_env import Agent


class Narrow(Agent):
    description = "the narrowest width everywhere"
    saw = ("nothing of importance",)

    def explore(self, session):
        session.evaluate(session.task.allocation(session.task.space.uniform_choices(0)))
"""


@pytest.fixture
def run(amed):
    """Calls `amed bench tiny` for a try."""
    return lambda *more: amed("bench", "tiny", *TRY, *more)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_benchmark_of_an_own_agent(run, amed, tmp_path, request):
    (tmp_path / "narrow_agent.py").write_text(AGENT)
    request.addfinalizer(lambda: sys.modules.pop("narrow_agent", None))
    answer = run("--agent", "narrow_agent:Narrow", "--out", "results", "--json")
    assert answer.code == 0
    agents = {row["agent"]: row for row in answer.json["agents"]}
    assert set(agents) == {"optimum", "random", "greedy", "narrow_agent:Narrow"} and answer.json["complete"]
    assert set(agents["random"]["regret"]) == {"1", "2", "5", "6"}
    assert all(value == 0 for value in agents["optimum"]["regret"].values())
    header, *runs = lines(tmp_path / "results" / "narrow_agent-Narrow.jsonl")
    assert header["saw"] == ["nothing of importance"] and header["spec"] == "narrow_agent:Narrow"
    assert len(runs) == 18 and {r["evaluations"] for r in runs} == {1}
    assert [(r["device"], r["seed"]) for r in runs[:3]] == [("bops", 0), ("bops", 1), ("bops", 0)]

    files = sorted((tmp_path / "results").glob("*.jsonl"))
    checked = amed("bench", "validate", *files, "--replay", "2", "--json").json["files"]
    for row in checked:  # the other tables belong to the suite as well, where they are there
        assert row["verdict"] == "valid" or all("which belongs to suite tiny" in problem for problem in row["problems"])


def test_what_is_there_is_not_overwritten(run, tmp_path):
    assert run("--out", "results").code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    again = run("--out", "results")
    assert again.code == 2 and "is there already; continue it with --resume" in again.err
    resumed = run("--out", "results", "--resume", "--agents", "uniform")
    assert resumed.code == 0 and "36 of 54 runs are finished already" in resumed.err
    after = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    assert {name: after[name] for name in before} == before and "uniform.jsonl" in after


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--agents", "gredy"), "did you mean 'greedy'"),
        (("--agents", "greedy,,dqn"), "has an empty name"),
        (("--agent", "no_module:A"), "cannot import 'no_module'"),
        (("--agent", "control/greedy-shufled"), "unknown control"),
        (("--task", "digit-cnn"), "did you mean"),
    ],
)
def test_typing_errors_are_found_before_anything_runs(run, tmp_path, arguments, message):
    answer = run("--out", "results", *arguments)
    assert answer.code == 2 and message in answer.err and not (tmp_path / "results").exists()


def test_a_folder_that_is_a_file(run, tmp_path):
    (tmp_path / "results").write_text("")
    answer = run("--out", "results")
    assert answer.code == 2 and "is no folder" in answer.err


def test_tasks_that_are_missing_are_left_out_loudly(amed, monkeypatch):
    import amed_env.bench.suites as suites

    known = suites.missing_task
    monkeypatch.setattr(suites, "missing_task", lambda t: known(t) if t == "tabular/digits-cnn" else "not built yet")
    answer = amed("bench", "tiny", *TRY[2:], "--evaluations", 2, "--out", "results")
    assert answer.code == 0 and "task tabular/kws-dscnn is left out: not built yet" in answer.err


def test_help_names_every_part(amed):
    answer = amed("bench", "--help")
    assert all(word in answer.out for word in ("tiny", "real", "validate", "leaderboard"))
    assert amed("bench", "tyny").code == 2


def test_a_bad_file_is_refused(amed, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"format": "other"}\n')
    answer = amed("bench", "validate", "bad.jsonl")
    assert answer.code == 1 and "bad.jsonl: refused" in answer.out and "line 1 is no header" in answer.out
    assert amed("bench", "validate", "bad.jsonl", "--replay", "some").code == 2
    answer = amed("bench", "leaderboard", "--results", ".", "--out", "L.md")
    assert answer.code == 2 and "none of the results is valid" in answer.err and not (tmp_path / "L.md").exists()
    assert amed("bench", "leaderboard", "--results", "nowhere").code == 2
    (tmp_path / "folder").mkdir()
    answer = amed("bench", "leaderboard", "--results", ".", "--out", "folder")
    assert answer.code == 2 and "folder is a folder; name a file" in answer.err
    answer = amed("bench", "validate", "folder")
    assert answer.code == 2 and "has no results" in answer.err
    answer = amed("bench", "leaderboard", "--results", ".", "--out", "bad.jsonl/L.md")
    assert answer.code == 2 and "cannot be written" in answer.err


def test_what_was_replayed_is_said(run, amed, tmp_path, monkeypatch):
    from dataclasses import replace

    import amed_env.bench.suites as suites

    small = replace(suites.SUITES["tiny"], tasks=("tabular/digits-cnn",))
    monkeypatch.setitem(suites.SUITES, "tiny", small)
    assert run("--out", "results").code == 0
    files = sorted((tmp_path / "results").glob("*.jsonl"))
    whole = amed("bench", "validate", files[0])
    assert whole.code == 0 and "18 of 18 runs replayed)" in whole.out
    folder = amed("bench", "validate", tmp_path / "results", "--replay", 0)
    assert folder.code == 0 and all(str(file) in folder.out.replace("\n", "") for file in files)
    part = amed("bench", "validate", files[0], "--replay", 2)
    assert part.code == 0 and "2 of 18 runs replayed; the counts of the others are unchecked)" in part.out
    ranked = amed("bench", "leaderboard", "--results", "results", "--out", "L.md")
    assert ranked.code == 0
    assert "2 of 2 files are valid, 2 of 36 runs replayed; the counts of the others are unchecked" in ranked.out

    header, *runs = files[0].read_text().splitlines(keepends=True)
    files[0].write_text("".join([header, *runs[:3], runs[3].replace("tabular/digits-cnn", "tabular/none"), *runs[4:]]))
    ranked = amed("bench", "leaderboard", "--results", "results", "--out", "L.md")
    assert (
        ranked.code == 1 and "1 of 2 files are valid" in ranked.out and "line 5: seed 1 of tabular/none" in ranked.out
    )


WAITING = """
import time
from pathlib import Path

from amed_env import Agent


class Waits(Agent):
    def explore(self, session):
        session.evaluate(session.task.allocation(session.task.space.uniform_choices(0)))
        if Path("wait").exists() and session.task.device == "eyeriss-ws":
            Path("waiting").touch()
            time.sleep(100)
"""


def test_ctrl_c_ends_a_validation_and_says_what_was_checked(start, tmp_path, amed, request):
    (tmp_path / "waiting_agent.py").write_text(WAITING)
    request.addfinalizer(lambda: sys.modules.pop("waiting_agent", None))
    arguments = ("--agent", "waiting_agent:Waits", "--seeds", 1, "--evaluations", 1, "--out", "r")
    assert amed("bench", "tiny", *arguments).code == 0
    (tmp_path / "wait").touch()
    process = start("bench", "validate", "r/waiting_agent-Waits.jsonl", "r/greedy.jsonl", "--json")
    deadline = time.monotonic() + 120
    while not (tmp_path / "waiting").exists():
        assert process.popen.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.popen.send_signal(signal.SIGINT)
    answer = process.finish()
    assert answer.code == 130, answer.err
    assert "interrupted in r/waiting_agent-Waits.jsonl; 1 of 2 files were not looked at" in answer.err
    (checked,) = answer.json["files"]
    assert checked["verdict"] == "not validated" and "interrupted" in checked["unchecked"][0]
    assert checked["replayed"] < checked["runs"] == 36  # runs come in an order that nobody knows


def test_an_agent_that_fails_costs_its_own_runs_only(run, tmp_path, request):
    (tmp_path / "narrow_agent.py").write_text(AGENT.replace("session.evaluate", "session.evaluation"))
    request.addfinalizer(lambda: sys.modules.pop("narrow_agent", None))
    answer = run("--agents", "uniform", "--agent", "narrow_agent:Narrow", "--out", "results", "--json")
    errors = {row["agent"]: row["errors"] for row in answer.json["agents"]}
    assert answer.code == 1 and errors == {
        "optimum": 0,
        "random": 0,
        "greedy": 0,
        "uniform": 0,
        "narrow_agent:Narrow": 18,
    }
    assert "18 ended with an error, the first: AttributeError" in answer.err


def test_ctrl_c_keeps_what_is_finished(start, amed, tmp_path):
    arguments = ("bench", "tiny", "--task", "digits-cnn", "--seeds", 50, "--evaluations", 60, "--out", "results")
    process = start(*arguments)
    path = tmp_path / "results" / "random.jsonl"
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < 4:
        assert process.popen.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.popen.send_signal(signal.SIGINT)
    answer = process.finish()
    assert answer.code == 130 and "continue with --resume" in answer.err
    kept = lines(path)
    assert len(kept) >= 4 and path.read_bytes().endswith(b"\n")
    assert not list((tmp_path / "results").glob(".*.lock"))


def test_ctrl_c_ends_all_processes(start, tmp_path):
    process = start("bench", "tiny", "--task", "digits-cnn", "--seeds", 50, "--evaluations", 200, "--out", "r", "-w", 2)
    path = tmp_path / "r" / "random.jsonl"
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < 2:
        assert process.popen.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.popen.send_signal(signal.SIGTERM)
    assert process.finish().code == 128 + signal.SIGTERM


@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes are POSIX")
def test_a_full_disk_keeps_what_is_finished(tmp_path):
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)); from amed_env.cli import main; main()"
    )
    arguments = [str(a) for a in ("bench", "tiny", *TRY, "--out", "results")]
    done = run_warm(["-c", script, *arguments], tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Finished runs are kept in results; continue with --resume" in done.stderr and "Traceback" not in done.stderr
    content = (tmp_path / "results" / "random.jsonl").read_bytes()
    assert content.endswith(b"\n") and content.count(b"\n") > 1
