"""The quality score of AMED's random walk: one number, less is better, that weighs loss against latency.

After Kimhi, Rozen, Mendelson, Baskin: AMED, arXiv 2205.15437. Loss is in nats and latency a factor of the uniform 8-bit
latency, in the score and in whatever it is compared with; a score is never compared with one in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Protocol

from pydantic import Field

from amed_env.problem.objective import BUDGET_METRICS
from amed_env.support.typed_fields import TypedFields

SMALLEST = 1e-4  # far below any loss of interest: 0.0001 nats
"""Added to every score, so that a network without loss at a weight of latency of 0 has a logarithm."""

NotNegative = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class Measured(Protocol):
    """What ζ takes of a quality (`evaluation.quality.Quality`)."""

    @property
    def correct(self) -> int | None:
        """Correct samples, or None without labels."""

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy as a fraction."""

    @property
    def cross_entropy(self) -> float:
        """Mean cross-entropy in nats."""


class QualityScore(TypedFields):
    """ζ = (α x loss + β x latency / 8-bit latency + `SMALLEST`) x (1 + λ x missing accuracy), and its logarithm.

    Attributes:
        loss_weight: α, weight of the cross-entropy in nats.
        latency_weight: β, weight of the latency as a factor of that of uniform 8 bit.
        accuracy_threshold: Accuracy, as a fraction, below which the penalty grows; None for no penalty.
        accuracy_penalty: λ, by how many times ζ grows for a whole unit of accuracy below the threshold: with 100, one
            percentage point doubles it.
    """

    loss_weight: NotNegative = 1.0
    latency_weight: NotNegative = 0.1
    accuracy_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    accuracy_penalty: NotNegative = 100.0

    @classmethod
    def title(cls) -> str:
        """See `TypedFields.title`."""
        return "quality score"

    def zeta_of(self, quality: Measured, latency_ratio: float) -> float:
        """ζ of a quality; without labels its loss is the cross-entropy against the float network's probabilities.

        Args:
            quality: The quality.
            latency_ratio: Latency as a factor of the uniform 8-bit latency.
        """
        accuracy = None if quality.correct is None else quality.accuracy
        return self.zeta(accuracy, quality.cross_entropy, latency_ratio)

    def zeta(self, accuracy: float | None, loss: float, latency_ratio: float) -> float:
        """The score; less is better, and it is positive.

        Args:
            accuracy: Accuracy as a fraction, 0 to 1; None, without labels, is not penalised.
            loss: Mean cross-entropy in nats.
            latency_ratio: Latency as a factor of the uniform 8-bit latency.
        """
        plain = self.loss_weight * loss + self.latency_weight * latency_ratio + SMALLEST
        if self.accuracy_threshold is None or accuracy is None:
            return plain
        return plain * (1.0 + self.accuracy_penalty * max(0.0, self.accuracy_threshold - accuracy))


def gain(reference: float, zeta: float) -> float:
    """By how many decades a score is better than a reference in the same units: log10(ζ_ref / ζ)."""
    return math.log10(reference / zeta)


def latency_ratio(costs: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Latency as a factor of the reference's; on a device without latency the first cost that it has.

    Args:
        costs: Cost of an allocation by metric.
        reference: Cost of the uniform 8-bit network by metric.

    Returns:
        The factor; 1 where there is nothing to compare.
    """
    for metric in BUDGET_METRICS.values():
        if metric in costs and reference.get(metric):
            return costs[metric] / reference[metric]
    return 1.0
