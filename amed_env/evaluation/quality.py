"""Quality of a network, and the contract of everything that measures it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from amed_env.errors import InputError
from amed_env.problem.allocation import BitAllocation, Precision
from amed_env.problem.ties import Ties
from amed_env.problem.workload import Workload

if TYPE_CHECKING:
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

    Attributes:
        correct: Samples whose true class has the highest score.
        samples: Samples in all.
        loss: Mean cross-entropy in nats.
    """

    correct: int
    samples: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy as a fraction."""
        return self.correct / self.samples

    @property
    def order(self) -> tuple[float, float]:
        """Sorts the better quality first: by accuracy, then by loss."""
        return -self.accuracy, self.loss

    def __add__(self, other: Quality) -> Quality:
        """Quality on two disjoint sets together."""
        samples = self.samples + other.samples
        loss = (self.loss * self.samples + other.loss * other.samples) / samples
        return Quality(self.correct + other.correct, samples, loss)

    def to_json(self) -> dict[str, Any]:
        """`{"accuracy", "correct", "samples", "loss"}`."""
        return {"accuracy": self.accuracy, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Quality:
        """The inverse of `to_json`; keys that only earlier versions wrote are passed over."""
        return cls(document["correct"], document["samples"], document["loss"])


class Evaluator(abc.ABC):
    """Measures the quality of bit allocations of one network on fixed samples.

    Attributes:
        workload: The network's layers.
        fingerprint: Text that changes with whatever changes a result: network, samples, recipe.
        kept_float: Modules with parameters that stay in float, a line each with the reason.
        ties: Which layers of the network are one layer of `workload`, or None if each is one by itself.
        looked_up: Whether an evaluation is a look-up, so that whatever else a trial takes is what takes the time.
        on_sensitivities: Called with the measurements done and all of them, while sensitivities of layers or pairs are
            measured.
    """

    workload: Workload
    fingerprint: str
    kept_float: tuple[str, ...] = ()
    ties: Ties | None = None
    looked_up: bool = False
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

    @abc.abstractmethod
    def predicted_loss(self, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """What quantizing one layer alone does to the output, on calibration samples.

        Args:
            precisions: P precisions.

        Returns:
            float64 of shape (layers, P): mean Kullback-Leibler divergence in nats of the class probabilities from those
            of the 8-bit network, in which this one layer is changed.
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

    def prepare(self, progress: Progress | None = None) -> None:
        """Do what an evaluation needs and takes long, once; a second call does nothing.

        Args:
            progress: Called with the steps done and all steps, if there is something to do.
        """
        return

    def complete_table(self) -> QualityTable | None:
        """The quality of every allocation, if it is known without any evaluation."""
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


def check_split(split: str) -> Split:
    """Return a split's name.

    Raises:
        InputError: If it is not one of `SPLITS`.
    """
    for known in SPLITS:
        if split == known:
            return known
    raise InputError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}.")
