"""Negative controls: what they are told is wrong, what is recorded is true, and they do badly."""

import numpy as np
import pytest
from bench_suite import SUITE

from amed_env.bench.controls import CONTROLS, InvertedQuality, ShuffledSensitivities, make_control
from amed_env.bench.running import Contender, run_once
from amed_env.bench.scores import regret_after
from amed_env.bench.suites import cell_task
from amed_env.errors import AmedError, UnknownNameError

CELLS = SUITE.cells()


class Listens:
    """Stands for an agent, and keeps what it is told."""

    family, folder = "search", None

    def explore(self, session):
        self.losses = session.task.predicted_loss
        self.fisher = session.task.evaluator.sensitivity("fisher", session.task.precisions)
        self.allocation = session.task.allocation([0] * len(session.task.workload))
        self.trial = session.evaluate(self.allocation)
        self.best, self.known, self.count = session.best(), session.knows(self.allocation), session.evaluations


def listen(kind, seed=0):
    told = Listens()
    result = kind(told).search(cell_task(CELLS[1]), 5, seed)
    return told, result


def test_shuffled_sensitivities_are_the_same_numbers_elsewhere():
    told, result = listen(ShuffledSensitivities)
    true = cell_task(CELLS[1]).predicted_loss
    assert np.array_equal(np.sort(told.losses.ravel()), np.sort(true.ravel()))
    assert (told.losses != true).mean() > 0.8
    fisher = cell_task(CELLS[1]).evaluator.sensitivity("fisher", cell_task(CELLS[1]).precisions)
    assert np.array_equal(np.sort(told.fisher.ravel()), np.sort(fisher.ravel()))
    assert (told.fisher != fisher).mean() > 0.8
    assert not np.array_equal(told.losses, listen(ShuffledSensitivities, 1)[0].losses)
    assert np.array_equal(told.losses, listen(ShuffledSensitivities)[0].losses)
    assert told.trial == result.trials[0] and told.known and told.count == 1


def test_inverted_quality_is_told_and_the_true_one_recorded():
    told, result = listen(InvertedQuality)
    task = cell_task(CELLS[1])
    true = task.measure(told.allocation)
    assert result.trials[0].quality == true.quality and result.best.quality == true.quality
    assert told.trial.quality.correct == true.quality.samples - true.quality.correct
    assert told.trial.quality.loss == -true.quality.loss and told.trial.costs == true.costs
    assert told.best.quality == told.trial.quality
    order = np.argsort(task.predicted_loss, axis=None, kind="stable")
    assert (np.diff(told.losses.ravel()[order]) <= 0).all()
    assert task.predicted_loss is cell_task(CELLS[1]).predicted_loss  # the true task is as it was


@pytest.mark.parametrize("name", ["control/greedy-shuffled", "control/greedy-inverted"])
def test_controls_do_no_better_than_chance(name):
    """With as many evaluations as random takes; over four cells and five seeds, so that chance plays no part."""
    told, chance = [], []
    for cell in CELLS:
        for seed in range(5):
            run = run_once(Contender(name), cell, seed, 12)
            assert run.note is None and run.evaluations
            told.append(regret_after(run, 12))
            chance.append(regret_after(run_once(Contender("random"), cell, seed, 12), 12))
    assert np.mean(told) >= np.mean(chance)


@pytest.mark.slow
def test_a_learner_that_is_told_the_inverse_does_no_better_than_chance():
    contender = Contender("control/maskable-ppo-inverted", {"warm_start_steps": 3_000})
    run = run_once(contender, CELLS[0], 0, 40)
    assert run.note is None and run.evaluations == 40
    chance = [regret_after(run_once(Contender("random"), CELLS[0], seed, 40), 40) for seed in range(3)]
    assert regret_after(run, 40) >= np.mean(chance)


def test_names():
    assert all(make_control(name).name == name for name in CONTROLS)
    assert make_control("control/maskable-ppo-inverted", warm_start_steps=0).family == "learner"
    for name in ("control/greedy", "control/greedy-wrong", "control/-shuffled"):
        with pytest.raises(UnknownNameError, match="control"):
            make_control(name)
    with pytest.raises(AmedError, match="did you mean 'greedy'"):
        Contender("control/gredy-shuffled").make()
