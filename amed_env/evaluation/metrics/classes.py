"""Metrics of class scores: one class a sample, a pixel or a token."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from amed_env.evaluation.outputs import flat_classes
from amed_env.problem.score import TOP_1


class Top1:
    """Share of samples (pixels, tokens) whose true class has the highest score."""

    title, unit, scale, higher_is_better = TOP_1.title, TOP_1.unit, TOP_1.scale, TOP_1.higher_is_better
    _best_of = 1

    def __init__(self) -> None:
        self.correct = self.count = 0

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor | None:
        """See `Metric.update`."""
        scores, classes = flat_classes(outputs, targets)
        if self._best_of == 1:  # of equal scores the first class counts, as everywhere else in the package
            right = scores.argmax(dim=1) == classes
        else:
            best = scores.topk(min(self._best_of, scores.shape[1]), dim=1).indices
            right = (best == classes[:, None]).any(dim=1)
        self.correct += int(right.sum())
        self.count += len(classes)
        return right.float() if targets.dim() == 1 else None

    def compute(self) -> float:
        """See `Metric.compute`."""
        return self.correct / self.count


class Top5(Top1):
    """Share of samples whose true class is among the five of the highest scores."""

    title = "top-5 accuracy"
    _best_of = 5


class _Counts:
    """What was predicted how often, and how often that was right, by class: all that the metrics below need."""

    higher_is_better = True
    unit, scale = "%", "fraction"

    def __init__(self) -> None:
        self.right, self.predicted, self.true = torch.zeros(3, 0, dtype=torch.int64)

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        """See `Metric.update`."""
        scores, classes = flat_classes(outputs, targets)
        count, answers = scores.shape[1], scores.argmax(dim=1)
        if not len(self.true):
            self.right, self.predicted, self.true = torch.zeros(3, count, dtype=torch.int64)
        self.right += torch.bincount(classes[answers == classes], minlength=count)
        self.predicted += torch.bincount(answers, minlength=count)
        self.true += torch.bincount(classes, minlength=count)

    def _over_classes(self, numerator: torch.Tensor, denominator: torch.Tensor) -> float:
        """The mean of ratios over the classes that occur, among the labels or the answers."""
        occurring = (self.true + self.predicted) > 0
        return float((numerator[occurring].double() / denominator[occurring]).mean())


class MacroF1(_Counts):
    """The F1 score of each class, averaged over the classes that occur among labels or answers."""

    title = "macro F1"

    def compute(self) -> float:
        """See `Metric.compute`."""
        return self._over_classes(2 * self.right, self.predicted + self.true)


class MeanIntersectionOverUnion(_Counts):
    """Intersection over union of each class over all pixels, averaged over the classes that occur."""

    title = "mean IoU"

    def compute(self) -> float:
        """See `Metric.compute`."""
        return self._over_classes(self.right, self.predicted + self.true - self.right)


class MatthewsCorrelation(_Counts):
    """Matthews' correlation coefficient for any number of classes (Gorodkin 2004); 0 where it is not defined."""

    title, unit = "Matthews correlation", ""

    def compute(self) -> float:
        """See `Metric.compute`."""
        true, predicted = self.true.double(), self.predicted.double()
        samples, right = float(true.sum()), float(self.right.sum())
        covariance = right * samples - float(true @ predicted)
        spread = (samples**2 - float(predicted @ predicted)) * (samples**2 - float(true @ true))
        return covariance / spread**0.5 if spread > 0 else 0.0


class Perplexity:
    """exp of the mean cross-entropy of the labels: of tokens, pixels or samples."""

    title, higher_is_better = "perplexity", False

    def __init__(self) -> None:
        self.loss, self.count = 0.0, 0

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        """See `Metric.update`."""
        scores, classes = flat_classes(outputs, targets)
        self.loss += float(F.cross_entropy(scores.double(), classes, reduction="sum"))
        self.count += len(classes)

    def compute(self) -> float:
        """See `Metric.compute`."""
        return float(torch.tensor(self.loss / self.count, dtype=torch.float64).exp())
