"""Stopping an evaluation as soon as it is clear that an allocation is worse than the best one known."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import hypergeom

from amed_env.errors import InputError


@dataclass(frozen=True)
class EarlyDecision:
    """A sequential test against an incumbent.

    The samples of a split stand in a fixed order that was drawn without looking at any network: those of the package's
    own tasks as they were dealt, those of a user's as `make_task` draws them. If the allocation were
    as good as the incumbent, the correct ones among the first n samples would be hypergeometric; the evaluation stops
    when so few are rarer than allowed. Every look takes an equal part of the allowed error (Bonferroni), so the
    confidence holds over all looks together.

    Attributes:
        incumbent_correct: Samples of the whole split that the incumbent has right.
        confidence: Probability with which an allocation as good as the incumbent is evaluated to the end.
        looks: At most so many times the test is asked; batches of the split.
    """

    incumbent_correct: int
    confidence: float = 0.999
    looks: int = 32

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"the confidence of early decisions is {self.confidence}; give 0.5 to below 1.")
        if self.incumbent_correct < 0 or self.looks < 1:
            raise InputError("an early decision needs a number of correct samples and at least one look.")

    def decided(self, correct: int, seen: int, samples: int) -> bool:
        """Whether the allocation is worse than the incumbent.

        Args:
            correct: Right ones among the samples seen.
            seen: Samples seen.
            samples: Samples of the whole split.
        """
        if seen >= samples:
            return False
        rare = float(hypergeom.cdf(correct, samples, min(self.incumbent_correct, samples), seen))
        return rare < (1 - self.confidence) / self.looks
