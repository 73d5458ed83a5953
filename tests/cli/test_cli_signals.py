"""Searches that are ended from outside, for real: in processes of their own."""

import json
import signal

import pytest

SEARCH = ["search", "digits-cnn", "--budget", "latency=0.5", "--seed", 5]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_search_in_good_order(start, tmp_path, number, code):
    process = start(*SEARCH, "--agent", "random", "--evaluations", 5000, "--out", "run", "--json")
    process.wait_for_trials(tmp_path / "run" / "trials.sqlite", 3)
    process.popen.send_signal(number)
    answer = process.finish()
    assert answer.code == code and "Traceback" not in answer.err and "--resume" in answer.err
    document = json.loads((tmp_path / "run" / "result.json").read_text())
    assert document["interrupted"] and document["evaluations"] >= 3 and document["best"] is not None
    assert answer.json["interrupted"]
    assert (tmp_path / "run" / "pareto.png").exists() and (tmp_path / "run" / "allocation.png").exists()


@pytest.mark.parametrize(
    "agent",
    [["--agent", "random"], ["--agent", "maskable-ppo", "--option", "warm_start_steps=128"]],
    ids=lambda a: a[1],
)
def test_kill_and_resume(start, amed, tmp_path, rows_of, monkeypatch, agent):
    arguments = [*SEARCH, *agent, "--evaluations", 24]
    store = tmp_path / "killed" / "trials.sqlite"
    process = start(*arguments, "--out", "killed")
    process.wait_for_trials(store, 5)
    process.popen.kill()
    process.finish()
    kept = rows_of(store)
    assert 5 <= len(kept) < 24
    whole = amed(*arguments, "--out", "whole", "--json").json

    evaluated = []
    from amed_env import Task

    measure = Task.measure

    def count(self, allocation, **further):
        evaluated.append(allocation.key())
        return measure(self, allocation, **further)

    monkeypatch.setattr(Task, "measure", count)
    resumed = amed(*arguments, "--out", "killed", "--resume", "--json").json
    rows = rows_of(store)
    # The same trials in the same order; what was finished was neither lost nor evaluated again.
    assert [key for key, _ in rows] == [key for key, _ in rows_of(tmp_path / "whole" / "trials.sqlite")]
    assert rows[: len(kept)] == kept
    uniform = {" ".join([f"{bits}/{bits}"] * 8) for bits in (2, 3, 4, 8)}
    assert [key for key in evaluated if key not in uniform] == [
        key for key, _ in rows[len(kept) :] if key not in uniform
    ]
    for document in (whole, resumed):
        del document["seconds"], document["files"]
    assert resumed == whole
