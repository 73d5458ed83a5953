"""What allocations are scored by: by default how far they are from the float network, for outputs of any form."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import amed_env
from amed_env import Quality, Task, load_device
from amed_env.datasets import Samples, Splits
from amed_env.errors import DataError, InputError, NonFiniteError, UnknownNameError
from amed_env.evaluation import float_outputs
from amed_env.evaluation.fitting import scoring_remarks
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.problem.score import DIVERGENCE, LOSS, TOP_1

SAMPLES = 24


class Classes(nn.Module):
    """Class scores (N, 3)."""

    outputs = 3

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, self.outputs)

    def forward(self, inputs):
        return self.second(torch.relu(self.first(inputs)))


class Pixels(nn.Module):
    """Class scores of pixels (N, 4, H, W)."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, inputs):
        return self.second(torch.relu(self.first(inputs)))


class Values(Classes):
    """One value a sample (N, 1)."""

    outputs = 1


class Tokens(nn.Module):
    """Class scores of tokens (N, T, 11)."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


SHAPES = {Classes: (6,), Pixels: (1, 5, 5), Values: (6,), Tokens: (7,)}


def drawn(network):
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.data.normal_(generator=generator)
    return network.eval()


def inputs_of(kind, seed, count=SAMPLES):
    generator = torch.Generator().manual_seed(seed)
    if kind is Tokens:
        return torch.randint(0, 11, (count, *SHAPES[kind]), generator=generator)
    return torch.randn(count, *SHAPES[kind], generator=generator)


def splits_of(kind, search=None, test=None):
    return Splits(
        Samples(inputs_of(kind, 0, 64), name="calibration"),
        Samples(inputs_of(kind, 1), search, "search"),
        Samples(inputs_of(kind, 2), test, "test"),
    )


@cache
def traced(kind):
    return amed_env.trace(drawn(kind()), inputs_of(kind, 0, 2), kind.__name__)


def task_of(kind, search=None, test=None, score=None, metrics=None):
    """A task of a small network, whose samples are without labels unless they are given."""
    splits = splits_of(kind, search, test)
    evaluator = PostTrainingEvaluator(traced(kind), splits, "nearest", threads=1, score=score, metrics=metrics)
    return Task(kind.__name__, evaluator, load_device("bitfusion"))


def outputs_of(task, bits, split="search"):
    """What the evaluator's network returns at a uniform width."""
    network = task.evaluator.network
    network.select(task.workload.uniform(bits))
    return network(task.evaluator.samples(split).inputs)


def divergences(float_outputs, outputs, axis):
    """KL(float ‖ quantized) of every position, by its definition in numpy."""
    truth = torch.softmax(float_outputs.double(), dim=axis).numpy()
    found = torch.softmax(outputs.double(), dim=axis).numpy()
    return (truth * (np.log(truth) - np.log(found))).sum(axis=axis)


@pytest.mark.parametrize(("kind", "axis", "score"), [(Classes, 1, None), (Pixels, 1, "kl"), (Tokens, 2, None)])
def test_class_scores_are_compared_by_their_divergence(kind, axis, score):
    task = task_of(kind, score=score)
    assert task.score == DIVERGENCE and not task.score.higher_is_better
    for bits in (2, 4):
        quality = task.quality(task.workload.uniform(bits))
        truth = divergences(outputs_of(task, 32), outputs_of(task, bits), axis)
        assert quality.score == pytest.approx(truth.mean(), rel=1e-9) and quality.score > 0
        assert quality.per_sample["divergence"] == pytest.approx(truth.reshape(SAMPLES, -1).mean(axis=1), rel=1e-5)
        assert quality.loss is None and quality.correct is None and not quality.metrics
    assert task.float_quality.score == 0.0
    assert task.quality(task.workload.uniform(2)).score > task.quality(task.workload.uniform(8)).score


@pytest.mark.parametrize("kind", [Values, Pixels])
def test_other_outputs_are_compared_by_their_squared_error_over_their_variance(kind):
    task = task_of(kind)
    assert task.score.name == "squared-error"
    quality = task.quality(task.workload.uniform(3))
    truth, found = (outputs_of(task, bits).double().reshape(SAMPLES, -1) for bits in (32, 3))
    variance = (truth - truth.mean(dim=0)).square().sum() / SAMPLES
    errors = (found - truth).square().sum(dim=1) / variance
    assert quality.score == pytest.approx(float(errors.mean()), rel=1e-9)
    assert quality.per_sample["squared-error"] == pytest.approx(errors.numpy(), rel=1e-5)
    assert any("squared error" in remark for remark in scoring_remarks(task.evaluator.scoring, splits_of(kind)))
    # Its proxy is measured by the same, or it would be zero for a network of one output.
    assert (task.predicted_loss[:, 0] > 0).all()


def test_a_function_of_the_user():
    def furthest(outputs, float_outputs):
        return (outputs - float_outputs).abs().amax(dim=1)

    task = task_of(Classes, score=furthest)
    assert task.score.name == "furthest" and not task.score.higher_is_better
    found = (outputs_of(task, 3) - outputs_of(task, 32)).abs().amax(dim=1)
    quality = task.quality(task.workload.uniform(3))
    assert quality.score == pytest.approx(float(found.mean()))
    assert quality.per_sample["furthest"] == pytest.approx(found.numpy())
    furthest.higher_is_better = True
    assert task_of(Classes, score=furthest).score.higher_is_better
    mean = task_of(Classes, score=lambda outputs, float_outputs: (outputs - float_outputs).square().mean())
    assert mean.quality(mean.workload.uniform(3)).score > 0


def test_functions_that_cannot_be_used():
    with pytest.raises(InputError, match="the score function 'broken' failed on outputs float32 of shape"):

        def broken(outputs, float_outputs):
            raise KeyError("boxes")

        task_of(Classes, score=broken)
    with pytest.raises(DataError, match=r"returned float\d\d of shape \(2, 3\) for 2 samples"):
        task_of(Classes, score=lambda outputs, float_outputs: outputs)
    with pytest.raises(InputError, match="score is 3; give a name, or a function"):
        task_of(Classes, score=3)
    with pytest.raises(UnknownNameError, match=r"divergnce.*divergence"):
        task_of(Classes, score="divergnce")


LABELS = torch.arange(SAMPLES) % 3


def test_labels_add_metrics_to_the_report():
    task = task_of(Classes, LABELS, metrics=["macro-f1"])
    quality = task.quality(task.workload.uniform(4))
    answers = outputs_of(task, 4).argmax(dim=1)
    labels = task.evaluator.samples("search").labels
    assert quality.scored_by == DIVERGENCE
    assert list(quality.metrics) == ["macro-f1", "top-1"]
    assert quality.metrics["top-1"] == quality.accuracy == float((answers == labels).double().mean())
    assert quality.correct == int((answers == labels).sum())
    assert quality.loss == pytest.approx(float(nn.functional.cross_entropy(outputs_of(task, 4), labels)))
    assert quality.per_sample["top-1"].tolist() == (answers == labels).float().tolist()
    unlabelled = task.quality(task.workload.uniform(4), "test")
    assert unlabelled.correct is None and not unlabelled.metrics
    with pytest.raises(InputError, match="no accuracy, as its samples have no class labels"):
        _ = unlabelled.accuracy


@pytest.mark.parametrize(
    ("kind", "labels", "metric"),
    [
        (Classes, LABELS, "top-1"),
        (Pixels, torch.arange(SAMPLES * 25).reshape(SAMPLES, 5, 5) % 4, "mean-iou"),
        (Tokens, torch.arange(SAMPLES * 7).reshape(SAMPLES, 7) % 11, "perplexity"),
        (Values, torch.linspace(-1, 1, SAMPLES), "mae"),
    ],
)
def test_the_usual_metric_of_each_form_of_labels(kind, labels, metric):
    task = task_of(kind, labels, score="metric")
    quality = task.quality(task.workload.uniform(4))
    assert task.score.name == metric and quality.score == quality.metrics[metric]
    assert (quality.loss is None) is (kind is Values)
    # Whatever is optimised, the better one is first.
    better, worse = sorted((task.quality(task.workload.uniform(bits)) for bits in (2, 8)), key=lambda q: q.order)
    assert (better.score >= worse.score) is task.score.higher_is_better


def test_the_loss_can_be_optimised():
    task = task_of(Classes, LABELS, score="loss")
    quality = task.quality(task.workload.uniform(4))
    assert task.score == LOSS and quality.score == quality.loss and not quality.scored_by.higher_is_better
    assert quality.per_sample["loss"].mean() == pytest.approx(quality.loss, rel=1e-5)
    assert task.reference_score == task.float_quality.loss


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"score": "metric"}, DataError, "'metric' needs labels"),
        ({"score": "macro-f1"}, DataError, "'macro-f1' needs labels"),
        ({"score": "loss", "test": LABELS}, DataError, "'loss' needs labels, and the search samples have none"),
        ({"metrics": ["top-1"]}, InputError, "give labels"),
        ({"search": LABELS.float(), "score": "loss"}, DataError, r"their own shape.*\(2, 3\)"),
        ({"search": LABELS, "score": "mae"}, DataError, r"their own shape"),
        ({"search": torch.zeros(SAMPLES, 3).long()}, DataError, "one-hot"),
        ({"search": LABELS, "metrics": ["nothing"]}, UnknownNameError, "nothing"),
    ],
)
def test_scores_that_labels_do_not_allow(options, error, message):
    with pytest.raises(error, match=message):
        task_of(Classes, **options)


def test_sigmoids_of_one_output_are_told_what_fits():
    with pytest.raises(DataError, match=r"\(-x, x\) for one sigmoid, or give float labels"):
        task_of(Values, torch.arange(SAMPLES) % 2)


def test_values_have_no_cross_entropy():
    with pytest.raises(DataError, match="the score 'loss' is the cross-entropy of class numbers"):
        task_of(Values, torch.linspace(0, 1, SAMPLES), score="loss")
    task = task_of(Values, torch.linspace(0, 1, SAMPLES))
    with pytest.raises(InputError, match="is about class probabilities"):
        task.evaluator.sensitivity("fisher", task.precisions)


@pytest.mark.parametrize("kind", [Classes, Values, Pixels])
def test_float_outputs_that_are_too_large_to_keep_change_nothing(kind, monkeypatch):
    kept = task_of(kind)
    monkeypatch.setattr(float_outputs, "KEPT_MIB", 0)
    again = task_of(kind)
    assert again.evaluator.float_outputs("search").batches is None
    for bits in (3, 32):
        expected, found = (task.quality(task.workload.uniform(bits)) for task in (kept, again))
        assert found.score == pytest.approx(expected.score, rel=1e-12)
        (name,) = expected.per_sample
        assert found.per_sample[name] == pytest.approx(expected.per_sample[name])


@pytest.mark.parametrize("kind", [Classes, Values, Pixels, Tokens])
@pytest.mark.parametrize("split", ["search", "test"])
def test_the_float_network_runs_once_for_its_outputs_and_its_quality(kind, split, monkeypatch, tmp_path):
    monkeypatch.setenv("AMED_CACHE_DIR", str(tmp_path))
    task = task_of(kind)
    network, calls = task.evaluator.network, []
    run = network._run_module
    monkeypatch.setattr(network, "_run_module", lambda *given: calls.append(len(given[0])) or run(*given))
    in_float = task.quality(task.workload.uniform(32), split)
    assert sum(calls[1:]) == SAMPLES  # the first run of a batch tells how large the outputs are
    (values,) = in_float.per_sample.values()
    assert in_float.score == pytest.approx(0, abs=1e-9) and (values <= 1e-6).all()
    calls.clear()
    task.quality(task.workload.uniform(32), split)
    assert calls == []


def test_many_at_once_are_what_each_is_alone():
    task = task_of(Classes, LABELS)
    allocations = [task.workload.uniform(bits) for bits in (8, 2, 3)]
    together = task.evaluator.evaluate_many(allocations)
    assert together == [task.quality(allocation) for allocation in allocations]
    assert not together[0].per_sample


def test_search_and_test_samples_may_be_left_out_and_that_is_said(caplog):
    network, inputs = drawn(Classes()), inputs_of(Classes, 0, 64)
    task = amed_env.make_task(network=network, calibration=inputs, recipe="nearest", threads=1)
    assert task.quality(task.workload.uniform(2)).samples == 64
    remarks = [record.getMessage() for record in caplog.records if record.name == "amed_env.tasks.make"]
    assert any("calibration samples score allocations too" in remark for remark in remarks)
    assert any("64 samples score allocations" in remark for remark in remarks)
    assert any("nothing unseen confirms" in remark for remark in remarks)
    with pytest.raises(DataError, match="was given no test samples"):
        task.quality(task.workload.uniform(2), "test")


def test_the_loss_of_zeta_without_labels_is_against_the_float_network():
    task = task_of(Classes)
    truth, found = (torch.softmax(outputs_of(task, bits).double(), dim=1) for bits in (32, 3))
    quality = task.quality(task.workload.uniform(3))
    assert quality.soft_loss == quality.cross_entropy == pytest.approx(float(-(truth * found.log()).sum(dim=1).mean()))
    labelled = task_of(Classes, LABELS).quality(task.workload.uniform(3))
    assert labelled.soft_loss is None and labelled.cross_entropy == labelled.loss
    values = task_of(Values).quality(task.workload.uniform(3))
    assert values.cross_entropy == values.score


def test_a_network_that_returns_nan_is_named_whatever_the_score():
    task = task_of(Values)
    task.evaluator.samples("search").inputs[3] = 3e38
    with pytest.raises(NonFiniteError, match="on the search split"):
        task.quality(task.workload.uniform(32))


@pytest.mark.parametrize(
    ("kind", "score"), [(Classes, "divergence"), (Values, "divergence"), (Classes, "loss"), (Classes, "top-1")]
)
def test_the_standard_error_of_a_score_is_that_of_a_mean(kind, score):
    labels = None if kind is Values else LABELS
    task = task_of(kind, labels, score=score)
    quality = task.quality(task.workload.uniform(2))
    values = quality.per_sample[quality.scored_by.name]
    assert quality.standard_error == pytest.approx(values.std(ddof=1, dtype=np.float64) / math.sqrt(SAMPLES), rel=1e-4)
    assert Quality.from_json(quality.to_json()).standard_error == quality.standard_error
    (many,) = task.evaluator.evaluate_many([task.workload.uniform(2)])
    assert many.standard_error == quality.standard_error  # which keeps no values of single samples


def test_a_score_that_is_no_mean_has_no_standard_error():
    task = task_of(Classes, LABELS, score="macro-f1")
    assert task.quality(task.workload.uniform(2)).standard_error is None


@pytest.mark.parametrize("labels", [None, LABELS])
def test_qualities_come_back_from_json(labels):
    task = task_of(Classes, labels)
    quality = task.quality(task.workload.uniform(3))
    assert Quality.from_json(quality.to_json()) == quality
    assert Quality.from_json({"correct": 3, "samples": 4, "loss": 0.5, "accuracy": 0.75}) == Quality(3, 4, 0.5)
    assert Quality(3, 4, 0.5).scored_by == TOP_1 and Quality(3, 4, 0.5).score == 0.75


def test_qualities_of_two_splits_together():
    task = task_of(Classes, LABELS, LABELS)
    allocation = task.workload.uniform(4)
    first, second = task.quality(allocation), task.quality(allocation, "test")
    both = first + second
    assert both.samples == 2 * SAMPLES and both.correct == first.correct + second.correct
    assert both.score == pytest.approx((first.score + second.score) / 2)
    assert both.metrics == {"top-1": both.correct / both.samples}
    scored = task_of(Classes, LABELS, LABELS, score="macro-f1")
    with pytest.raises(InputError, match="macro-f1 of two sets does not follow"):
        _ = scored.quality(allocation) + scored.quality(allocation, "test")


def test_the_reward_is_the_log_ratio_to_8_bit():
    task = task_of(Classes)
    reference, found = (task.quality(task.workload.uniform(bits)).score for bits in (8, 3))
    assert task.reference_score == reference
    expected = math.log((1 - math.exp(-reference) + 0.01) / (1 - math.exp(-found) + 0.01))
    assert task.gain(task.quality(task.workload.uniform(3))) == pytest.approx(expected)
