"""A bad submission is refused with the reason; a good one is not."""

import itertools
import json
import sys

import pytest
from bench_suite import EVALUATIONS, SEEDS, SUITE, reasons, write

from amed_env.bench.execution import PROCESS_DIED
from amed_env.bench.suites import cell_task
from amed_env.bench.validation import validate
from amed_env.tasks.ground_truth import all_costs


@pytest.mark.parametrize("spec", ["random", "greedy"])
def test_what_was_run_is_valid(good, spec):
    verdict = validate(good[spec], None)
    assert verdict.valid and verdict.word == "valid"
    assert verdict.replayed == len(SUITE.cells()) * SEEDS
    assert verdict.claims == sum(len(run.improvements) for run in verdict.result.runs) > 0


def test_a_sample_is_replayed_and_progress_is_told(good):
    said = []
    verdict = validate(good["random"], 3, on_progress=lambda *numbers: said.append(numbers))
    assert verdict.valid and verdict.replayed == 3 and said == [(1, 3), (2, 3), (3, 3)]
    assert verdict.count.endswith("3 of 8 runs replayed; the counts of the others are unchecked")


def test_every_run_is_replayed_if_nothing_else_is_said(edited):
    def change(header, runs):
        runs[5]["sequence"] = "0" * 64

    verdict = validate(edited(change))
    assert verdict.replayed == 7 and verdict.count.endswith(
        "7 of 8 runs replayed; the counts of the others are unchecked"
    )
    assert ["does not replay" in problem for problem in verdict.problems] == [True]
    assert validate(edited(lambda header, runs: None)).count.endswith("8 of 8 runs replayed")


def test_texts_of_a_file_make_no_lines_of_their_own(edited):
    def change(header, runs):
        runs[0]["note\n/good.jsonl: valid"] = 1
        runs[2]["budget"] = {"latency\n": 0.35}

    verdict = validate(edited(change), 0)
    assert verdict.word == "refused" and all(len(problem.splitlines()) == 1 for problem in verdict.problems)
    found = reasons(edited(lambda header, runs: runs[1].update(task="tabular/digits-cnn\n# A heading")))
    assert "seed 1 of tabular/digits-cnn # A heading on" in found


@pytest.mark.parametrize(
    ("name", "value"), [("evaluations", EVALUATIONS - 1), ("faults", 3), ("note", "no luck"), ("sequence", "0" * 64)]
)
def test_what_the_tables_do_not_know_is_found_by_default(edited, name, value):
    """Nothing else in the file tells of it."""

    def change(header, runs):
        run = next(run for run in runs if run["improvements"][-1]["evaluation"] < EVALUATIONS)
        run[name] = value

    assert validate(edited(change), 0).valid
    assert "does not replay" in "\n".join(validate(edited(change)).problems)


def test_an_edited_accuracy(edited):
    def change(header, runs):
        runs[0]["improvements"][-1].update(accuracy=100.0)

    assert "line 2, seed 0 of" in reasons(edited(change)) and "accuracy is claimed to be 100.0" in reasons(
        edited(change)
    )


def test_edited_counts_and_losses(edited):
    def change(header, runs):
        runs[1]["improvements"][0]["correct"] += 1
        runs[2]["improvements"][0]["loss"] *= 0.999

    assert "correct is claimed" in reasons(edited(change)) and "loss is claimed" in reasons(edited(change))


def test_a_better_allocation_than_the_search_found(edited):
    """Everything about it is true, but the search never came there."""

    def change(header, runs):
        from amed_env import optimum
        from amed_env.bench.running import improvement

        cell = SUITE.cells()[0]
        best = improvement(cell_task(cell), optimum(cell_task(cell)), EVALUATIONS)
        known = runs[0]["improvements"][-1]
        assert best.choices != known["choices"] and known["evaluation"] < EVALUATIONS
        runs[0]["improvements"].append(best.model_dump(exclude_none=True))

    path = edited(change)
    assert validate(path, 0).valid
    assert "improvements claimed" in reasons(path, None)


def test_an_exceeded_budget_of_evaluations(edited):
    def change(header, runs):
        runs[3]["evaluations"] = EVALUATIONS + 1

    assert f"it took {EVALUATIONS + 1} evaluations, {EVALUATIONS} are allowed" in reasons(edited(change))


def test_a_wrong_number_of_evaluations(edited):
    def change(header, runs):
        runs[0]["evaluations"] = EVALUATIONS - 1
        assert max(i["evaluation"] for i in runs[0]["improvements"]) < EVALUATIONS - 1

    path = edited(change)
    assert "does not replay: evaluations" in reasons(path, None)

    def fewer(header, runs):
        runs[0]["evaluations"] = 0

    assert "is after the last one, 0" in reasons(edited(fewer))


def test_a_claim_that_comes_earlier_than_it_was_found(edited):
    def change(header, runs):
        run = next(run for run in runs if run["improvements"][-1]["evaluation"] > len(run["improvements"]))
        run["improvements"][-1]["evaluation"] -= 1
        before = run["improvements"][-2:-1]
        if before and before[0]["evaluation"] == run["improvements"][-1]["evaluation"]:
            run["improvements"].remove(before[0])

    assert "does not replay" in reasons(edited(change), None)


def test_a_wrong_seed(edited):
    def swap(header, runs):
        runs[0]["seed"], runs[1]["seed"] = 1, 0

    assert "does not replay" in reasons(edited(swap), None)

    def high(header, runs):
        runs[1]["seed"] = 7

    found = reasons(edited(high))
    assert f"none of the {SEEDS} seeds" in found and "1 of 8 runs are missing" in found


def test_a_duplicated_run(edited):
    assert "stands in line 2 already" in reasons(edited(lambda header, runs: [runs[0], *runs]))


def test_a_missing_run(edited):
    assert "1 of 8 runs are missing" in reasons(edited(lambda header, runs: runs[:-1]))


def test_a_truncated_file(good, tmp_path):
    content = good["random"].read_bytes()
    path = tmp_path / "random.jsonl"
    path.write_bytes(b"")
    assert "random.jsonl is empty" in reasons(path)
    for length in (10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert "cut off" in reasons(path)
    assert "cannot read" in reasons(tmp_path / "nothing.jsonl")


def test_an_infeasible_allocation(edited):
    """Its quality is told truly, its cost is told to be within the budget."""

    def change(header, runs):
        task = cell_task(SUITE.cells()[0])
        wide = [3] * len(task.workload)
        quality = task.quality(task.allocation(wide))
        assert all_costs(task, "latency_ms").max() > task.limits["latency_ms"]
        runs[0]["improvements"] = [
            {
                "evaluation": 1,
                "choices": "3" * len(wide),
                "accuracy": 100 * quality.accuracy,
                "loss": quality.loss,
                "correct": quality.correct,
                "relative_costs": {"latency": 0.34},
                "feasible": True,
            }
        ]

    found = reasons(edited(change))
    assert "latency is claimed to be 0.34 of 8 bit, measured 1.0" in found
    assert "it is not feasible: latency=1 exceeds latency=0.35" in found


@pytest.mark.parametrize(
    ("choices", "reason"),
    [("0", "1 choices are given"), ("9" * 8, "choice 9 is none"), ("0" * 9, "9 choices are given")],
)
def test_choices_that_are_none(edited, choices, reason):
    def change(header, runs):
        runs[0]["improvements"][0]["choices"] = choices

    assert reason in reasons(edited(change))


def test_improvements_that_do_not_improve(edited):
    def change(header, runs):
        run = next(run for run in runs if len(run["improvements"]) > 1)
        first, second = run["improvements"][:2]
        first["evaluation"], second["evaluation"] = second["evaluation"], first["evaluation"]
        run["improvements"][:2] = [second, first]

    assert "it is no better than the one before" in reasons(edited(change))


def test_an_allocation_beside_other_choices(edited):
    def change(header, runs):
        layers = {name: {"w": 8, "a": 8} for name in cell_task(SUITE.cells()[0]).workload.layer_names}
        runs[0]["improvements"][0]["allocation"] = layers

    assert "its allocation is not that of its choices" in reasons(edited(change))


def test_another_table(edited):
    def change(header, runs):
        header["tables"]["tabular/digits-cnn"] = "0" * 64

    assert "made with another tabular/digits-cnn" in reasons(edited(change))


def test_another_agent_than_the_one_that_ran(edited):
    def change(header, runs):
        header["agent"] = "clever"

    assert "called 'clever'" in reasons(edited(change), 1)

    def other(header, runs):
        header["agent"] = header["spec"] = "greedy"

    assert "does not replay" in reasons(edited(other), None)


def test_other_suites_and_cells(edited):
    def suite(header, runs):
        header["suite"] = "tinny"

    assert "unknown suite" in reasons(edited(suite))

    def cells(header, runs):
        header["cells"] = "development"

    assert "none of the cells" in reasons(edited(cells))

    def table(header, runs):
        header["tables"]["tabular/other"] = "0" * 64

    assert "is none of suite" in reasons(edited(table))

    def none(header, runs):
        header["tables"] = {}

    assert "has no runs on tabular/digits-cnn" in reasons(edited(none))


def test_an_agent_that_is_not_here_is_not_validated(edited):
    def change(header, runs):
        header["agent"] = header["spec"] = "no_such_module:Agent"

    verdict = validate(edited(change), 2)
    assert verdict.word == "not validated" and not verdict.valid and not verdict.problems
    assert "cannot be made here" in verdict.unchecked[0]


def test_a_task_that_is_not_here_is_not_validated(edited, monkeypatch):
    monkeypatch.setattr("amed_env.bench.validation.missing_task", lambda name: "it is somewhere else")
    verdict = validate(edited(lambda header, runs: None), 0)
    assert verdict.word == "not validated" and "it is somewhere else" in verdict.unchecked[0]


def test_other_versions_are_named_where_a_replay_differs(edited):
    def change(header, runs):
        header["versions"]["torch"] = "1.0"
        runs[0]["sequence"] = "0" * 64

    path = edited(change)
    assert "the allocations, or their order, are others (versions differ: torch 1.0 there" in reasons(path, None)
    unreplayed = validate(path, 0)
    assert unreplayed.valid and "made with other versions: torch 1.0 there" in unreplayed.remarks[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("task", "tabular/none"), ("device", "none"), ("budget", {"latency": 1e-9}), ("budget", {"energy": 0.35})],
)
def test_a_run_of_no_cell_is_refused_with_its_line(edited, name, value):
    def change(header, runs):
        runs[4][name] = value

    found = reasons(edited(change))
    assert "line 6: seed 0 of " in found and "is none of the cells that the header claims" in found


def test_ctrl_c_keeps_what_was_found(good):
    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    verdict = validate(good["random"], on_progress=interrupt)
    assert verdict.interrupted and verdict.word == "not validated" and "interrupted" in verdict.unchecked[0]
    assert verdict.count.endswith("2 of 8 runs replayed; the counts of the others are unchecked")


def test_a_long_list_of_problems_ends(edited):
    def change(header, runs):
        for run in runs:
            for claim in run["improvements"]:
                claim["loss"] += 1

    assert "there may be more" in reasons(edited(change))


def test_runs_that_ended_their_process_replay_in_another_one(edited, monkeypatch):
    asked = []

    def run_all(jobs, workers, *, own_process):
        asked.append(own_process)
        return iter(())

    monkeypatch.setattr("amed_env.bench.validation.run_all", run_all)
    validate(edited(lambda header, runs: None))
    validate(edited(lambda header, runs: runs[0].update(note=PROCESS_DIED)))
    assert asked == [False, True]


def test_files_of_users_agents_replay_in_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = write(tmp_path, "misbehaving_agents:Raises")
    assert all("no such luck" in json.loads(line)["note"] for line in itertools.islice(path.open(), 1, None))
    assert validate(path, None).valid


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("os:sep.x", {}),
        ("random", {"spec": "greedy"}),
        ("control/greedy-inverted", {"spec": "x"}),
        ("missing.yaml", {}),
    ],
)
def test_what_makes_no_agent_is_named_and_breaks_nothing(edited, spec, options):
    def change(header, runs):
        name = "recipe/missing" if spec == "missing.yaml" else spec
        header.update(spec=spec, agent=name, options=options)

    verdict = validate(edited(change))
    assert verdict.word == "not validated" and "cannot be made here" in verdict.unchecked[0]


def test_a_suite_whose_tasks_are_not_here_needs_runs_as_well(edited, monkeypatch):
    monkeypatch.setattr("amed_env.bench.validation.missing_task", lambda name: "it is somewhere else")

    def change(header, runs):
        header["tables"] = {}
        return []

    assert "has no runs on tabular/digits-cnn" in reasons(edited(change))


RECIPE = """
format: amed-agent/1
description: |
  annealing,
  but warmer
algorithm: annealing
hyperparameters: {first_temperature: 2.0}
tuned_on: []
"""


def test_results_of_a_recipe_and_those_with_the_digest_of_older_versions(tmp_path):
    recipe = tmp_path / "warm.yaml"
    recipe.write_text(RECIPE)
    path = write(tmp_path, str(recipe), evaluations=3)
    header, *runs = [json.loads(line) for line in path.read_text().splitlines()]
    assert header["description"] == "annealing, but warmer"
    header["recipe"] = "0" * 64
    path.write_text("".join(json.dumps(line) + "\n" for line in [header, *runs[:-1]]))
    write(tmp_path, str(recipe), evaluations=3)  # continues it
    assert len(path.read_text().splitlines()) == 1 + len(runs) and validate(path).valid
