"""Regret of recorded runs, against a walk through all allocations one by one."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from result_samples import CELLS, DIGITS, header, searched, write

from amed_env.bench.curves import compare, points_up_to, read_folder
from amed_env.bench.estimates import (
    beats,
    beats_all,
    change_on_test,
    control_verdict,
    final_regret,
    profile,
    regret_at,
    regret_curve,
    regret_on_test,
)
from amed_env.bench.result_file import contents_of
from amed_env.bench.run_statistics import interquartile_mean
from amed_env.bench.suites import Cell, cell_task
from amed_env.bench.truth import NOTHING, cell_truth
from amed_env.errors import BenchFileError, InputError

CELL = CELLS[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write(folder, "random", CELLS[:2])
    write(folder, "climber", CELLS[:2], climb=0.6, family="learner")
    write(folder, "control/climber-inverted", CELLS[:2], climb=0.9, invert=True)
    return folder


@pytest.fixture(scope="module")
def comparison(folder):
    return compare(read_folder(folder))


def regrets_of(agent, points):
    return np.stack(list(agent.regrets_after(points)))


def step(positions, values, position):
    """The value of a step function, from each of its positions to the next."""
    return values[np.searchsorted(positions, position, side="right") - 1]


def all_feasible(cell, count=3000):
    """Accuracies (search, test) of a sample of the cell's feasible allocations, each asked for by itself."""
    task = cell_task(cell)
    found = []
    for choices in itertools.islice(itertools.product(range(4), repeat=len(task.workload)), 0, None, 4**8 // count):
        allocation = task.allocation(choices)
        if task.feasible(task.total_costs(allocation)):
            qualities = (task.evaluator.evaluate(allocation, split) for split in ("search", "test"))
            found.append((choices, *(100 * quality.accuracy for quality in qualities)))
    return found


def test_no_allocation_is_better_than_the_optimum_or_worse_than_the_worst():
    truth = cell_truth(CELL)
    worst = float(truth.regret(NOTHING)), float(truth.regret(NOTHING, "test"))
    sample = all_feasible(CELL)
    assert len(sample) > 300
    rows = truth.rows("".join(map(str, choices)) for choices, _, _ in sample)
    for which, split in enumerate(("search", "test")):
        regrets, accuracies = truth.regret(rows, split), np.array([line[1 + which] for line in sample])
        assert regrets.min() >= 0 and regrets.max() <= worst[which] + 1e-9
        assert np.ptp(regrets + accuracies) < 1e-9  # regret is the optimum's accuracy minus one's own
    assert truth.regret(truth.optimum) == 0 and worst[0] > 1


def test_what_is_no_allocation_of_the_cell_is_refused():
    truth = cell_truth(CELL)
    assert truth.rows([]).shape == (0,)
    with pytest.raises(InputError, match="not so many digits"):
        truth.rows(["0123"])
    with pytest.raises(InputError, match="precisions 0 to 3"):
        truth.rows(["00000009"])
    with pytest.raises(InputError, match="exceeds the budget"):
        truth.rows(["33333333"])


def test_regret_after_every_number_of_evaluations(comparison):
    agent, everywhere = comparison.find("random"), np.arange(1, 61)
    regrets = regrets_of(agent, everywhere)
    for (row, seed), point in itertools.product(itertools.product(range(2), range(3)), everywhere):
        run = searched(comparison.truths[row].cell, seed, 60)
        reached = [better.accuracy for better in run.improvements if better.evaluation <= point]
        best = float(comparison.truths[row].accuracy(comparison.truths[row].optimum))
        expected = best - max(reached) if reached else float(comparison.truths[row].regret(NOTHING))
        assert regrets[point - 1, seed, row] == pytest.approx(expected, abs=1e-9)
    assert (np.diff(regrets, axis=0) <= 0).all() and (regrets[-1] == agent.final).all()
    few = regrets_of(agent, [3, 30])  # a run may improve several times in between
    assert (few == regrets[[2, 29]]).all()


def test_curves_are_exact_after_every_evaluation(comparison):
    for agent in comparison.agents:
        curve = regret_curve(agent, comparison.points)
        assert curve.after[0] == 1 and curve.after[-1] == 60 and len(curve.after) <= 60
        for point, regrets in zip(range(1, 61), agent.regrets_after(np.arange(1, 61)), strict=True):
            assert step(curve.after, curve.value, point) == interquartile_mean(regrets)
        assert (curve.band.value == [step(curve.after, curve.value, point) for point in comparison.points]).all()


def test_intervals_are_steps_where_they_are_computed_after_every_evaluation(comparison):
    curve = regret_curve(comparison.agents[0], np.array([1, 2, 3, 10, 60]))
    corners, low, high = curve.band_outline()
    assert corners.tolist() == [1, 2, 2, 3, 3, 10, 60]
    for part, of_band in ((low, curve.band.low), (high, curve.band.high)):
        assert part.tolist() == of_band[[0, 0, 1, 1, 2, 3, 4]].tolist()


def test_curves_of_very_many_changes_leave_some_out_and_keep_both_ends(comparison):
    agent, many = comparison.agents[0], 5_000
    steps = replace(
        agent.steps,
        after=np.arange(1, many + 1),
        seeds=np.arange(many) % 3,
        cells=np.arange(many) // 3 % 2,
        regrets=np.linspace(50, 1, many),
    )
    curve = regret_curve(replace(agent, steps=steps), points_up_to(many))
    assert curve.after[0] == 1 and curve.after[-1] == many and 500 < len(curve.after) <= 1_000
    assert (np.diff(np.log(curve.after))[curve.after[1:] > 200] < 0.02).all()
    every = list(replace(agent, steps=steps).regrets_after(curve.after))
    assert (curve.value == [interquartile_mean(regrets) for regrets in every]).all()


def test_improvements_past_the_last_evaluation_count_for_nothing(tmp_path):
    run = next(run for run in (searched(CELL, seed, 60) for seed in range(9)) if len(run.improvements) > 1)
    last = run.improvements[-1]
    run = run.model_copy(update={"seed": 0})
    shortened = header("short", (CELL,), seeds=1, evaluations=last.evaluation - 1)
    (tmp_path / "short.jsonl").write_bytes(contents_of(shortened, [run]))
    agent = compare(read_folder(tmp_path)).agents[0]
    truth = cell_truth(CELL)
    assert agent.steps.after.tolist() == [better.evaluation for better in run.improvements[:-1]]
    assert agent.final[0, 0] == truth.regret(truth.rows([run.improvements[-2].choices])[0])


def test_before_anything_is_found_the_worst_feasible_allocation_counts(tmp_path):
    run = searched(CELL, 0, 60)
    late = run.improvements[-1].model_copy(update={"evaluation": 30})
    head = header("late", (CELL,), seeds=2)
    runs = [run.model_copy(update={"improvements": (late,)}), run.model_copy(update={"improvements": (), "seed": 1})]
    (tmp_path / "late.jsonl").write_bytes(contents_of(head, runs))
    found = compare(read_folder(tmp_path))
    worst = float(cell_truth(CELL).regret(NOTHING))
    agent = found.agents[0]
    regrets, before = regrets_of(agent, found.points), found.points < 30
    assert (regrets[before] == worst).all() and (regrets[:, 1] == worst).all()
    assert (regrets[~before, 0] < worst).all()
    assert agent.test_regrets[1, 0] == float(cell_truth(CELL).regret(NOTHING, "test"))
    accuracies = [line[1] for line in all_feasible(CELL)]
    assert worst >= max(accuracies) - min(accuracies)


def test_points_of_curves():
    points = points_up_to(500)
    assert points[0] == 1 and points[-1] == 500 and (np.diff(points) > 0).all()
    assert {1, 2, 5, 10, 20, 50, 100, 200, 500} <= set(points.tolist()) and len(points) < 60
    assert points_up_to(1).tolist() == [1]
    assert points_up_to(7).tolist()[-1] == 7


def test_estimates_hold_what_they_are_of(comparison):
    first, second = comparison.agents[:2]
    curve = regret_curve(first, comparison.points)
    assert curve.band.value.shape == comparison.points.shape
    assert (curve.band.low <= curve.band.value).all() and (curve.band.value <= curve.band.high).all()
    assert (np.diff(curve.value) <= 0).all()
    at = regret_at(first, [1, 60])
    assert float(at[0].value) == curve.value[0] and float(at[1].value) == float(final_regret(first).value)
    share = profile(first).share
    assert share.value[0] == (first.final == 0).mean() and share.value[-1] == 1
    assert (share.low <= share.value).all() and (share.value <= share.high).all()
    wins = [a < b for t in range(2) for a in first.final[:, t] for b in second.final[:, t]]
    draws = [a == b for t in range(2) for a in first.final[:, t] for b in second.final[:, t]]
    assert float(beats(first, second).value) == pytest.approx(np.mean(wins) + np.mean(draws) / 2)
    pairs = beats_all(comparison.agents)
    assert np.allclose(pairs.value + pairs.value.T, 1) and (np.diag(pairs.value) == 0.5).all()
    assert (pairs.low <= pairs.value + 1e-9).all() and (pairs.value <= pairs.high + 1e-9).all()
    assert beats_all(comparison.agents).low.tolist() == pairs.low.tolist()


def with_regrets(agent, regrets):
    return replace(agent, final=np.asarray(regrets, dtype=np.float64))


def test_profiles_are_exact_at_every_regret_and_between(comparison):
    rng = np.random.default_rng(0)
    multiples = with_regrets(comparison.agents[0], rng.integers(0, 40, (10, 36)) * 100 / 2000)
    thirds = with_regrets(comparison.agents[0], rng.integers(0, 40, (10, 36)) * 100 / 3000)
    for agent in (*comparison.agents, multiples, thirds):
        found = profile(agent)
        assert found.thresholds[0] == 0 and (np.diff(found.thresholds) > 0).all()
        between = (found.thresholds[1:] + found.thresholds[:-1]) / 2
        for regret in [*found.thresholds, *between, *np.linspace(0, 60, 201), 0.2, 0.25, 0.4]:
            counted = sum(value <= regret + 1e-6 for value in agent.final.ravel()) / agent.final.size
            assert step(found.thresholds, found.share.value, regret + 1e-6) == pytest.approx(counted)
        same = profile(agent)
        assert same.share.low.tolist() == found.share.low.tolist()


def test_profiles_of_very_many_regrets_leave_out_larger_ones_only(comparison):
    agent = with_regrets(comparison.agents[0], np.arange(600).reshape(300, 2) / 10)
    found = profile(agent)
    assert len(found.thresholds) == 240 and found.thresholds[-1] == 59.9
    assert found.thresholds[:180] == pytest.approx(np.arange(180) / 10)
    counted = [(agent.final <= threshold + 1e-6).mean() for threshold in found.thresholds]
    assert found.share.value == pytest.approx(counted)


def test_the_last_step_of_a_profile_is_drawn_on(comparison):
    found = profile(with_regrets(comparison.agents[0], [[0.2, 0.4]]))
    thresholds, share = found.up_to(5.0)
    assert thresholds.tolist() == [0, 0.2, 0.4, 5] and share.value.tolist() == [0, 0.5, 1, 1]


def test_regret_on_the_test_split(comparison):
    for agent in comparison.agents:
        for seed, number in itertools.product(range(3), range(2)):
            truth = comparison.truths[number]
            best_on_test = 100 * (truth.table.correct["test"][truth.feasible].max() / 1) / 500
            row = agent.rows[seed, number]
            expected = best_on_test - 100 * truth.table.correct["test"][row] / 500
            assert agent.test_regrets[seed, number] == pytest.approx(expected)
        middle = np.sort(agent.test_regrets.ravel())[1:-1]  # a quarter of six, in whole runs, at each end
        assert float(regret_on_test(agent).value) == pytest.approx(middle.mean())
        low, high = float(change_on_test(agent).low), float(change_on_test(agent).high)
        assert low <= float(change_on_test(agent).value) <= high


def test_controls_are_judged_beside_random(comparison):
    control = comparison.find("control/climber-inverted")
    assert control.group == "control" and comparison.find("climber").group == "learner"
    _, verdict = control_verdict(control, comparison)
    assert "as it must be" in verdict
    cheat, alone = comparison.find("climber"), compare_without(comparison, "random")
    found, verdict = control_verdict(cheat, comparison)
    assert (float(found.low) > 0.5) == ("leaks" in verdict)
    assert control_verdict(control, alone) == (None, "not known: random is not among the agents")


def compare_without(comparison, name):
    return replace(comparison, agents=tuple(agent for agent in comparison.agents if agent.name != name))


def test_a_single_task_is_a_comparison_of_its_own(comparison):
    assert comparison.tasks == [DIGITS] and comparison.seeds == "3"
    same = comparison.of_task(DIGITS)
    assert [agent.name for agent in same.agents] == [agent.name for agent in comparison.agents]
    for point in (1, 10, 60):
        assert (regrets_of(same.agents[0], [point]) == regrets_of(comparison.agents[0], [point])).all()
    assert list(comparison.scopes()) == [""]


def test_some_of_the_cells_in_any_order(comparison):
    agent = comparison.agents[0]
    for chosen in ([1], [1, 0]):
        part = agent.of_cells(chosen)
        assert (regrets_of(part, [1, 7, 60]) == regrets_of(agent, [1, 7, 60])[..., chosen]).all()
        assert (part.final == agent.final[:, chosen]).all()


def test_agents_that_lack_runs_are_left_out(tmp_path):
    write(tmp_path, "whole", CELLS[:2], seeds=2, evaluations=5)
    write(tmp_path, "part", CELLS[:2], seeds=2, evaluations=5, drop=1)
    found = compare(read_folder(tmp_path))
    assert [agent.name for agent in found.agents] == ["whole"]
    assert dict(found.left_out) == {"part": "1 of 4 runs are missing"}
    (tmp_path / "whole.jsonl").unlink()
    write(tmp_path, "other", CELLS[1:2], seeds=2, evaluations=5, drop=1)
    with pytest.raises(BenchFileError, match=r"no agent has finished: .*part: .*runs are missing"):
        compare(read_folder(tmp_path))


def test_folders_that_cannot_be_compared(tmp_path):
    with pytest.raises(InputError, match="has no result files"):
        read_folder(tmp_path)
    first = write(tmp_path, "first", CELLS[:1], seeds=1, evaluations=5)
    copy = tmp_path / "second.jsonl"
    copy.write_bytes(first.read_bytes())
    with pytest.raises(BenchFileError, match="both hold runs of 'first'"):
        read_folder(tmp_path)
    copy.unlink()
    write(tmp_path, "second", CELLS[:1], seeds=1, evaluations=6)
    with pytest.raises(BenchFileError, match=r"second.jsonl has evaluations 6, .*first.jsonl has 5"):
        read_folder(tmp_path)


def test_false_claims_are_refused(tmp_path):
    path = write(tmp_path, "liar", (CELL,), seeds=1, evaluations=60)
    lines = path.read_text().splitlines()
    run = json.loads(lines[1])
    run["improvements"][-1]["choices"] = "33333333"
    path.write_text("\n".join([lines[0], json.dumps(run)]) + "\n")
    with pytest.raises(BenchFileError, match=r"liar.jsonl: 33333333 exceeds the budget .*amed bench validate"):
        compare(read_folder(tmp_path))
    run = json.loads(lines[1])
    run["improvements"] = 2 * run["improvements"]
    path.write_text("\n".join([lines[0], json.dumps(run)]) + "\n")
    with pytest.raises(BenchFileError, match="not in the order of their evaluations"):
        compare(read_folder(tmp_path))
    head = json.loads(lines[0])
    head["tables"][DIGITS] = "0" * 64
    path.write_text("\n".join([json.dumps(head), lines[1]]) + "\n")
    with pytest.raises(BenchFileError, match="another table of 'tabular/digits-cnn'"):
        compare(read_folder(tmp_path))


def test_claimed_accuracies_are_not_believed(tmp_path):
    path = write(tmp_path, "boaster", (CELL,), seeds=1)
    before = compare(read_folder(tmp_path)).agents[0].steps.regrets
    lines = path.read_text().splitlines()
    run = json.loads(lines[1])
    for better in run["improvements"]:
        better["accuracy"], better["correct"] = 100.0, 500
    path.write_text("\n".join([lines[0], json.dumps(run)]) + "\n")
    assert (compare(read_folder(tmp_path)).agents[0].steps.regrets == before).all()


def test_tasks_without_a_table_are_named(tmp_path):
    other = Cell("cifar10-resnet20", "bitfusion", (("latency", 0.5),))
    run = searched(CELL, 0, 5)
    foreign = run.model_copy(update={"task": other.task, "device": other.device, "budget": dict(other.budget)})
    (tmp_path / "both.jsonl").write_bytes(contents_of(header("both", (CELL,), seeds=1), [run, foreign]))
    found = compare(read_folder(tmp_path))
    assert dict(found.left_out) == {str(other): "no table, so its regret is not known"}
    (tmp_path / "both.jsonl").write_bytes(contents_of(header("both", (CELL,), seeds=1), [foreign]))
    with pytest.raises(BenchFileError, match="no runs on tasks with a table"):
        compare(read_folder(tmp_path))
