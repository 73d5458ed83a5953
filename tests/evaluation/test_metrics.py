"""Shipped metrics against their definitions, spelled out; and how metrics of others are found."""

import math
import pickle
from collections import Counter

import pytest
import torch

import amed_env
from amed_env.errors import DataError, InputError, UnknownNameError
from amed_env.evaluation.metrics.registry import METRICS, find_metric, find_metrics, metric_names


def measured(name, outputs, targets, batch=7, classes=None):
    metric = find_metric(name, classes)
    instance = metric.factory()
    for part in zip(outputs.split(batch), targets.split(batch), strict=True):
        metric.updated(instance, *part)
    return metric.value(instance)


def drawn(samples, classes, seed=0, shape=()):
    """Class scores (N, classes, …) that are right more often than not, and classes (N, …)."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, (samples, *shape), generator=generator)
    outputs = torch.randn(samples, classes, *shape, generator=generator)
    return outputs + 1.5 * torch.nn.functional.one_hot(targets, classes).movedim(-1, 1), targets


def pairs_of(outputs, targets):
    """(answer, truth) of every sample or pixel, as plain numbers."""
    return list(zip(outputs.argmax(dim=1).flatten().tolist(), targets.flatten().tolist(), strict=True))


def f1_by_definition(pairs):
    values = []
    for one in sorted({number for pair in pairs for number in pair}):
        true_positive = sum(answer == truth == one for answer, truth in pairs)
        answered = sum(answer == one for answer, _ in pairs)
        true = sum(truth == one for _, truth in pairs)
        precision = true_positive / answered if answered else 0.0
        recall = true_positive / true if true else 0.0
        values.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return sum(values) / len(values)


def iou_by_definition(pairs):
    values = []
    for one in sorted({number for pair in pairs for number in pair}):
        both = sum(answer == one and truth == one for answer, truth in pairs)
        either = sum(answer == one or truth == one for answer, truth in pairs)
        values.append(both / either)
    return sum(values) / len(values)


def correlation_by_definition(pairs):
    """Gorodkin's correlation as covariances over one-hot columns."""
    classes = range(1 + max(number for pair in pairs for number in pair))

    def covariance(first, second):
        total = 0.0
        for one in classes:
            mean_first = sum(pair[first] == one for pair in pairs) / len(pairs)
            mean_second = sum(pair[second] == one for pair in pairs) / len(pairs)
            total += sum(((pair[first] == one) - mean_first) * ((pair[second] == one) - mean_second) for pair in pairs)
        return total / len(pairs)

    spread = covariance(0, 0) * covariance(1, 1)
    return covariance(0, 1) / math.sqrt(spread) if spread > 0 else 0.0


@pytest.mark.parametrize("shape", [(), (3, 2)], ids=["samples", "pixels"])
@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("top-1", lambda pairs: sum(answer == truth for answer, truth in pairs) / len(pairs)),
        ("macro-f1", f1_by_definition),
        ("mean-iou", iou_by_definition),
        ("mcc", correlation_by_definition),
    ],
)
def test_metrics_of_classes_are_their_definitions(name, definition, shape):
    outputs, targets = drawn(40, 5, shape=shape)
    assert measured(name, outputs, targets) == pytest.approx(definition(pairs_of(outputs, targets)), rel=1e-12)


def test_values_worked_out_by_hand():
    """Four samples of classes 0, 0, 1, 2 that are answered 0, 1, 1, 1."""
    answers, targets = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 2])
    outputs = torch.nn.functional.one_hot(answers, 4).float()
    assert measured("top-1", outputs, targets) == 0.5
    # F1 of class 0: 2/3; of class 1: 1 right of 3 answered, 1 true, 2·1/4; of class 2: 0. Class 3 does not occur.
    assert measured("macro-f1", outputs, targets) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert measured("mean-iou", outputs, targets) == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)
    # Covariance: 2 right x 4 samples - (1 x 2 + 3 x 1) = 3; spreads 16 - 10 = 6 and 16 - 6 = 10.
    assert measured("mcc", outputs, targets) == pytest.approx(3 / math.sqrt(60))


def test_a_constant_answer_has_no_correlation():
    outputs = torch.nn.functional.one_hot(torch.zeros(6, dtype=torch.int64), 3).float()
    assert measured("mcc", outputs, torch.arange(6) % 3) == 0.0


def test_top_5():
    outputs, targets = drawn(60, 12)
    ranks = [int((row > row[truth]).sum()) for row, truth in zip(outputs, targets.tolist(), strict=True)]
    assert measured("top-5", outputs, targets) == sum(rank < 5 for rank in ranks) / 60
    few, of_few = drawn(10, 3)
    assert measured("top-5", few, of_few) == 1.0


@pytest.mark.parametrize("last", [True, False], ids=["(N, T, classes)", "(N, classes, T)"])
def test_perplexity_of_tokens(last):
    outputs, targets = drawn(9, 6, shape=(4,))
    targets[2, 1:] = targets[5, 0] = -100
    total, count = 0.0, 0
    for sample in range(9):
        for token in range(4):
            truth = int(targets[sample, token])
            if truth >= 0:
                scores = [float(value) for value in outputs[sample, :, token]]
                total += math.log(sum(map(math.exp, scores))) - scores[truth]
                count += 1
    given = outputs.movedim(1, -1) if last else outputs
    assert measured("perplexity", given, targets) == pytest.approx(math.exp(total / count), rel=1e-6)


def test_metrics_of_values():
    generator = torch.Generator().manual_seed(1)
    truth = 1e4 + torch.randn(50, 2, generator=generator)
    outputs = truth + 0.3 * torch.randn(50, 2, generator=generator)
    errors = (outputs.double() - truth.double()).abs()
    assert measured("mae", outputs, truth) == pytest.approx(float(errors.mean()), rel=1e-9)
    columns = []
    for column in range(2):
        wanted = truth[:, column].double()
        columns.append(1 - float(errors[:, column].square().sum() / (wanted - wanted.mean()).square().sum()))
    assert measured("r2", outputs, truth) == pytest.approx(sum(columns) / 2, rel=1e-6)
    assert measured("r2", outputs[:, :1], truth[:, 0]) == pytest.approx(columns[0], rel=1e-6)
    assert (
        measured("r2", torch.ones(5, 1), torch.ones(5)) == 1.0 and measured("r2", torch.zeros(5), torch.ones(5)) == 0.0
    )


@pytest.mark.parametrize("name", ["top-1", "top-5", "mae"])
def test_values_of_samples_average_to_the_metric(name):
    outputs, targets = drawn(30, 8)
    if name == "mae":
        outputs, targets = outputs, outputs + 0.1 * torch.arange(8.0)
    metric = find_metric(name)
    instance = metric.factory()
    values = metric.updated(instance, outputs, targets)
    assert values.shape == (30,) and float(values.double().mean()) == pytest.approx(metric.value(instance))


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "message"),
    [
        ("top-1", torch.zeros(3, 4), torch.zeros(3), r"labels are float32 of shape \(3,\)"),
        ("top-1", torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), r"one score for all classes.*\(-x, x\)"),
        ("top-1", torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.int64), "one-hot labels take .argmax"),
        ("mean-iou", torch.zeros(3, 4, 8, 8), torch.zeros(3, 4, 4, dtype=torch.int64), r"masks \(N, H, W\)"),
        ("mae", torch.zeros(3, 4), torch.zeros(3), r"their own shape.*\(3, 4\).*\.long\(\)"),
    ],
)
def test_what_does_not_fit_is_told_with_what_does(name, outputs, targets, message):
    with pytest.raises(DataError, match=message):
        measured(name, outputs, targets)


class Halves:
    """A metric of a user: the share of outputs above a half."""

    higher_is_better = False

    def __init__(self):
        self.values = []

    def update(self, outputs, targets):
        self.values.append((outputs > 0.5).float().mean())

    def compute(self):
        return sum(self.values) / len(self.values)


@pytest.fixture
def registered():
    amed_env.register_metric("halves")(Halves)
    yield
    METRICS.unregister("halves")


def test_a_metric_of_a_user(registered):
    assert "halves" in metric_names()
    found = find_metric("halves")
    assert not found.score.higher_is_better and found.score.name == "halves" and found.factory is Halves
    assert measured("halves", torch.tensor([[0.2, 0.9]]), torch.zeros(1)) == 0.5
    assert find_metric(Halves).score.name == "Halves"
    with pytest.raises(InputError, match="is taken"):
        amed_env.register_metric("top-1")(Halves)


def test_metrics_that_cannot_be_used(registered):
    with pytest.raises(UnknownNameError, match=r"halfs.*halves"):
        find_metric("halfs")
    with pytest.raises(InputError, match="has no update and no compute"):
        find_metric(object)
    without = type("Without", (Halves,), {"higher_is_better": None})
    with pytest.raises(InputError, match="does not say whether more of it is better"):
        find_metric(without)

    class Broken(Halves):
        def update(self, outputs, targets):
            raise ValueError("only two classes")

        def compute(self):
            return math.nan

    metric = find_metric(Broken)
    with pytest.raises(DataError, match=r"outputs float32 of shape \(2, 3\) with labels float32 .*: only two classes"):
        metric.updated(metric.factory(), torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(InputError, match="is NaN"):
        metric.value(metric.factory())


def test_each_metric_is_measured_once():
    names = [metric.score.name for metric in find_metrics(["top-1", "macro-f1", "top-1"])]
    assert names == ["top-1", "macro-f1"]


def test_metrics_of_torchmetrics_by_name():
    pytest.importorskip("torchmetrics")
    outputs, targets = drawn(40, 5)
    answers = Counter(pairs_of(outputs, targets))
    agreed = sum(count for (answer, truth), count in answers.items() if answer == truth) / 40
    expected = (
        sum(
            sum(count for (answer, _), count in answers.items() if answer == one)
            * sum(count for (_, truth), count in answers.items() if truth == one)
            for one in range(5)
        )
        / 40**2
    )
    kappa = (agreed - expected) / (1 - expected)
    for name in ("torchmetrics:CohenKappa", "torchmetrics:classification.MulticlassCohenKappa"):
        found = find_metric(name, classes=5)
        assert found.score.higher_is_better
        assert measured(pickle.loads(pickle.dumps(found)), outputs, targets) == pytest.approx(kappa, abs=1e-6)
    assert not find_metric("torchmetrics:MeanAbsoluteError").score.higher_is_better
    with pytest.raises(InputError, match="no metric 'Nothing'"):
        find_metric("torchmetrics:Nothing")
    with pytest.raises(InputError, match=r"'torchmetrics:CohenKappa' cannot be made"):
        find_metric("torchmetrics:CohenKappa")


def test_without_torchmetrics_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics", None)
    with pytest.raises(InputError, match=r"install amed-env\[metrics\]"):
        find_metric("torchmetrics:CohenKappa")
