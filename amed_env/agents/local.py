"""Local search: the best improvement among neighbours, from the proxy's optimum on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from amed_env.agents.milp import positive_whole
from amed_env.agents.moves import evaluate, fits_many, fresh_choices, good_starts, prior, quality_order, within_budget
from amed_env.agents.neighbours import IntArray, neighbours, random_neighbour
from amed_env.agents.protocol import Agent
from amed_env.agents.session import SearchSession
from amed_env.evaluation.store import Trial
from amed_env.proxies import get_proxies


class LocalAgent(Agent):
    """Moves to the best of a few neighbours while that is an improvement, then starts again near the best of all.

    Neighbours within the budget are ordered by the proxy; a round evaluates the first `width` of them that are not
    known, those that share most first layers one after the other. Where none is better, the next ones follow; where
    none is left, `kick` random moves away from the best allocation make a new start, and where that leads to nothing
    new, a random allocation.

    Args:
        proxy: Name of the proxy that gives the start and the order.
        width: New neighbours of a round.
        kick: Random moves of a new start.

    Raises:
        UnknownNameError: If there is no such proxy.
        AgentError: If an option is no positive whole number.
    """

    name = "local"

    def __init__(self, proxy: str = "kl", width: int = 12, kick: int = 3) -> None:
        self.proxy = get_proxies(proxy)[0]
        self.width, self.kick = positive_whole("width", width), positive_whole("kick", kick)

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        table = prior(session, self.proxy)
        start: IntArray | None = next(iter(good_starts(session, table)), None)
        while start is not None:
            before = session.evaluations
            self._climb(session, table, start, evaluate(session, start))
            start = self._kicked(session) if session.evaluations > before else None
            start = fresh_choices(session) if start is None else start

    def _climb(
        self, session: SearchSession, table: npt.NDArray[np.float64], current: IntArray, trial: Trial | None
    ) -> None:
        rows = np.arange(len(current))
        while True:
            around = neighbours(session.task, current)
            around = around[fits_many(session, around)]
            around = around[np.argsort(table[rows, around].sum(axis=1), kind="stable")]
            better, position = None, 0
            while position < len(around) and better is None:
                position, found = self._round(session, around, position)
                best = min(found, key=quality_order, default=None)
                if best is not None and (trial is None or quality_order(best) < quality_order(trial)):
                    better = best
            if better is None:
                return
            current, trial = session.task.choices(better.allocation), better

    def _round(self, session: SearchSession, around: IntArray, position: int) -> tuple[int, list[Trial]]:
        """Evaluate from a position on until `width` neighbours were new; known ones are free.

        Returns:
            The next position, and the trials.
        """
        taken: list[IntArray] = []
        new = 0
        while position < len(around) and new < self.width:
            taken.append(around[position])
            new += not session.knows(session.task.allocation(around[position]))
            position += 1
        # In the order of choices, so that results of the first layers are shared.
        trials = [evaluate(session, choices) for choices in sorted(taken, key=tuple)]
        return position, [trial for trial in trials if trial is not None]

    def _kicked(self, session: SearchSession) -> IntArray | None:
        best = session.best()
        if best is None:
            return fresh_choices(session)
        choices = session.task.choices(best.allocation)
        for _ in range(self.kick):
            choices = random_neighbour(session.task, choices, session.rng)
        return within_budget(session, choices)
