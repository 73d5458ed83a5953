"""Which allocation to deploy: accuracies that chance could have swapped are a tie, and the loss breaks it.

The highest of several hundred accuracies on one split is partly luck (selection bias, the "winner's curse"), and the
allocation that had it is often not the best on new samples. The loss of the same samples varies less between them. On
the development cells of the suite `tiny` this choice is better on the test split than the highest accuracy; see
docs/decisions.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from amed_env.evaluation.quality import Quality
from amed_env.evaluation.store import Trial


def standard_error(quality: Quality) -> float:
    """Standard error of an accuracy as a fraction, from its number of samples (binomial)."""
    return math.sqrt(quality.accuracy * (1.0 - quality.accuracy) / quality.samples)


def recommended_trial(trials: Sequence[Trial]) -> Trial | None:
    """The trial of the least loss among those whose accuracy is within one standard error of the highest.

    The rule of one standard error (Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984,
    section 3.4.3), with the loss where they ask for the simplest tree. Equal losses go to the higher accuracy, then to
    the earlier trial.

    Args:
        trials: Complete trials, all within the budgets.

    Returns:
        One of them; None if there are none.
    """
    if not trials:
        return None
    best = max((trial.quality for trial in trials), key=lambda quality: quality.accuracy)
    least = best.accuracy - standard_error(best)
    alike = [trial for trial in trials if trial.quality.accuracy >= least]
    return min(alike, key=lambda trial: (trial.quality.loss, -trial.quality.accuracy))
