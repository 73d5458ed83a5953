"""Allocations within the budgets that promise most by a model: exactly the best ones where costs add up.

Where they do not, no table knows who is within the budgets. There the allocations within them are a graph whose edges
are the small changes of `neighbours`; it is walked from good starts, the most promising first, and the device is asked
about the neighbours of what is reached. Asking for costs is no evaluation.
"""

from __future__ import annotations

import numpy as np

from amed_env.agents.searchers.calibration import Terms
from amed_env.agents.searchers.moves import fits_many, fresh_choices, good_starts
from amed_env.agents.searchers.neighbours import IntArray, neighbours
from amed_env.agents.session import SearchSession
from amed_env.problem.best_choices import MOST_WIDTH, best_choices, objective

_EXPANSIONS = 4  # allocations whose neighbours are asked about for one answer, once something new is known


class Candidates:
    """Knows what a search has evaluated and gives what comes next.

    Args:
        session: The search.
        start: Terms by which the walk starts where costs do not add up.
        most_width: Effort of the exact solver; see `best_choices`.
    """

    def __init__(self, session: SearchSession, start: Terms, most_width: int = MOST_WIDTH) -> None:
        self.session, self.start, self.most_width = session, start, most_width
        task = session.task
        self.exact = all(metric in task.costs for metric in task.limits)
        self.gap = 0.0
        self._used: set[bytes] = set()
        self._reached: dict[bytes, IntArray] = {}
        self._expanded: set[bytes] = set()

    def use(self, choices: IntArray) -> None:
        """Never give these choices again."""
        self._used.add(choices.tobytes())

    def best(self, terms: Terms, count: int) -> IntArray:
        """The most promising choices within the budgets that are not used, best first: int64 (up to count, L).

        `gap` is then by how much the first may miss the optimum of the terms; it is infinite where costs do not add up.
        """
        if not self.exact:
            self.gap = np.inf
            return self._walk(terms, count)
        task = self.session.task
        solutions = best_choices(
            *task.device_costs.bounded_limits(task.limits),
            terms.single,
            terms.pairs,
            task.choosable,
            count=count,
            excluded=self._used,
            most_width=self.most_width,
        )
        self.gap = solutions.gap
        if len(solutions.choices) or solutions.floor == np.inf:
            return solutions.choices
        fresh = fresh_choices(self.session)  # the solver's frontier had nothing but known ones
        return np.zeros((0, len(task.workload)), dtype=np.int64) if fresh is None else fresh[None]

    def _walk(self, terms: Terms, count: int) -> IntArray:
        session = self.session
        if not self._reached:
            self._reach(np.asarray(good_starts(session, self.start.single), dtype=np.int64))
        expansions = 0
        while True:
            session.check()
            keys = list(self._reached)
            everyone = np.asarray(list(self._reached.values()), dtype=np.int64)
            everyone = everyone.reshape(len(keys), len(session.task.workload))  # nothing may be within the budgets
            values = objective(terms.single, terms.pairs, everyone) if len(everyone) else np.zeros(0)
            order = np.argsort(values, kind="stable").tolist()
            new = [row for row in order if keys[row] not in self._used][:count]
            leaf = next((row for row in order if keys[row] not in self._expanded), None)
            enough = len(new) == count and (leaf is None or values[leaf] > values[new[-1]])
            if leaf is None or enough or (new and expansions >= _EXPANSIONS):
                return everyone[new]
            self._expanded.add(keys[leaf])
            self._reach(neighbours(session.task, everyone[leaf]))
            expansions += 1

    def _reach(self, choices: IntArray) -> None:
        unknown = [row for row in choices if row.tobytes() not in self._reached]
        if unknown:
            asked = np.asarray(unknown)
            for row in asked[fits_many(self.session, asked)]:
                self._reached[row.tobytes()] = row
