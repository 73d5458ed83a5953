"""What is measured of a network's outputs: the score, the loss and the metrics, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from amed_env.datasets.samples import IGNORED_LABEL
from amed_env.errors import DataError, InputError, NonFiniteError, UnknownNameError
from amed_env.evaluation.comparisons import (
    Comparison,
    KullbackLeibler,
    OwnComparison,
    SquaredError,
    are_of_tokens,
    counted,
)
from amed_env.evaluation.metrics.registry import TORCHMETRICS_PREFIX, NamedMetric, find_metrics, metric_names
from amed_env.evaluation.outputs import class_axis, flat_classes
from amed_env.evaluation.quality import Quality
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.score import LOSS, TOP_1, Score
from amed_env.support.registry import import_object
from amed_env.support.text import tensor_text

ScoreSpec = str | Callable[[torch.Tensor, torch.Tensor], Any] | None
"""What a user calls a score: see `make_task`; None is `divergence`."""
SCORE_NAMES = ("divergence", "kl", "squared-error", "loss", "metric")
"""Scores that are no metrics. `divergence` is one of the next two, by the form of the outputs."""


@dataclass(frozen=True)
class Scoring:
    """What is measured.

    Attributes:
        score: What a search optimises.
        metrics: What is measured of labelled samples besides, the score among them if it is a metric.
        comparison: What compares with the float network, if the score does.
        divergence: What would, by the form of the outputs: the proxies' measure, whatever the score is.
        class_labels: Whether labels are class numbers, which give a cross-entropy.
    """

    score: Score
    metrics: tuple[NamedMetric, ...] = ()
    comparison: Comparison | None = None
    divergence: Comparison = field(default_factory=lambda: KullbackLeibler(1))
    class_labels: bool = True

    @property
    def needs_labels(self) -> bool:
        """Whether samples without labels have no score."""
        return self.comparison is None


def class_scoring() -> Scoring:
    """Top-1 accuracy of class numbers (N,), as it is measured in training."""
    return Scoring(TOP_1, find_metrics([TOP_1.name]))


def find_scoring(
    score: ScoreSpec, metrics: Sequence[Any] | None, outputs: torch.Tensor, labels: torch.Tensor | None, tokens: bool
) -> Scoring:
    """What is measured, from what a user asks for and from the form of outputs and labels.

    Args:
        score: The score; see `make_task`.
        metrics: Metrics by name or class; None takes the usual one for such labels.
        outputs: What the network returns for a few samples, (N, …).
        labels: Labels of as many samples; None where no samples have any.
        tokens: Whether the network reads numbers of tokens, whose class scores have the classes last.

    Raises:
        InputError: If a metric or a score does not fit, or needs labels and there are none.
        DataError: If labels do not fit the outputs.
        UnknownNameError: If there is no such score or metric.
    """
    chosen = _found(score)
    if labels is None and metrics:
        raise InputError("metrics are measured on labelled samples; give labels with the search or the test samples.")
    class_labels = labels is not None and not labels.is_floating_point()
    axis = _class_axis(outputs, labels, tokens)
    found: tuple[NamedMetric, ...] = ()
    if labels is not None:
        if class_labels:
            flat_classes(outputs, labels)  # says what does not fit
        specs = list(metrics) if metrics else _usual_metrics(outputs, labels)
        if chosen is not None and chosen not in SCORE_NAMES and not _is_function(chosen):
            specs.insert(0, chosen)
        if class_labels and labels.dim() == 1:
            specs.append(TOP_1.name)  # what `Quality.correct` counts
        found = find_metrics(specs, None if axis is None else outputs.shape[axis])
        for metric in found:  # one that does not fit is found before a search
            metric.updated(metric.factory(), outputs, labels)
    divergence: Comparison = SquaredError() if axis is None else KullbackLeibler(axis)
    if chosen == "kl":
        divergence = KullbackLeibler((outputs.dim() - 1 if tokens else 1) if axis is None else axis)
    elif chosen == "squared-error":
        divergence = SquaredError()
    comparison: Comparison | None = None
    if chosen is None or chosen in ("divergence", "kl", "squared-error"):
        comparison = divergence
    elif _is_function(chosen):
        comparison = OwnComparison(chosen)
        comparison.values(outputs, outputs)  # one that fails is found before a search
    measured = _labelled_score(chosen, found, labels, class_labels) if comparison is None else comparison.score
    return Scoring(measured, found, comparison, divergence, class_labels)


def _found(score: ScoreSpec) -> Any:
    """A score as it was given, or the object of an import path.

    Raises:
        InputError: If it is none, or cannot be imported.
        UnknownNameError: If there is no score or metric of that name.
    """
    if not isinstance(score, str):
        if score is not None and not callable(score):
            raise InputError(f"score is {score!r}; give a name, or a function of (outputs, float outputs).")
        return score
    known = (*SCORE_NAMES, *metric_names())
    if score in known or score.startswith(TORCHMETRICS_PREFIX):
        return score
    if ":" in score:
        return import_object(score, "score function")
    raise UnknownNameError("score", score, known)


def _is_function(score: Any) -> bool:
    """Whether a score compares outputs by itself; a class is a metric."""
    return score is not None and not isinstance(score, str | type)


def _labelled_score(score: Any, found: Sequence[NamedMetric], labels: torch.Tensor | None, class_labels: bool) -> Score:
    """The score of a name that needs labels."""
    if labels is None:
        raise DataError(
            f"the score {score!r} needs labels, and the samples have none; give labels, or take the score 'divergence'."
        )
    if score != "loss":
        return found[0].score
    if not class_labels:
        raise DataError(
            f"the score 'loss' is the cross-entropy of class numbers, but the labels are {tensor_text(labels)}; take "
            "the score 'metric' or 'divergence'."
        )
    return LOSS


def _class_axis(outputs: torch.Tensor, labels: torch.Tensor | None, tokens: bool) -> int | None:
    """Axis of the classes, by the labels if there are any; None for outputs that are no class scores."""
    if labels is not None:
        fitting = class_axis(tuple(outputs.shape), tuple(labels.shape))
        return None if labels.is_floating_point() else fitting
    if tokens and outputs.dim() > 2:
        return outputs.dim() - 1
    # Without labels, (N, 21, 64, 64) may be classes of pixels or any other map: squares are right for both.
    return 1 if outputs.dim() == 2 and outputs.shape[1] > 1 else None


def _usual_metrics(outputs: torch.Tensor, labels: torch.Tensor) -> list[Any]:
    """The metric that is usual for such labels."""
    if labels.is_floating_point():
        return ["mae"]
    if labels.dim() == 1:
        return [TOP_1.name]
    if class_axis(tuple(outputs.shape), tuple(labels.shape)) != 1:
        return ["perplexity"]
    return ["mean-iou"] if labels.dim() > 2 else [TOP_1.name]


class Tally:
    """Takes in the outputs of samples under one allocation, and says their quality.

    Args:
        scoring: What is measured.
        keep: Whether values of single samples are kept.
    """

    def __init__(self, scoring: Scoring, keep: bool = False) -> None:
        self.scoring, self.keep = scoring, keep
        self.samples, self.labelled, self.counted = 0, 0, 0
        self.loss, self.compared, self.entropy = 0.0, 0.0, 0.0
        self._metrics = [metric.factory() for metric in scoring.metrics]
        self._values: dict[str, list[torch.Tensor]] = {}
        self._squares: float | None = None  # sum of the squared scores of samples, where it is a mean over them
        self._correct: int | None = None
        self._not_a_number = False

    def add(
        self,
        outputs: torch.Tensor,
        labels: torch.Tensor | None,
        float_outputs: torch.Tensor | None = None,
        counting: torch.Tensor | None = None,
    ) -> None:
        """Take in a batch.

        Args:
            outputs: (N, …).
            labels: (N, …), or None for samples without.
            float_outputs: What the float network returns for them, where the score compares with it.
            counting: bool (N, T), which tokens count, for sequences with an attention mask; see `Samples.counting`.
        """
        outputs, scoring = counted(outputs.cpu(), counting), self.scoring
        self.samples += len(outputs)
        self._not_a_number |= bool(outputs.isnan().any())
        if scoring.comparison is not None:
            assert float_outputs is not None
            values = scoring.comparison.values(outputs, float_outputs, counting)
            self.compared += float(values.sum())
            self._keep(scoring.score.name, values)
            if labels is None and isinstance(scoring.comparison, KullbackLeibler):
                self.entropy += float(scoring.comparison.entropies(float_outputs, counting).sum())
        if labels is not None:
            are_classes = not labels.is_floating_point()
            if are_classes and are_of_tokens(outputs, counting) and labels.dim() == 2:
                assert counting is not None  # it was looked at
                labels = labels.masked_fill(~counting, IGNORED_LABEL)
            self._add_labelled(outputs, labels)

    def _add_labelled(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.labelled += len(outputs)
        if self.scoring.class_labels:
            scores, classes = flat_classes(outputs, labels)
            self.loss += float(F.cross_entropy(scores, classes, reduction="sum"))
            self.counted += len(classes)
            if self.scoring.score == LOSS and labels.dim() == 1:
                self._keep(LOSS.name, F.cross_entropy(scores, classes, reduction="none"))
        for metric, instance in zip(self.scoring.metrics, self._metrics, strict=True):
            values = metric.updated(instance, outputs, labels)
            if values is not None:
                self._keep(metric.score.name, values)
                if metric.score == TOP_1:
                    self._correct = (self._correct or 0) + int(values.sum())

    def _keep(self, name: str, values: torch.Tensor) -> None:
        if name == self.scoring.score.name:
            self._squares = (self._squares or 0.0) + float(values.double().square().sum())
        if self.keep:
            self._values.setdefault(name, []).append(values)

    def quality(self, allocation: BitAllocation, split: str, spread: float = 1.0) -> Quality:
        """The quality of what was taken in.

        Args:
            allocation: For messages.
            split: For messages.
            spread: How much the float outputs vary, for a comparison that is normalised.

        Raises:
            NonFiniteError: If the network returned NaN or infinity.
        """
        scoring, divisor = self.scoring, 1.0
        if scoring.comparison is not None and scoring.comparison.normalised:
            divisor = spread
        loss = self.loss / self.counted if self.labelled and scoring.class_labels else None
        compared = self.compared / self.samples / divisor
        if self._not_a_number or not math.isfinite(compared) or not math.isfinite(loss or 0.0):
            raise NonFiniteError(
                f"the network returns NaN or infinity on the {split} split under {allocation.key()!r}."
            )
        metrics = {}
        if self.labelled:
            pairs = zip(scoring.metrics, self._metrics, strict=True)
            metrics = {metric.score.name: metric.value(instance) for metric, instance in pairs}
        score = compared
        if scoring.comparison is None:
            score = loss if scoring.score == LOSS and loss is not None else metrics[scoring.score.name]
        soft_loss = None
        if not self.labelled and isinstance(scoring.comparison, KullbackLeibler):
            soft_loss = compared + self.entropy / self.samples
        kept, error = self._per_sample(divisor), self._standard_error(score, divisor)
        return Quality(self._correct, self.samples, loss, score, scoring.score, metrics, soft_loss, kept, error)

    def _standard_error(self, score: float, divisor: float) -> float | None:
        if self._squares is None:
            return None
        variance = self._squares / divisor**2 - self.samples * score**2
        return math.sqrt(max(0.0, variance) / max(1, self.samples - 1) / self.samples)

    def _per_sample(self, divisor: float) -> dict[str, npt.NDArray[np.float32]]:
        kept = {name: torch.cat(values).float().numpy() for name, values in self._values.items()}
        if self.scoring.score.name in kept and divisor != 1.0:
            kept[self.scoring.score.name] = kept[self.scoring.score.name] / np.float32(divisor)
        return kept
