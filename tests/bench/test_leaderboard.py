"""The leaderboard has what is valid, in the right order, and nothing else."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from bench_suite import EVALUATIONS, SUITE, regret_of

from amed_env.bench.curves import agent_runs
from amed_env.bench.leaderboard import leaderboard_figures, leaderboard_text, rank
from amed_env.bench.result_file import read_result
from amed_env.bench.suites import cell_task
from amed_env.bench.truth import cell_truth
from amed_env.bench.validation import validate
from amed_env.errors import InputError
from amed_env.tasks.ground_truth import all_costs

ROOT = Path(__file__).parents[2]


def true_optimum(cell, split):
    """By hand, from the columns of the table."""
    task = cell_task(cell)
    ((metric, limit),) = task.limits.items()
    feasible = all_costs(task, metric) <= limit * (1 + 1e-9)
    return 100 * task.evaluator.table.correct[split][feasible].max() / task.evaluator.table.float_quality[split].samples


@pytest.mark.parametrize("split", ["search", "test"])
def test_regret_is_against_the_table(result, split):
    for run in result.runs:
        best = true_optimum(run.cell, split)
        assert cell_truth(run.cell).best_accuracy(split) == pytest.approx(best)
        final = run.improvements[-1]
        row = int(final.choices, 4)
        table = cell_task(run.cell).evaluator.table
        reached = 100 * table.correct[split][row] / table.float_quality[split].samples
        assert regret_of(run, split) == pytest.approx(best - reached) and best >= reached
    first = result.runs[0]
    # Before anything was found, a run is as bad as the worst that it could have found.
    task = cell_task(first.cell)
    table, costs = task.evaluator.table, task.costs[next(iter(task.limits))]
    rows = np.stack(np.unravel_index(np.arange(len(table)), (4,) * 8), axis=1)
    within = costs[np.arange(8), rows].sum(axis=1) <= next(iter(task.limits.values())) * (1 + 1e-9)
    worst = 100 * table.correct[split][within].min() / table.float_quality[split].samples
    nothing = first.model_copy(update={"improvements": ()})
    assert regret_of(nothing, split) == pytest.approx(true_optimum(first.cell, split) - worst)


def test_regret_falls_with_evaluations(result):
    runs = agent_runs(result, [cell_truth(cell) for cell in SUITE.cells()])
    curves = np.stack(list(runs.regrets_after(range(1, EVALUATIONS + 1))))
    assert curves.shape == (EVALUATIONS, 2, 4) and (np.diff(curves, axis=0) <= 1e-12).all()
    assert (curves[0] > curves[-1]).any()


def final_regrets(path):
    return np.array([[regret_of(run)] for run in read_result(path).runs])


def text_of(verdicts):
    return leaderboard_text(rank(verdicts))


def table_rows(text, heading):
    part = text[text.index(heading) :].split("\n\n")
    lines = next(block for block in part if block.startswith("| ")).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_ranks_are_those_of_the_interquartile_mean(good):
    text = text_of([validate(path, 1) for path in good.values()])
    rows = table_rows(text, "# Leaderboard of `unit`")
    assert rows[0][1] == "*exact optimum*" and [row[0] for row in rows] == ["", "1", "2"]
    values = {row[1].strip("`"): float(row[3].split()[0]) for row in rows[1:]}
    for name, shown in values.items():
        flat = np.sort(final_regrets(good[name]).ravel())
        assert shown == pytest.approx(flat[2:6].mean(), abs=5e-4)  # the middle half of 8 runs
    assert list(values.values()) == sorted(values.values())
    assert [row[2] for row in table_rows(text, "## What each agent saw")] == ["nothing", "nothing"]
    assert len(table_rows(text, "## The optimum of every cell")) == len(SUITE.cells())
    assert "Not ranked" not in text


def test_means_and_what_separates_an_agent_from_the_first(good):
    rows = table_rows(text_of([validate(path, 0) for path in good.values()]), "# Leaderboard of `unit`")
    matrices = [final_regrets(good[row[1].strip("`")]) for row in rows[1:]]
    first, second = (matrix.mean() for matrix in matrices)
    assert rows[1][4] == rows[1][6] == ""
    assert float(rows[1][5].split()[0]) == pytest.approx(first, abs=5e-4)
    assert float(rows[2][6].split()[0]) == pytest.approx(second - first, abs=5e-4)
    middle, other = (np.sort(matrix.ravel())[2:6].mean() for matrix in matrices)  # the middle half of 8 runs
    assert float(rows[2][4].split()[0]) == pytest.approx(other - middle, abs=5e-4)


def test_figures_are_those_of_the_page(good):
    verdicts = [validate(path, 0) for path in good.values()]
    figures, rows = leaderboard_figures(rank(verdicts)), table_rows(text_of(verdicts), "# Leaderboard of `unit`")
    shown = {row[1].strip("`"): row[3] for row in rows[1:]}
    agents = figures["agents"].items()
    assert {name: f"{value:.3f} ({low:.3f}–{high:.3f})" for name, (value, low, high) in agents} == shown
    assert (figures["suite"], figures["cells"], figures["evaluations"]) == ("unit", len(SUITE.cells()), EVALUATIONS)


def test_it_does_not_change_from_call_to_call(good):
    texts = {text_of([validate(path, 0) for path in good.values()]) for _ in range(2)}
    assert len(texts) == 1


def test_what_does_not_hold_is_named_and_not_ranked(good, edited):
    def change(header, runs):
        runs[0]["improvements"][0]["loss"] = 0.0

    bad = validate(edited(change), 0)
    text = text_of([validate(good["greedy"], 0), bad])
    assert "`random`" not in text and "* `random.jsonl` is refused: line 2" in text and "`greedy`" in text
    with pytest.raises(InputError, match="none of the results is valid"):
        text_of([bad])


def test_what_files_say_is_no_markup_and_options_are_shown(good, edited):
    def change(header, runs):
        header["agent"] = "![x](http://example.org) <b> `"

    bad = edited(change)
    text = text_of([validate(good["greedy"], 2), validate(bad, 0)])
    assert "<b>" not in text and "![x](" not in text and "&lt;b&gt;" in text
    assert [row[3] for row in table_rows(text, "## What each agent saw")] == ["2 of 8"]
    verdict = validate(edited(lambda header, runs: header.update(options={"none": "given"})), 0)
    verdict.unchecked.clear()  # the agent has no such option
    text = text_of([validate(good["greedy"], 0), verdict])
    assert '`random` with `none="given"`' in text
    assert set(leaderboard_figures(rank([validate(good["greedy"], 0), verdict]))["agents"]) == {"greedy"}


def test_unequal_conditions_are_not_compared(good, edited):
    def change(header, runs):
        header["evaluations"] = 99

    with pytest.raises(InputError, match="different evaluations"):
        text_of([validate(good["greedy"], 0), validate(edited(change), 0)])


def test_two_files_of_one_agent_are_refused(good, tmp_path):
    copy = tmp_path / "again.jsonl"
    copy.write_bytes(good["greedy"].read_bytes())
    verdicts = [validate(path, 0) for path in (good["greedy"], good["random"], copy)]
    with pytest.raises(InputError, match="both hold runs of 'greedy'; keep one"):
        rank(verdicts)


def test_what_an_agent_saw_is_shown(edited):
    def change(header, runs):
        header["saw"] = ["bops, latency 0.5", "digits"]

    text = text_of([validate(edited(change), 0)])
    assert table_rows(text, "## What each agent saw")[0][2] == "bops, latency 0.5; digits"
    assert json.dumps("saw") not in text


def test_the_committed_leaderboard_is_that_of_the_committed_results():
    files = sorted((ROOT / "benchmarks/results/tiny").glob("*.jsonl"))
    if not files:
        pytest.skip("no results of the suite are committed")
    verdicts = [validate(path, 0) for path in files]
    assert [verdict.problems for verdict in verdicts] == [[]] * len(files)
    board = rank(verdicts)
    committed = (ROOT / "benchmarks/LEADERBOARD.md").read_text(encoding="utf-8")
    # The page was made with replays, which take too long for a test.
    made_again = re.findall(r"(\d+) of 360 \|$", committed, flags=re.MULTILINE)
    assert len(made_again) == len(files) and all(int(count) > 0 for count in made_again)
    assert re.sub(r"\d+ of 360 \|", "0 of 360 |", committed) == leaderboard_text(board)
    shipped = json.loads((ROOT / "amed_env/agents/measured_regret.json").read_text(encoding="utf-8"))
    assert shipped == leaderboard_figures(board)
