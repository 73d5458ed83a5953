"""The choice at the end of a search: its best allocations on more samples than every trial could be scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amed_env.evaluation.quality import Quality
from amed_env.evaluation.store import Trial
from amed_env.evaluation.verdict import SURE, judge
from amed_env.tasks.task import Task


@dataclass(frozen=True)
class Finalist:
    """One of the best allocations of a search.

    Attributes:
        trial: Its trial in the search.
        quality: Its quality on all samples that a choice may go by.
        tied: Whether its score differs from that of the best finalist by less than two standard errors, paired over
            samples; None where samples have no values of their own.
    """

    trial: Trial
    quality: Quality
    tied: bool | None

    def to_json(self, network: str) -> dict[str, Any]:
        """Allocation and both qualities as a JSON object."""
        return {
            "allocation": self.trial.allocation.to_json(network),
            "search": self.trial.quality.to_json(),
            "all": self.quality.to_json(),
            "tied": self.tied,
        }


def score_finalists(task: Task, trials: Sequence[Trial], count: int) -> list[Finalist]:
    """The best trials within the budgets, scored on all samples there are; the best of them first.

    Args:
        task: The task.
        trials: Trials of a search.
        count: How many of them are scored.
    """
    feasible = sorted((trial for trial in trials if task.feasible(trial.costs)), key=lambda trial: trial.quality.order)
    scored = [(trial, task.evaluator.evaluate_finalist(trial.allocation)) for trial in feasible[:count]]
    # Python's sort keeps the order of the search among equal ones.
    scored.sort(key=lambda pair: pair[1].order)
    return [Finalist(trial, quality.lean, _tied(task, scored[0][1], quality)) for trial, quality in scored]


def _tied(task: Task, best: Quality, other: Quality) -> bool | None:
    name = task.score.name
    if name not in best.per_sample or name not in other.per_sample:
        return None
    difference = judge(task.score, best.per_sample[name], other.per_sample[name]).over_uniform
    assert difference is not None  # two sets of values were given
    return difference.value <= SURE * difference.error
