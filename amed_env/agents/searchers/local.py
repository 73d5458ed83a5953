"""Local search: the best improvement among neighbours, from the proxy's optimum on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from amed_env.agents.options import whole_number
from amed_env.agents.protocol import Agent
from amed_env.agents.searchers.calibration import Calibration, Evidence, Terms
from amed_env.agents.searchers.moves import (
    evaluate,
    fits_many,
    fresh_choices,
    good_starts,
    prior,
    within_budget,
)
from amed_env.agents.searchers.neighbours import IntArray, neighbours, random_neighbour
from amed_env.agents.session import SearchSession, best_trial
from amed_env.evaluation.store import Trial
from amed_env.tasks.proxies import get_proxies


class LocalAgent(Agent):
    """Moves to the best of a few neighbours while that is an improvement, then starts again near the best of all.

    Neighbours within the budget are ordered by the proxy, as the trials so far have corrected it (`Calibration`); a
    round evaluates the first `width` of them that are not known, those that share most first layers one after the
    other. Where none is better, the next ones follow. After
    `patience` rounds in vain, `kick` random moves away from the best allocation make a new start, and the time after
    that the search goes on with the neighbours of the best that are left. Where nothing is new, a random allocation
    follows.

    Args:
        proxy: Name of the proxy that gives the start and the order.
        width: New neighbours of a round.
        patience: Rounds without an improvement before a new start.
        kick: Random moves of a new start.

    Raises:
        UnknownNameError: If there is no such proxy.
        AgentError: If an option is no positive whole number.
    """

    name = "local"
    saw = ("development cells of the suite tiny, for the width of its rounds",)

    def __init__(self, proxy: str = "kl", width: int = 6, patience: int = 2, kick: int = 3) -> None:
        self.proxy = get_proxies(proxy)[0]
        self.width, self.kick = whole_number("width", width), whole_number("kick", kick)
        self.patience = whole_number("patience", patience)

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        table = prior(session, self.proxy)
        order = _Order(session, table)
        start: IntArray | None = next(iter(good_starts(session, table)), None)
        turn = fruitless = 0
        while start is not None:
            before = session.evaluations
            self._climb(session, order, start, evaluate(session, start))
            fruitless = 0 if session.evaluations > before else fruitless + 1
            turn += 1
            start = self._next_start(session, turn) if fruitless < 2 else None
            start = fresh_choices(session) if start is None else start

    def _climb(self, session: SearchSession, order: _Order, current: IntArray, trial: Trial | None) -> None:
        while True:
            around = neighbours(session.task, current)
            around = around[fits_many(session, around)]
            better, rounds = None, 0
            while len(around) and better is None and rounds < self.patience:
                rounds += 1
                around = order.sort(around)
                position, trials = self._round(session, around)
                around = around[position:]
                best = best_trial(trials)
                if best is not None and (trial is None or best.quality.order < trial.quality.order):
                    better = best
            if better is None:
                return
            current, trial = session.task.choices(better.allocation), better

    def _round(self, session: SearchSession, around: IntArray) -> tuple[int, list[Trial]]:
        """Evaluate neighbours until `width` of them were new; known ones are free.

        Returns:
            How many neighbours that were, and the trials.
        """
        taken: list[IntArray] = []
        position = new = 0
        while position < len(around) and new < self.width:
            taken.append(around[position])
            new += not session.knows(session.task.allocation(around[position]))
            position += 1
        # In the order of choices, so that results of the first layers are shared.
        trials = [evaluate(session, choices) for choices in sorted(taken, key=tuple)]
        return position, [trial for trial in trials if trial is not None]

    def _next_start(self, session: SearchSession, turn: int) -> IntArray | None:
        """The best allocation, after random moves every other time; None if there is none."""
        best = session.best()
        if best is None:
            return None
        choices = session.task.choices(best.allocation)
        if turn % 2 == 0:
            return choices
        for _ in range(self.kick):
            choices = random_neighbour(session.task, choices, session.rng)
        return within_budget(session, choices)


class _Order:
    """Orders allocations by the proxy, as the trials have corrected it so far.

    Args:
        session: The search.
        table: The proxy: float64 (L, P).
    """

    def __init__(self, session: SearchSession, table: npt.NDArray[np.float64]) -> None:
        self._table, self._rows = table, np.arange(len(table))
        self._evidence, self._model = Evidence(session), Calibration([Terms(table, None)])
        self._fitted = 0

    def sort(self, choices: IntArray) -> IntArray:
        """Allocations (N, L), the most promising first."""
        self._evidence.update()
        count = len(self._evidence.targets)
        if count > self._fitted:
            self._fitted = count
            self._table = self._model.fit(self._evidence.choices, self._evidence.targets).single
        return choices[np.argsort(self._table[self._rows, choices].sum(axis=1), kind="stable")]
