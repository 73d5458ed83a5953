"""Quality of a network, and the contract of everything that measures it."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from amed_env.errors import InputError
from amed_env.problem.allocation import BitAllocation, Precision
from amed_env.problem.score import TOP_1, Score, score_named
from amed_env.problem.ties import Ties
from amed_env.problem.workload import Workload

if TYPE_CHECKING:
    from amed_env.evaluation.finalists import TrainedWeights
    from amed_env.evaluation.post_training import PostTrainingEvaluator
    from amed_env.evaluation.table_file import QualityTable

Split = Literal["search", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
GradientMeasure = Literal["squared-error", "fisher", "hessian"]
"""Sensitivities besides the divergence of `predicted_loss`; see `evaluation.sensitivities`."""


Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do in all."""


@dataclass(frozen=True)
class Quality:
    """How well a network does on a set of samples.

    `Quality(correct, samples, loss)` is one whose score is top-1 accuracy.

    Attributes:
        correct: Samples whose true class has the highest score; None where samples have no class each.
        samples: Samples in all.
        loss: Mean cross-entropy of the labels in nats; None without labels that are classes.
        score: What a search optimises.
        scored_by: What that number is, and whether more or less of it is better.
        metrics: Metric to its value; empty without labels.
        soft_loss: Mean cross-entropy in nats against the float network's class probabilities, where they were compared.
        per_sample: Metric or score to its value for every sample, float32 (samples,), where it is a mean over samples;
            kept by single evaluations, for paired comparisons, and in no file.
        standard_error: Of the score, as the mean of a value a sample; None where it is no such mean.
    """

    correct: int | None
    samples: int
    loss: float | None
    score: float = math.nan
    scored_by: Score = TOP_1
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    soft_loss: float | None = None
    per_sample: Mapping[str, npt.NDArray[np.float32]] = field(
        default_factory=dict, hash=False, compare=False, repr=False
    )
    standard_error: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.correct is None:
            return
        if not self.metrics:
            object.__setattr__(self, "metrics", {TOP_1.name: self.correct / self.samples})
        if self.scored_by == TOP_1:
            part = self.correct / self.samples
            object.__setattr__(self, "score", part)
            object.__setattr__(self, "standard_error", math.sqrt(part * (1 - part) / max(1, self.samples - 1)))

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy as a fraction.

        Raises:
            InputError: If the samples have no class each.
        """
        if self.correct is None:
            known = ", ".join(self.metrics) or "no metric"
            raise InputError(
                f"this quality has no accuracy, as its samples have no class labels; it has the score "
                f"{self.scored_by.name} and {known}."
            )
        return self.correct / self.samples

    @property
    def cross_entropy(self) -> float:
        """What AMED's ζ takes as loss: that of the labels; without them, that against the float network.

        Where outputs are no class scores it is the score itself, if less of that is better, and its error if not.
        """
        if self.loss is not None:
            return self.loss
        if self.soft_loss is not None:
            return self.soft_loss
        return self.scored_by.error(self.score) if self.scored_by.higher_is_better else self.score

    @property
    def order(self) -> tuple[float, float]:
        """Sorts the better quality first: by score, then by loss."""
        return self.scored_by.order(self.score), 0.0 if self.loss is None else self.loss

    @property
    def lean(self) -> Quality:
        """The same without values of single samples, which a search of many trials has no memory for."""
        return replace(self, per_sample={}) if self.per_sample else self

    def __add__(self, other: Quality) -> Quality:
        """Quality on two disjoint sets together; metrics that are no means over samples are left out.

        Raises:
            InputError: If the score is such a metric.
        """
        samples = self.samples + other.samples

        def mean(mine: float | None, others: float | None) -> float | None:
            if mine is None or others is None:
                return None
            return (mine * self.samples + others * other.samples) / samples

        correct = None if self.correct is None or other.correct is None else self.correct + other.correct
        metrics = {
            name: float(np.concatenate([values, other.per_sample[name]]).mean(dtype=np.float64))
            for name, values in self.per_sample.items()
            if name in other.per_sample and name in self.metrics
        }
        if correct is not None:
            metrics[TOP_1.name] = correct / samples
        score, scored_by = mean(self.score, other.score), self.scored_by
        if scored_by.name in self.metrics:
            score = metrics.get(scored_by.name)
        if score is None:
            raise InputError(
                f"{scored_by.name} of two sets does not follow from that of each; evaluate one split at a time."
            )
        soft_loss = mean(self.soft_loss, other.soft_loss)
        return Quality(correct, samples, mean(self.loss, other.loss), score, scored_by, metrics, soft_loss)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `accuracy` and `correct` are there where the samples have a class each."""
        return {
            "score": self.score,
            "score_name": self.scored_by.name,
            "higher_is_better": self.scored_by.higher_is_better,
            **({} if self.correct is None else {"accuracy": self.accuracy, "correct": self.correct}),
            "samples": self.samples,
            "loss": self.loss,
            **({} if self.soft_loss is None else {"soft_loss": self.soft_loss}),
            **({} if self.standard_error is None else {"standard_error": self.standard_error}),
            "metrics": dict(self.metrics),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Quality:
        """The inverse of `to_json`; what earlier versions wrote, without a score, is scored by top-1 accuracy."""
        correct, samples, loss = document.get("correct"), document["samples"], document["loss"]
        if "score_name" not in document:
            return cls(correct, samples, loss)
        scored_by = score_named(document["score_name"], document["higher_is_better"])
        metrics, soft_loss = dict(document["metrics"]), document.get("soft_loss")
        score, standard_error = document["score"], document.get("standard_error")
        return cls(correct, samples, loss, score, scored_by, metrics, soft_loss, standard_error=standard_error)


class Evaluator(abc.ABC):
    """Measures the quality of bit allocations of one network on fixed samples.

    Attributes:
        workload: The network's layers.
        fingerprint: Text that changes with whatever changes a result but the score: network, samples, recipe.
        score: What its qualities are scored by.
        metrics: What is measured of labelled samples.
        splits: What there are samples of.
        kept_float: Modules with parameters that stay in float, a line each with the reason.
        ties: Which layers of the network are one layer of `workload`, or None if each is one by itself.
        looked_up: Whether an evaluation is a look-up, so that whatever else a trial takes is what takes the time.
        learns: Whether a trial trains the network, so that the same allocation scores differently each time.
        solves_answers: Whether the weights of a search's answer are solved for it; see `solved_weights`.
        on_sensitivities: Called with the measurements done and all of them, while sensitivities of layers or pairs are
            measured.
    """

    workload: Workload
    fingerprint: str
    score: Score = TOP_1
    metrics: tuple[Score, ...] = (TOP_1,)
    splits: tuple[Split, ...] = SPLITS
    kept_float: tuple[str, ...] = ()
    ties: Ties | None = None
    looked_up: bool = False
    learns: bool = False
    solves_answers: bool = False
    on_sensitivities: Progress | None = None

    @abc.abstractmethod
    def evaluate(self, allocation: BitAllocation, split: Split = "search") -> Quality:
        """Quality of an allocation; deterministic.

        Args:
            allocation: A precision for each layer; 32 bits stand for float.
            split: `search` guides a search; `test` is for the final report only.

        Raises:
            AllocationError: If the allocation does not fit the network.
            UnsupportedPrecisionError: If a width cannot be evaluated.
            NonFiniteError: If the network returns NaN or infinity.
        """

    def trial_quality(self, allocation: BitAllocation) -> Quality:
        """Quality of an allocation as a trial of a search; where the evaluator `learns`, it is trained first."""
        return self.evaluate(allocation)

    def weights_at(self, allocation: BitAllocation) -> TrainedWeights | None:
        """What the network uses at an allocation if it was trained during the search; None if it was not."""
        return None

    def solved_weights(self, allocation: BitAllocation) -> TrainedWeights | None:
        """Weights that make up, layer after layer, for what this one allocation loses; None if it cannot be told."""
        return None

    @abc.abstractmethod
    def predicted_loss(self, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """What quantizing one layer alone does to the output, on calibration samples.

        Args:
            precisions: P precisions.

        Returns:
            float64 of shape (layers, P): mean Kullback-Leibler divergence in nats of the class probabilities from those
            of the 8-bit network, in which this one layer is changed; of other outputs their normalised squared error.
        """

    def sensitivity(self, measure: GradientMeasure, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """What every layer loses at every precision alone, by another measure than `predicted_loss`.

        Args:
            measure: Which one.
            precisions: P precisions.

        Returns:
            float64 of shape (layers, P), not negative.

        Raises:
            InputError: If this evaluator cannot measure it.
        """
        raise InputError(f"this task's quality gives no {measure!r} sensitivities; use the proxy 'kl'.")

    def first_losses(self, precisions: Sequence[Precision]) -> npt.NDArray[np.float64] | None:
        """A quick estimate of `predicted_loss`, for the first answer of a search: one pass over few samples.

        It needs nothing that is learned first.

        Returns:
            float64 of shape (layers, P), not negative; None if this evaluator has no quicker one.
        """
        return None

    def first_divergences(
        self, precisions: Sequence[Precision], cells: Iterable[tuple[int, int]]
    ) -> npt.NDArray[np.float64]:
        """What `predicted_loss` measures, on few samples and for some layers and precisions only.

        Args:
            precisions: P precisions.
            cells: Numbers of layers and precisions.

        Returns:
            float64 of shape (layers, P), not negative; 0 where nothing was measured.

        Raises:
            InputError: If this evaluator has no `first_losses` either.
        """
        raise InputError("this task's quality has no first estimates.")

    @property
    def prepares_at_once(self) -> bool:
        """Whether `prepare` has nothing to learn: first answers can wait for it, and are better then."""
        return True

    def pair_divergences(self, precisions: Sequence[Precision], reach: int) -> npt.NDArray[np.float64]:
        """What quantizing two layers does to the output beyond the sum of both alone, on calibration samples.

        Args:
            precisions: P precisions.
            reach: Pairs further apart than so many layers are left at 0.

        Returns:
            float64 of shape (layers, P, layers, P), symmetric, in nats; 0 within a layer.

        Raises:
            InputError: If this evaluator cannot measure it.
        """
        raise InputError("this task's quality gives no divergences of pairs of layers.")

    @abc.abstractmethod
    def weight_statistics(self) -> npt.NDArray[np.float64]:
        """Per layer the largest magnitude over the standard deviation of its weights: float64 of shape (layers,)."""

    def prepare(
        self,
        progress: Progress | None = None,
        seconds: float | None = None,
        precisions: Iterable[Precision] | None = None,
    ) -> None:
        """Do what an evaluation needs and takes long, once; a second call does nothing.

        Args:
            progress: Called with the steps done and all steps, if there is something to do.
            seconds: About how long it may take, where less time gives a worse result instead of none; None for as long
                as it takes.
            precisions: What will be evaluated, so that no time goes into anything else; None is anything.
        """
        return

    def complete_table(self) -> QualityTable | None:
        """The quality of every allocation, if it is known without any evaluation."""
        return None

    def with_more_samples(self, *, tuned: bool = False) -> Evaluator | None:
        """This evaluator with all samples but those of calibration and test in place of its search samples.

        Args:
            tuned: Whether it is for networks that were trained on the training samples, which are then left out.

        Returns:
            None if there are no more samples than those of the search, as of tables.
        """
        return None

    def network_evaluator(self) -> PostTrainingEvaluator:
        """This evaluator, if it runs a network whose weights can be trained.

        Raises:
            InputError: If it runs none.
        """
        raise InputError(
            f"the quality of {self.workload.name!r} is looked up in a table, which has no weights; take the task of "
            "the network itself."
        )

    def float_remarks(self) -> list[str]:
        """What of a network at integer widths is computed in float all the same, a line each with the reason."""
        return []

    def score_remarks(self) -> list[str]:
        """What a user should know about how allocations are scored, a line each."""
        return []


def check_split(split: str) -> Split:
    """Return a split's name.

    Raises:
        InputError: If it is not one of `SPLITS`.
    """
    for known in SPLITS:
        if split == known:
            return known
    raise InputError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}.")
