"""Allocations scored while the network is trained for them."""

import numpy as np
import pytest
import torch
from training_samples import LAYERS, float_network, images, make_data, make_evaluator, settings

import amed_env
from amed_env import InTraining, Quality, SearchSession, Task, make_agent
from amed_env.datasets.further import FurtherSamples
from amed_env.envs import RandomWalkEnv
from amed_env.errors import DataError, InputError, NonFiniteError, UnsupportedPrecisionError
from amed_env.hardware import load_device
from amed_env.problem.objective import parse_budgets
from amed_env.training.in_training import CHECKPOINT, InTrainingEvaluator

BITS = (2, 3, 4, 8)


def make_trained(folder=None, steps=2, **changes):
    inner = make_evaluator(further=FurtherSamples(load_training=make_data), score="loss")
    return InTrainingEvaluator(inner, InTraining(steps, settings(**changes), folder), BITS)


def task_of(evaluator, budget=None):
    return Task(
        "bottleneck", evaluator, load_device("bitfusion"), BITS, budgets=parse_budgets(budget or {"memory": 0.5})
    )


def weights(evaluator):
    return {name: layer.weight.detach().clone() for name, layer in evaluator.trained.trained_layers().items()}


def test_a_trial_trains_and_a_look_does_not():
    evaluator = make_trained()
    allocation = evaluator.workload.uniform(2)
    start, before = weights(evaluator), evaluator.evaluate(allocation)
    assert evaluator.evaluate(allocation) == before and evaluator.trainer.step == 0
    first = evaluator.trial_quality(allocation)
    assert evaluator.trainer.step == 2
    assert evaluator.evaluate(allocation) == first != before
    assert any(not torch.equal(tensor, start[name]) for name, tensor in weights(evaluator).items())
    for _ in range(10):
        last = evaluator.trial_quality(allocation)
    assert last.loss < first.loss and last.loss < before.loss


def test_widths_have_step_sizes_of_their_own():
    """At rest while the layer has another width, and then going on; the weights are everybody's."""
    evaluator = make_trained()

    def steps_of(bits):
        return [layer.weight_steps[str(bits)].step.detach().clone() for layer in evaluator.trained.layers]

    evaluator.trial_quality(evaluator.workload.uniform(2))
    two, four, shared = steps_of(2), steps_of(4), weights(evaluator)
    evaluator.trial_quality(evaluator.workload.uniform(4))
    assert all(torch.equal(now, then) for now, then in zip(steps_of(2), two, strict=True))
    assert any(not torch.equal(now, then) for now, then in zip(steps_of(4), four, strict=True))
    assert any(not torch.equal(tensor, shared[name]) for name, tensor in weights(evaluator).items())


def test_the_score_is_that_of_what_is_exported():
    """The weights that a finalist gets make a network that knows nothing of training score the same."""
    evaluator = make_trained()
    allocation = evaluator.workload.uniform(4).replace({"head": (8, 8)})
    quality = evaluator.trial_quality(allocation)
    plain = make_evaluator(score="loss")
    plain.adopt(*evaluator.weights_at(allocation))
    assert plain.evaluate(allocation) == quality


def test_sensitivities_are_those_before_the_training():
    precisions = [amed_env.Precision(bits, bits) for bits in BITS]
    evaluator, plain = make_trained(), make_evaluator(score="loss")
    evaluator.trial_quality(evaluator.workload.uniform(2))
    after = evaluator.evaluate(evaluator.workload.uniform(2))
    assert np.array_equal(evaluator.predicted_loss(precisions), plain.predicted_loss(precisions))
    assert evaluator.evaluate(evaluator.workload.uniform(2)) == after


def walk(folder=None, evaluations=8, stop=None, **changes):
    evaluator = make_trained(folder, **changes)

    def on_change(session):
        if session.evaluations == stop:
            evaluator.save()
            raise KeyboardInterrupt

    task = task_of(evaluator)
    return make_agent("amed", temperature=0.5).search(task, evaluations, 3, on_change=on_change), evaluator


def facts(result):
    return [(trial.allocation, trial.quality.to_json(), trial.costs) for trial in result.trials]


def test_amed_walks_and_every_evaluation_counts():
    result, evaluator = walk(evaluations=12)
    assert len(result.trials) == result.evaluations == 12 and evaluator.trainer.step == 24
    assert all(result.task.feasible(trial.costs) for trial in result.trials)
    assert len({trial.allocation for trial in result.trials}) >= 4


def test_an_interrupted_walk_goes_on_where_it_was(tmp_path):
    whole, end = walk()
    for stop in (3, 6):
        part, _ = walk(tmp_path, stop=stop)
        assert part.interrupted and len(part.trials) == stop
    last, evaluator = walk(tmp_path)
    assert facts(last) == facts(whole)
    assert all(torch.equal(tensor, weights(end)[name]) for name, tensor in weights(evaluator).items())
    assert last.task.reference_score == whole.task.reference_score


def test_a_trial_that_is_cut_short_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    evaluator = make_trained(tmp_path)
    allocation = evaluator.workload.uniform(4)
    evaluator.trial_quality(allocation)
    evaluator.save()
    before = (tmp_path / CHECKPOINT).read_bytes()
    step = evaluator.trainer.train_step

    def interrupted():
        step()
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluator.trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluator.trial_quality(allocation)
    evaluator.save()
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_another_search_in_the_same_folder_is_refused(tmp_path):
    evaluator = make_trained(tmp_path)
    evaluator.trial_quality(evaluator.workload.uniform(4))
    evaluator.save()
    with pytest.raises(InputError, match=r"trial 1 of the training in .* another folder"):
        make_trained(tmp_path).trial_quality(evaluator.workload.uniform(3))
    with pytest.raises(InputError, match="another network or training"):
        make_trained(tmp_path, steps=3).trial_quality(evaluator.workload.uniform(4))


def test_a_fault_is_remembered_too(tmp_path, monkeypatch):
    evaluator = make_trained(tmp_path)
    allocation = evaluator.workload.uniform(4)

    def diverges():
        raise NonFiniteError("a loss of NaN")

    with monkeypatch.context() as patched:
        patched.setattr(evaluator.trainer, "train_step", diverges)
        with pytest.raises(NonFiniteError):
            evaluator.trial_quality(allocation)
    expected = evaluator.trial_quality(allocation)
    evaluator.save()
    again = make_trained(tmp_path)
    with pytest.raises(NonFiniteError, match="a loss of NaN"):
        again.trial_quality(allocation)
    assert again.trial_quality(allocation) == expected


@pytest.mark.parametrize("tune_steps", [0, 3])
def test_finalists_are_judged_by_the_weights_of_the_end(tune_steps):
    result, evaluator = walk()
    end = weights(evaluator)
    amed_env.choose_finalist(result, finalists=3, tune_steps=tune_steps)
    assert all(torch.equal(tensor, end[name]) for name, tensor in weights(evaluator).items())
    chosen = result.finalists.chosen
    assert result.tuned_weights is not None and chosen.weights is not None
    result.add_report()
    assert evaluator.trainer.step == 16  # baselines and the report train nothing
    plain = make_evaluator(score="loss")
    plain.adopt(*result.tuned_weights)
    assert plain.evaluate(result.best.allocation, "test") == result.test["best"]
    if not tune_steps:
        assert result.test["best"] == evaluator.evaluate(result.best.allocation, "test")


def test_the_random_walk_environment_trains_at_every_move():
    evaluator = make_trained()
    env = RandomWalkEnv(task_of(evaluator, {"memory": 1.0}), moves=3)
    env.reset(seed=0)
    stay = int(env.task.space.start_choices()[0])  # the first layer's own precision once more
    qualities = []
    for _ in range(3):
        *_, info = env.step(stay)
        qualities.append(info["quality"])
    assert evaluator.trainer.step == 8 and len(set(qualities)) == 3


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="whole number"):
        InTraining(steps=0)
    with pytest.raises(DataError, match="no training samples"):
        InTrainingEvaluator(make_evaluator(), InTraining(), BITS)
    evaluator = make_trained()
    with pytest.raises(UnsupportedPrecisionError, match="2, 3, 4, 8 bits and not for 5"):
        evaluator.trial_quality(evaluator.workload.uniform(5))
    with pytest.raises(InputError, match="is a table"):
        amed_env.make_task("tabular/digits-cnn", evaluation="in-training")
    with pytest.raises(InputError, match="evaluation is 'post'"):
        amed_env.make_task("digits-cnn", evaluation="post")


def test_make_task_trains_a_network_of_ones_own():
    parts = {
        "network": float_network(),
        "calibration": images(48, 1)[0],
        "search": images(60, 2),
        "training": images(96, 4),
        "recipe": "nearest",
        "threads": 1,
    }
    task = amed_env.make_task(evaluation=InTraining(steps=1), bits=[2, 4], pin={"first": 8}, **parts)
    session = SearchSession(task, 3)
    allocation = task.uniform(2)
    scores = [session.evaluate(allocation).quality.score for _ in range(3)]
    assert len(set(scores)) == 3 and session.ended
    assert allocation[LAYERS[0]] == (8, 8)
    # By default it is trained to come near to the float network, as that is what it is scored by.
    assert task.evaluator.settings.distill == 1.0
    assert isinstance(task.evaluator.evaluate(task.workload.uniform(32)), Quality)
