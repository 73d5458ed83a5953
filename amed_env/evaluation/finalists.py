"""The choice at the end of a search: its best allocations, scored once more on more samples.

The best of some hundred scores on a few thousand samples is partly the luckiest of them (selection bias). A few of the
best, scored on samples that the search did not see, show which of them are good; paired over samples, as in
`evaluation.verdict`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from amed_env.evaluation.quality import Quality
from amed_env.evaluation.store import Trial
from amed_env.evaluation.verdict import SURE, Estimate
from amed_env.problem.objective import BUDGET_METRICS

METRIC_NAMES = {metric: name for name, metric in BUDGET_METRICS.items()}

if TYPE_CHECKING:
    from amed_env.quantization.layers import PreparedWidth


class TrainedWeights(NamedTuple):
    """What a network uses after tuning; see `PostTrainingEvaluator.adopt`."""

    widths: Mapping[tuple[str, int], PreparedWidth]
    stored_scales: Sequence[float]


@dataclass(frozen=True)
class Finalist:
    """An allocation among those that one is chosen of.

    Attributes:
        name: Its rank in the search, from `1`; or `uniform-4` for the best uniform width within the budget.
        trial: Its trial on the search split, before tuning.
        untuned: Quality on the larger set of samples as post-training quantization leaves it.
        quality: The same after tuning, or without it.
        weights: What tuning made of it; None without, and where it is better untuned.
    """

    name: str
    trial: Trial
    untuned: Quality
    quality: Quality
    weights: TrainedWeights | None = None

    def behind(self, other: Finalist) -> Estimate | None:
        """By how much its score is worse than another one's, paired; None if there are no values of single samples."""
        score = self.quality.scored_by
        mine, others = (finalist.quality.per_sample.get(score.name) for finalist in (self, other))
        if mine is None or others is None:
            return None
        differences = mine.astype(np.float64) - others.astype(np.float64)
        return Estimate.of(-differences if score.higher_is_better else differences)


@dataclass(frozen=True)
class Finalists:
    """Finalists and the one that is chosen of them.

    Attributes:
        finalists: Those of the search, best first, and the best uniform width within the budget.
        metric: Cost that decides between equal ones.
        tune_steps: Steps that each was tuned for.
        best: The one of the best score.
        equal: Those that cannot be told from it on these samples, itself among them.
        chosen: The answer.
    """

    finalists: tuple[Finalist, ...]
    metric: str
    tune_steps: int
    best: Finalist
    equal: tuple[Finalist, ...]
    chosen: Finalist

    @classmethod
    def of(cls, finalists: Sequence[Finalist], metric: str, tune_steps: int = 0) -> Finalists:
        """Choose: the best score, and of those that cannot be told from it the cheapest.

        Args:
            finalists: At least one, of trials within the budgets.
            metric: Cost that decides between equal ones.
            tune_steps: Steps that each was tuned for.
        """
        best = min(finalists, key=lambda finalist: finalist.quality.order)
        equal = [finalist for finalist in finalists if finalist is best or _same(finalist.behind(best))]
        # Among equal scores the better one is luck, but the lower cost is certain: nobody would pay for luck. (As the
        # one-standard-error rule of Breiman et al., Classification and Regression Trees, 1984, takes the simplest.)
        chosen = min(equal, key=lambda finalist: (finalist.trial.costs[metric], finalist.quality.order))
        return cls(tuple(finalists), metric, tune_steps, best, tuple(equal), chosen)

    @property
    def samples(self) -> int:
        """Samples that they were scored on."""
        return self.best.quality.samples

    def sentence(self) -> str:
        """The choice in words."""
        if len(self.equal) == 1:
            tuned = f" after {self.tune_steps} steps of tuning" if self.tune_steps else ""
            score = self.chosen.quality.scored_by.described(self.chosen.quality.score)
            return f"the best of {len(self.finalists)} on {self.samples:,} samples{tuned}: {score}."
        return (
            f"the {len(self.equal)} best of {len(self.finalists)} cannot be told apart on {self.samples:,} samples; "
            f"the one of least {METRIC_NAMES.get(self.metric, self.metric)} is taken."
        )

    def to_json(self, network: str) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "samples": self.samples,
            "tune_steps": self.tune_steps,
            "chosen": self.chosen.name,
            "equal": [finalist.name for finalist in self.equal],
            "sentence": self.sentence(),
            "finalists": [self._finalist_json(finalist, network) for finalist in self.finalists],
        }

    def _finalist_json(self, finalist: Finalist, network: str) -> dict[str, Any]:
        behind = finalist.behind(self.best)
        return {
            "name": finalist.name,
            "allocation": finalist.trial.allocation.to_json(network),
            "search": finalist.trial.quality.to_json(),
            "untuned": finalist.untuned.to_json(),
            "quality": finalist.quality.to_json(),
            "tuned": finalist.weights is not None,
            "behind_best": None if behind is None else behind.to_json(),
            "costs": dict(finalist.trial.costs),
        }


def _same(behind: Estimate | None) -> bool:
    """Whether a paired difference is within two standard errors of none."""
    return behind is not None and behind.value <= SURE * behind.error
