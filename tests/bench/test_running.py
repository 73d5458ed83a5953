"""Runs: what is recorded, whatever an agent does; and that processes change nothing."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench_suite import EVALUATIONS, SEEDS, SUITE, without_time, write

from amed_env import AmedError, make_agent, make_task
from amed_env.bench.contender import Contender
from amed_env.bench.counting import counted
from amed_env.bench.execution import PROCESS_DIED, Job, run_all
from amed_env.bench.result_file import read_result
from amed_env.bench.results_folder import AgentFile, make_header
from amed_env.bench.running import run_once
from amed_env.bench.suites import Cells, cell_task
from amed_env.errors import AgentError, RunFolderError

HERE = str(Path(__file__).parent)
CELL = SUITE.cells()[0]


def test_a_run_is_what_a_search_does():
    run = run_once(Contender("random"), CELL, 3, 40)
    task = cell_task(CELL)
    trials = make_agent("random").search(task, 40, 3).trials
    best, expected = (-1, 0.0), []
    for number, trial in enumerate(trials, 1):
        score = (trial.quality.correct, -trial.quality.loss)
        if score > best and trial.costs["latency_ms"] <= task.limits["latency_ms"]:
            best = score
            expected.append((number, trial))
    assert len(expected) > 2 and run.evaluations == len(trials) == 40 and run.note is None and run.faults == 0
    assert [claim.evaluation for claim in run.improvements] == [number for number, _ in expected]
    for claim, (_, trial) in zip(run.improvements, expected, strict=True):
        assert claim.correct == trial.quality.correct and claim.accuracy == 100 * trial.quality.correct / 500
        bits = [(2, 3, 4, 8)[int(choice)] for choice in claim.choices]
        assert bits == [precision.weight_bits for precision in trial.allocation.values()]
        share = trial.costs["latency_ms"] / task.reference_cost["latency_ms"]
        assert claim.relative_costs == {"latency": pytest.approx(share, rel=1e-12)} and share <= 0.35 * (1 + 1e-9)
    text = "".join(f"{trial.allocation.key()}\n" for trial in trials)
    assert run.sequence == hashlib.sha256(text.encode()).hexdigest()


def test_an_agent_that_breaks_keeps_what_it_found():
    run = run_once(Contender("misbehaving_agents:Raises"), SUITE.cells()[1], 0, 10)
    # It says where in the agent's own code.
    assert re.fullmatch(r"ZeroDivisionError: no such luck \(misbehaving_agents.py, line \d+\)", run.note)
    assert run.evaluations == 2 and run.improvements
    run = run_once(Contender("misbehaving_agents:Quits"), CELL, 0, 10)
    assert run.evaluations == 0 and run.note.startswith("SystemExit: 4 (misb") and run.improvements == ()


def test_evaluations_that_fail_count_and_are_no_improvement(monkeypatch):
    from amed_env.errors import NonFiniteError
    from amed_env.evaluation.table import TableEvaluator

    real, calls = TableEvaluator.evaluate, []

    def fail(self, allocation, split="search"):
        calls.append(allocation)
        if len(calls) in (1, 3):
            raise NonFiniteError("the network returns NaN")
        return real(self, allocation, split)

    monkeypatch.setattr(TableEvaluator, "evaluate", fail)
    run = run_once(Contender("random"), CELL, 0, 6)
    assert run.evaluations == 6 and run.faults == 2 and run.note is None
    assert run.improvements[0].evaluation == 2 and 3 not in [claim.evaluation for claim in run.improvements]


@pytest.mark.parametrize("agent", ["Peeks", "Late"])
def test_quality_past_the_session_is_found_out(agent):
    run = run_once(Contender(f"misbehaving_agents:{agent}"), SUITE.cells()[1], 0, 10)
    assert "qualities were asked for past session.evaluate" in run.note
    assert run.evaluations == 0 and not run.improvements


def test_more_evaluations_than_allowed_are_found_out():
    run = run_once(Contender("misbehaving_agents:Unlimited"), CELL, 0, 10)
    assert "of which 10 are allowed" in run.note and not run.improvements


def test_an_error_of_any_kind_costs_its_own_run_and_its_note_replays():
    run = run_once(Contender("misbehaving_agents:Panics"), SUITE.cells()[1], 0, 8)
    assert run.note.startswith("Panic: of <object object at 0x…> in two lines (misbehaving_agents.py, line ")
    assert run.evaluations == 1
    assert "QuitsAtOnce" in run_once(Contender("misbehaving_agents:QuitsAtOnce"), CELL, 0, 8).note


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ("SawNothing", "saw is None"),
        ("SawText", "saw is 'the"),
        ("Describes", "description is 5"),
        ("OfNoFamily", "family is 'rl'"),
    ],
)
def test_what_an_agent_says_of_itself_is_text(agent, message):
    with pytest.raises(AgentError, match=message):
        Contender(f"misbehaving_agents:{agent}").describe()


BUILT_IN = (
    "uniform", "random", "greedy", "amed", "amed-released", "milp", "pairwise", "local", "annealing", "evolution",
    "tpe", "policy", "maskable-ppo", "dqn", "ddpg", "control/greedy-shuffled",
)  # fmt: skip


@pytest.mark.parametrize("spec", BUILT_IN)
def test_what_this_package_has_asks_its_session_alone(spec):
    options = {"warm_start_steps": 0} if spec in ("maskable-ppo", "dqn") else {}
    run = run_once(Contender(spec, options), CELL, 0, 6)
    assert run.note is None and run.improvements
    assert run.evaluations == 6 or spec in ("uniform", "greedy", "control/greedy-shuffled")  # which may be done before


def test_an_evaluator_has_nothing_beside_what_all_have():
    """On a network, what makes and holds the samples is out of reach."""
    evaluator = counted(make_task("digits-cnn", device="bops"))[0].evaluator
    for name in ("evaluate_many", "samples", "network", "traced", "table"):
        assert not hasattr(evaluator, name)


def test_the_table_is_not_in_reach_of_an_agent(monkeypatch):
    from amed_env import Agent, register_agent
    from amed_env.agents.registry import AGENTS

    seen = {}

    class Curious(Agent):
        def explore(self, session):
            evaluator = session.task.evaluator
            seen["table"] = hasattr(evaluator, "table") or hasattr(evaluator, "row")
            seen["statistics"] = evaluator.weight_statistics().shape == (len(session.task.workload),)
            seen["float"] = session.task.float_quality.samples

    register_agent("curious")(Curious)
    try:
        assert run_once(Contender("curious"), CELL, 0, 10).note is None
    finally:
        AGENTS.unregister("curious")
    assert seen == {"table": False, "statistics": True, "float": 500}


def test_processes_change_nothing_and_one_that_dies_costs_its_own_run_only(good, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    before = {run.key: run for run in read_result(good["random"]).runs if run.cell == CELL}
    jobs = [Job(Contender("random"), CELL, seed, EVALUATIONS) for seed in range(SEEDS)]
    jobs.append(Job(Contender("misbehaving_agents:Exits"), SUITE.cells()[1], 1, 5))
    runs = {(job.contender.spec, job.seed): run for job, run in run_all(jobs, workers=2)}
    assert len(runs) == len(jobs)
    for seed in range(SEEDS):
        assert without_time(runs["random", seed]) == without_time(before[CELL, seed])
    assert runs["misbehaving_agents:Exits", 1].note == PROCESS_DIED


def test_a_task_that_cannot_be_made_ends_the_benchmark():
    cell = replace(CELL, budget=(("latency", 0.01),))
    with pytest.raises(AmedError, match="smallest reachable"):
        list(run_all([Job(Contender("random"), cell, 0, 5)]))


def agent_file(folder, resume=False, evaluations=EVALUATIONS, spec="random"):
    header = make_header(Contender(spec), SUITE, Cells.HELD_OUT, SUITE.cells(), evaluations, SEEDS)
    return AgentFile(folder, "random", header, SUITE.cells(), resume)


def test_resuming_makes_what_is_missing(good, tmp_path):
    lines = good["random"].read_bytes().splitlines(keepends=True)
    path = tmp_path / "random.jsonl"
    path.write_bytes(b"".join(lines[:4]) + lines[4][:50])  # killed in the middle of a line
    with pytest.raises(RunFolderError, match="--resume"), agent_file(tmp_path):
        pass
    with agent_file(tmp_path, resume=True) as file:
        assert len(file.missing(SUITE.cells(), SEEDS)) == len(lines) - 4
    write(tmp_path, "random")
    assert [without_time(run) for run in read_result(path).runs] == [
        without_time(run) for run in read_result(good["random"]).runs
    ]


def test_what_is_of_another_benchmark_is_not_resumed(good, tmp_path):
    (tmp_path / "random.jsonl").write_bytes(good["random"].read_bytes())
    with pytest.raises(RunFolderError, match="evaluations \\(there 12, now 13\\)"), agent_file(tmp_path, True, 13):
        pass
    with pytest.raises(RunFolderError, match="agent"), agent_file(tmp_path, True, spec="greedy"):
        pass


def test_two_processes_do_not_write_one_file(tmp_path):
    with agent_file(tmp_path), pytest.raises(RunFolderError, match="another process"), agent_file(tmp_path, True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["random.jsonl"]


def test_a_write_that_fails_leaves_whole_lines(tmp_path, result, monkeypatch):
    import os

    with agent_file(tmp_path) as file:
        file.add(result.runs[0])
        before = file.path.read_bytes()

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            file.add(result.runs[1])
        assert file.path.read_bytes() == before and len(file.done) == 1


def test_names_of_agents_and_their_files():
    assert Contender("agents/dqn.yaml").name == "recipe/dqn"
    assert Contender("agents/dqn.yaml").file_stem == "recipe-dqn"
    assert Contender("my_module:MyAgent").file_stem == "my_module-MyAgent"
    assert Contender("control/greedy-shuffled").file_stem == "control-greedy-shuffled"


def test_the_header_says_what_the_agent_saw(good):
    header = json.loads(good["greedy"].read_text().splitlines()[0])
    assert header["saw"] == [] and header["family"] == "search" and header["evaluations"] == EVALUATIONS
    assert header["tables"] == {"tabular/digits-cnn": cell_task(CELL).evaluator.table.digest}


def test_a_recipe_says_what_it_was_tuned_on(monkeypatch):
    agent = make_agent("greedy")
    agent.recipe = {"description": "greedy, but tuned", "tuned_on": ["bops, latency 0.5"]}
    monkeypatch.setattr("amed_env.bench.contender.make_agent", lambda spec, **options: agent)
    described = Contender("tuned:Greedy").describe()
    assert (described.family, described.text) == ("search", "greedy, but tuned")
    assert described.saw == ("bops, latency 0.5",)


def test_what_is_free_is_in_reach_of_an_agent():
    task = make_task("tabular/kws-dscnn", device="bops", budget={"latency": 0.5})
    twin, asked = counted(task)
    own, given = task.evaluator, twin.evaluator
    assert np.array_equal(given.predicted_loss(task.precisions), own.predicted_loss(task.precisions))
    for measure in ("fisher", "hessian", "squared-error"):
        assert np.array_equal(given.sensitivity(measure, task.precisions), own.sensitivity(measure, task.precisions))
    assert np.array_equal(given.pair_divergences(task.precisions, 9), own.pair_divergences(task.precisions, 9))
    assert not asked  # and costs nothing
