import pytest
import torch
from training_samples import make_data, make_evaluator, make_task, settings

from amed_env import Quality
from amed_env.errors import AgentError, BudgetError, InputError
from amed_env.training.checkpoint import use_trained, write_trained
from amed_env.training.curve import COLUMNS, curve_csv
from amed_env.training.finetuning import Finetuning
from amed_env.training.walk import TrainingWalk

BUDGET = {"memory": 0.5}


def finetuning(folder=None, bits=3, evaluator=None, **changes):
    evaluator = evaluator or make_evaluator()
    return Finetuning(evaluator, make_data(), evaluator.workload.uniform(bits), settings(**changes), folder)


def walking(folder=None, every=2, walk_epochs=3, budget=BUDGET, options=None, task_options=None, **changes):
    task = make_task(budget, **(task_options or {}))
    walk = TrainingWalk(task, walk_epochs, every, seed=5, options=options)
    return Finetuning(task.evaluator, make_data(), walk, settings(**{"epochs": 5, **changes}), folder)


def outcome(run):
    """All that must be equal but the time that it took."""
    history = [{**epoch.to_json(), "seconds": 0} for epoch in run.history]
    return history, run.best.step, run.allocation, [t.tolist() for t in run.trained.state_dict().values()]


def stop_after(step):
    def stop(run):
        if run.trainer.step == step:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize(("make", "stops"), [(finetuning, (2, 5)), (walking, (5, 8))], ids=["allocation", "walk"])
def test_a_split_run_equals_the_unsplit_one(tmp_path, make, stops):
    whole = make()
    whole.run()
    for step in stops:
        part = make(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            part.run(stop_after(step))
    last = make(tmp_path)
    assert last.trainer.step == stops[-1]
    last.run()
    assert outcome(last) == outcome(whole)
    again = make(tmp_path)
    again.run()  # nothing is left to do
    assert outcome(again) == outcome(whole)


def test_nothing_is_interrupted_within_a_step(tmp_path):
    """What is held is every step and every file; what comes meanwhile is raised afterwards."""
    held = []

    class Held:
        def __enter__(self):
            held.append(True)

        def __exit__(self, *error):
            held.pop()

    run = finetuning(tmp_path, epochs=1)
    states = []
    save, step = run.save, run.trainer.train_step
    run.save = lambda: (states.append(bool(held)), save())[1]
    run.trainer.train_step = lambda: (states.append(bool(held)), step())[1]
    run.run(lambda _: states.append(not held), Held)
    assert len(states) > 6 and all(states)


def test_early_stop_and_the_best_epoch(monkeypatch):
    correct = iter([30, 40, 50, 45, 50, 49, 60, 60])
    losses = iter([0.5] * 8)
    run = finetuning(epochs=7, patience=3)
    exported = []

    def validate():
        exported.append([t.clone() for t in run.trained.state_dict().values()])
        return Quality(next(correct), 60, next(losses))

    monkeypatch.setattr(run, "validate", validate)
    run.run()
    assert [epoch.validation.correct for epoch in run.history] == [30, 40, 50, 45, 50, 49]
    assert run.stopped_early and run.best.epoch == 2
    assert all(map(torch.equal, run.trained.state_dict().values(), exported[2]))


def test_equal_accuracy_and_a_lower_loss_is_better(monkeypatch):
    losses = iter([0.5, 0.4, 0.45, 0.3])
    run = finetuning(epochs=3)
    monkeypatch.setattr(run, "validate", lambda: Quality(50, 60, next(losses)))
    run.run()
    assert run.best.epoch == 3 and not run.stopped_early


def test_fine_tuning_gains_what_rounding_lost_and_the_evaluator_shows_it(tmp_path):
    evaluator = make_evaluator()
    allocation = evaluator.workload.uniform(2).replace({"head": (3, 8)})
    before = {split: evaluator.evaluate(allocation, split) for split in ("search", "test")}
    fingerprint = evaluator.fingerprint
    run = Finetuning(evaluator, make_data(), allocation, settings(epochs=12))
    run.run()
    report = run.report()
    for split, quality in before.items():
        assert report["before"][split] == quality.to_json()
        assert report["after"][split] == evaluator.evaluate(allocation, split).to_json()
        assert report["after"][split]["loss"] < quality.loss - 0.05
    # Over both splits: 60 samples of one may tie, depending on the order in which a processor adds up.
    assert sum(report["after"][split]["correct"] for split in before) > sum(q.correct for q in before.values())
    assert evaluator.fingerprint != fingerprint
    write_trained(tmp_path, evaluator, allocation)
    fresh = make_evaluator()
    assert use_trained(tmp_path, fresh) == allocation
    for split in before:
        assert fresh.evaluate(allocation, split).to_json() == report["after"][split]
    assert fresh.evaluate(allocation.replace({"head": (8, 8)})) != fresh.evaluate(allocation)


def test_trained_weights_of_another_network_are_refused(tmp_path):
    evaluator = make_evaluator()
    write_trained(tmp_path, evaluator, evaluator.workload.uniform(3))
    other = make_evaluator()
    other._network_fingerprint = "another network"
    with pytest.raises(InputError, match="other weights or calibration samples"):
        use_trained(tmp_path, other)
    with pytest.raises(InputError, match="no finished training"):
        use_trained(tmp_path / "absent", other)


def test_the_curve_has_a_line_an_epoch():
    run = finetuning(epochs=2)
    run.run()
    lines = curve_csv(run.history).splitlines()
    assert lines[0].split(",") == list(COLUMNS) and len(lines) == 4
    assert lines[1].startswith("0,0,,,") and lines[-1].split(",")[:2] == ["2", "6"]


def test_the_walk_moves_learns_and_stays_within_its_budget():
    run = walking(every=1, walk_epochs=4, options={"temperature": 0.5})
    walk, task = run.walk, run.walk.task
    visited, steps = [], []

    def observe(_):
        if run.walking:
            visited.append(run.allocation)
            steps.append(run.trained.trained_layers()["stem"].weight_steps["2"].step.detach().clone())

    run.run(observe)
    assert all(task.feasible(task.cost(allocation).metrics) for allocation in visited)
    assert not task.feasible(task.cost(task.workload.uniform(8)).metrics)
    assert len(set(visited)) >= 4 and (walk._walk.scores.values != 0).any() and walk._walk.reference > 0
    # A width's step sizes are its own: at rest while the layer has another width, and then going on.
    for now, then, allocation in zip(steps[1:], steps, visited, strict=False):
        if allocation["stem"].weight_bits != 2:
            assert torch.equal(now, then)
    assert not torch.equal(steps[0], steps[-1])
    # The chosen allocation is one of those that were trained, and is the only one afterwards.
    assert walk.ended and run.allocation in visited and task.feasible(task.cost(run.allocation).metrics)
    assert {epoch.allocation for epoch in run.history if epoch.epoch > 4} == {run.allocation.key()}
    assert run.best.epoch >= 4


def test_the_walk_is_scored_by_the_loss_of_its_own_steps():
    task = make_task(BUDGET)
    walk = TrainingWalk(task, 2, every=2)
    first = walk.allocation
    assert not walk.learn(1.0, 10, 32) and walk.allocation == first
    assert walk.learn(3.0, 12, 32) and walk.moves == 1
    factor = task.cost(first).metrics["latency_ms"] / task.reference_cost.metrics["latency_ms"]
    assert walk._walk.reference == pytest.approx(2.0 + 0.1 * factor, abs=1e-3)


def test_the_walk_keeps_pins_and_ends():
    run = walking(every=1, walk_epochs=2, options={"pin_ends": True}, budget={"memory": 0.8}, epochs=3)
    seen = set()
    run.run(lambda r: seen.add((r.allocation["stem"], r.allocation["head"])))
    assert seen == {((8, 8), (8, 8))}


def test_walks_that_cannot_be_are_refused():
    with pytest.raises(BudgetError):
        make_task({"memory": 0.01})
    with pytest.raises(AgentError):
        TrainingWalk(make_task(BUDGET), 1, options={"temperature": -1})
    with pytest.raises(InputError, match="give more epochs"):
        walking(walk_epochs=5, epochs=5)
