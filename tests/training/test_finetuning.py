import pytest
import torch
from training_samples import make_data, make_evaluator, settings

from amed_env import Quality
from amed_env.errors import InputError
from amed_env.training.checkpoint import use_trained, write_trained
from amed_env.training.curve import COLUMNS, curve_csv
from amed_env.training.finetuning import Finetuning


def finetuning(folder=None, bits=3, evaluator=None, **changes):
    evaluator = evaluator or make_evaluator()
    return Finetuning(evaluator, make_data(), evaluator.workload.uniform(bits), settings(**changes), folder)


def outcome(run):
    """All that must be equal but the time that it took."""
    history = [{**epoch.to_json(), "seconds": 0} for epoch in run.history]
    return history, run.best.step, run.allocation, [t.tolist() for t in run.trained.state_dict().values()]


def stop_after(step):
    def stop(run):
        if run.trainer.step == step:
            raise KeyboardInterrupt

    return stop


def test_a_split_run_equals_the_unsplit_one(tmp_path):
    whole = finetuning()
    whole.run()
    for step in (2, 5):
        part = finetuning(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            part.run(stop_after(step))
    last = finetuning(tmp_path)
    assert last.trainer.step == 5
    last.run()
    assert outcome(last) == outcome(whole)
    again = finetuning(tmp_path)
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
