"""The quality score of AMED's random walk: one number, less is better, that weighs loss against latency.

After Kimhi, Rozen, Mendelson, Baskin: AMED, arXiv 2205.15437. Loss is in nats and latency a factor of the uniform 8-bit
latency, in the score and in whatever it is compared with; a score is never compared with one in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amed_env.errors import InputError
from amed_env.objective import BUDGET_METRICS

SMALLEST = 1e-4
"""Added to every score, so that a network without loss at a weight of latency of 0 has a logarithm."""

NotNegative = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class QualityScore(BaseModel):
    """ζ = (α x loss + β x latency / 8-bit latency) x (1 + λ x missing accuracy), and its logarithm.

    Attributes:
        loss_weight: α, weight of the cross-entropy in nats.
        latency_weight: β, weight of the latency as a factor of that of uniform 8 bit.
        accuracy_threshold: Accuracy, as a fraction, below which the penalty grows; None for no penalty.
        accuracy_penalty: λ, by how many times ζ grows for a whole unit of accuracy below the threshold: with 100, one
            percentage point doubles it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss_weight: NotNegative = 1.0
    latency_weight: NotNegative = 0.1
    accuracy_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    accuracy_penalty: NotNegative = 100.0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> QualityScore:
        """A score from its fields.

        Raises:
            InputError: If a field is unknown, of the wrong type or out of range; all of them are named.
        """
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors(include_url=False)]
            known = ", ".join(cls.model_fields)
            raise InputError(f"quality score: {'; '.join(faults)}. Its fields are {known}.") from error

    def zeta(self, accuracy: float, loss: float, latency_ratio: float) -> float:
        """The score; less is better, and it is positive.

        Args:
            accuracy: Accuracy as a fraction, 0 to 1.
            loss: Mean cross-entropy in nats.
            latency_ratio: Latency as a factor of the uniform 8-bit latency.
        """
        plain = self.loss_weight * loss + self.latency_weight * latency_ratio + SMALLEST
        if self.accuracy_threshold is None:
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
