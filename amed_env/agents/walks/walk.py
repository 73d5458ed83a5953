"""The walk of `amed`: moves by Metropolis-Hastings, evaluates where it arrives, and learns the table of scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from amed_env.agents.session import SearchSession
from amed_env.agents.walks.filters import BudgetFilter
from amed_env.agents.walks.metropolis import MetropolisHastings, ScoreTable
from amed_env.agents.walks.options import AmedOptions
from amed_env.errors import AmedError, SearchEnded, StoreError
from amed_env.evaluation.store import Trial
from amed_env.problem.objective import violation
from amed_env.problem.quality_score import gain, latency_ratio
from amed_env.tasks.repair import repair
from amed_env.tasks.task import Task

IntArray = npt.NDArray[np.int64]

_MOST_REPEATS = 2_000  # known allocations in a row after which the walk counts as having nothing new
_MOST_HEAT = 1e6  # softmax is uniform long before


class AllocationWalk:
    """One walk of one search, from uniform 8 bit (or the widest precision of a task that has no 8 bit).

    A start beyond the budgets is not evaluated: the walk first goes down by random moves, each of which lowers the
    violation. From then on it never leaves what is filtered.

    Args:
        session: The search.
        task: Its task, or the same with more pins.
        options: The numbers of the walk.

    Attributes:
        score: The quality score ζ.
        scores: The table S.
        reference: ζ_ref; None before the first evaluation.
        choices: int64 (L,), where the walk stands.
    """

    def __init__(self, session: SearchSession, task: Task, options: AmedOptions) -> None:
        self.session, self.task, self.options = session, task, options
        self.score = options.quality_score(task)
        self.scores = ScoreTable(task.choosable)
        self.reference: float | None = None
        self.choices: IntArray = task.space.start_choices()
        self.cost_reference = dict(task.reference_cost.metrics)
        self._free = np.flatnonzero(task.choosable.sum(axis=1) > 1)
        self._failed: set[bytes] = set()
        self._filter = BudgetFilter(session, task, options.filtered(task))

    def run(self) -> None:
        """Walk until nothing new turns up any more; the session ends it when the evaluations are used up."""
        if not self.enter_budgets():
            return
        repeats, last_good = 0, self.choices.copy()
        while repeats < _MOST_REPEATS:
            known = self.session.evaluations
            trial = self._evaluate()
            if trial is None:
                self._failed.add(self.choices.tobytes())
                self.choices = last_good.copy()
            else:
                last_good = self.choices.copy()
                self.learn(trial)
            repeats = 0 if self.session.evaluations > known else repeats + 1
            self.move(min(self.options.reheating**repeats, _MOST_HEAT))

    def enter_budgets(self) -> bool:
        """Go down to the budgets; whether a way was found."""
        excess = self._filter.violation(self.choices)
        while excess > 0:
            lower = self._random_descent(excess)
            if lower is None:
                elsewhere = self._stranded()
                if elsewhere is None:
                    return False
                self.choices, lower = elsewhere, 0.0
            excess = lower
        return True

    def _stranded(self) -> IntArray | None:
        """Where to go on if no single move lowers the violation: a repair, else the widest uniform precision within."""
        repaired = repair(self.task, self.choices, self._filter.limits)
        if repaired is not None:
            return repaired
        uniform = (self.task.space.uniform_choices(int(choice)) for choice in self.task.space.free_choices[::-1])
        return next((choices for choices in uniform if self._filter.allows(choices)), None)

    def _random_descent(self, excess: float) -> float | None:
        """Enter a random neighbour of less violation and return its violation; None if there is none."""
        layers, choices = np.nonzero(self.task.choosable)
        for number in self.session.rng.permutation(len(layers)):
            candidate = self.choices.copy()
            candidate[layers[number]] = choices[number]
            lower = self._filter.violation(candidate)
            if lower < excess:
                self.choices = candidate
                return lower
        return None

    def move(self, heat: float = 1.0) -> None:
        """Some moves of single layers, without an evaluation.

        Args:
            heat: Factor of the temperature.
        """
        options, rng = self.options, self.session.rng
        law = self.scores.law(options.temperature * heat)
        chain = MetropolisHastings(law, options.proposal, options.corrected, self._may_enter)
        free = self._free
        order = rng.permutation(free) if options.moves is None or not len(free) else rng.choice(free, options.moves)
        for layer in order:
            chain.move(self.choices, int(layer), rng)

    def _may_enter(self, choices: IntArray) -> bool:
        return choices.tobytes() not in self._failed and self._filter.allows(choices)

    def _evaluate(self) -> Trial | None:
        """The trial of where the walk stands, or None after a fault; the session counts it."""
        if self.choices.tobytes() in self._failed:
            return None
        try:
            return self.session.evaluate(self.task.allocation(self.choices))
        except (SearchEnded, StoreError):
            raise
        except AmedError:
            return None  # the session has counted it; where it was the last one, the next question ends the search

    def learn(self, trial: Trial) -> None:
        """Move the cells of the allocation, then the reference, towards what a trial was worth."""
        # The cells learn before the reference moves: ζ is compared with what was known before this trial.
        zeta, comparable = self.zeta(trial), self.comparable(trial)
        if self.reference is None:
            self.reference = comparable
        self.scores.update(self.choices, gain(self.reference, zeta), self.options.learning_rate)
        rate = self.options.reference_rate
        self.reference = (1.0 - rate) * self.reference + rate * comparable

    def zeta(self, trial: Trial) -> float:
        """The quality score of a trial; less is better."""
        plain = self.score.zeta_of(trial.quality, latency_ratio(trial.costs, self.cost_reference))
        return plain * self.penalty(trial)

    def penalty(self, trial: Trial) -> float:
        """Factor of ζ for what exceeds the budgets, 1 or more; 1 where these are filtered."""
        if self.options.budgets == "filter":
            return 1.0
        return 1.0 + self.options.budget_penalty * violation(trial.costs, self.task.limits)

    def comparable(self, trial: Trial) -> float:
        """What the reference learns of a trial: its ζ, so that both have the same units."""
        return self.zeta(trial)
