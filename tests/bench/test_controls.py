"""Negative controls: what they are told is wrong, what is recorded is true, and they do badly."""

import math

import numpy as np
import pytest
from bench_suite import SUITE, regret_of
from small_task import BitProportional, InteractingEvaluator

from amed_env import AmedError, Task
from amed_env.bench.contender import Contender
from amed_env.bench.controls import CONTROLS, InvertedQuality, ShuffledSensitivities, make_control
from amed_env.bench.running import run_once
from amed_env.bench.suites import cell_task
from amed_env.errors import UnknownNameError
from amed_env.evaluation.delegating import DelegatingEvaluator
from amed_env.evaluation.quality import Evaluator
from amed_env.hardware import load_device
from amed_env.problem.objective import parse_budgets

CELLS = SUITE.cells()


class Listens:
    """Stands for an agent, and keeps what it is told."""

    family, folder = "search", None

    def explore(self, session):
        self.losses = session.task.predicted_loss
        self.fisher = session.task.evaluator.sensitivity("fisher", session.task.precisions)
        self.allocation = session.task.allocation([0] * len(session.task.workload))
        self.trial = session.evaluate(self.allocation)
        self.trials = list(session.trials)
        self.asked_again = session.task.evaluator.evaluate(self.allocation)
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
    assert math.exp(-told.trial.quality.loss) == pytest.approx(1 - math.exp(-true.quality.loss))
    assert told.trial.costs == true.costs
    assert told.best == told.trial and told.trials == [told.trial]
    assert told.asked_again == told.trial.quality
    order = np.argsort(task.predicted_loss, axis=None, kind="stable")
    assert (np.diff(told.losses.ravel()[order]) <= 0).all()
    assert task.predicted_loss is cell_task(CELLS[1]).predicted_loss  # the true task is as it was


@pytest.mark.parametrize("kind", [ShuffledSensitivities, InvertedQuality])
def test_pairs_are_told_wrong_too(kind):
    class Asks(Listens):
        def explore(self, session):
            self.pairs = session.task.evaluator.pair_divergences(session.task.precisions, 6)
            session.evaluate(session.task.allocation([0] * 6))

    asks, task = Asks(), interacting_task()
    kind(asks).search(task, 1)
    told, true = asks.pairs, task.evaluator.pair_divergences(task.precisions, 6)
    assert np.array_equal(told, told.transpose(2, 3, 0, 1))
    assert all((told[layer, :, layer] == 0).all() for layer in range(6))
    assert (told != true).mean() > 0.6


def interacting_task():
    evaluator, device = InteractingEvaluator(6, 1), load_device(BitProportional())
    return Task("interacting", evaluator, device, (2, 4, 8), budgets=parse_budgets({"latency": 0.6}))


@pytest.mark.parametrize("agent", ["milp", "pairwise", "local", "annealing", "evolution", "tpe", "amed"])
def test_what_learns_from_trials_learns_the_inverse(agent):
    """Each way to results (the answer, the trials of the session, the best one) tells it the same."""
    true, told = [], []
    for seed in range(3):
        for agents, found in ((agent, true), (f"control/{agent}-inverted", told)):
            trials = Contender(agents).make().search(interacting_task(), 40, seed).trials
            found.append(np.mean([trial.quality.accuracy for trial in trials[20:]]))
    assert np.mean(told) < np.mean(true) - 0.02


def test_every_question_to_an_evaluator_is_passed_on():
    questions = {name for name, member in vars(Evaluator).items() if callable(member) and not name.startswith("_")}
    # The table, the network, and an evaluator on other samples would be ways past what stands between an agent and the
    # truth: there it is as if there were none. A trial is an evaluation there, as nothing is trained or solved.
    kept_back = {"complete_table", "network_evaluator", "with_more_samples", "trial_quality", "weights_at"}
    kept_back |= {"solved_weights"}
    assert questions - kept_back <= set(vars(DelegatingEvaluator)) and not kept_back & set(vars(DelegatingEvaluator))


@pytest.mark.parametrize("name", ["control/greedy-shuffled", "control/greedy-inverted"])
def test_controls_do_no_better_than_chance(name):
    """With as many evaluations as random takes; over four cells and five seeds, so that chance plays no part."""
    told, chance = [], []
    for cell in CELLS:
        for seed in range(5):
            run = run_once(Contender(name), cell, seed, 12)
            assert run.note is None and run.evaluations
            told.append(regret_of(run))
            chance.append(regret_of(run_once(Contender("random"), cell, seed, 12)))
    assert np.mean(told) >= np.mean(chance)


@pytest.mark.slow
def test_a_learner_that_is_told_the_inverse_does_no_better_than_chance():
    contender = Contender("control/maskable-ppo-inverted", {"warm_start_steps": 3_000})
    run = run_once(contender, CELLS[0], 0, 40)
    assert run.note is None and run.evaluations == 40
    chance = [regret_of(run_once(Contender("random"), CELLS[0], seed, 40)) for seed in range(3)]
    assert regret_of(run) >= np.mean(chance)


def test_names():
    assert all(make_control(name).name == name for name in CONTROLS)
    assert make_control("control/maskable-ppo-inverted", warm_start_steps=0).family == "learner"
    for name in ("control/greedy", "control/greedy-wrong", "control/-shuffled"):
        with pytest.raises(UnknownNameError, match="control"):
            make_control(name)
    with pytest.raises(AmedError, match="did you mean 'greedy'"):
        Contender("control/gredy-shuffled").make()
