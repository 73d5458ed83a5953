"""Simulated annealing within the budget (Kirkpatrick et al. 1983)."""

from __future__ import annotations

import math

from amed_env.agents.options import number_between
from amed_env.agents.protocol import Agent
from amed_env.agents.searchers.moves import evaluate, fits, fresh_choices, good_starts, prior, within_budget
from amed_env.agents.searchers.neighbours import IntArray, random_neighbour
from amed_env.agents.session import SearchSession
from amed_env.errors import AgentError
from amed_env.evaluation.store import Trial
from amed_env.tasks.proxies import get_proxies

_PATIENCE = 50  # steps in a row without anything new after which it goes on from a random allocation
_LEAST_TEMPERATURE = 1e-12  # zero would divide by zero
_TRIES = 20  # neighbours that are drawn before one is repaired


class AnnealingAgent(Agent):
    """Changes one or two layers at random, repairs what exceeds the budget, and accepts by Metropolis' rule.

    The energy is minus the score of `objective.score`; the temperature falls geometrically with the evaluations that
    are used. An allocation that is known already costs nothing and may be passed through again; where nothing new
    comes for long, it goes on from a random allocation near the budget.

    Args:
        proxy: Name of the proxy whose optimum is the start.
        first_temperature: Temperature at the first evaluation, in units of the score (a log-ratio of errors).
        last_temperature: Temperature at the last one.

    Raises:
        UnknownNameError: If there is no such proxy.
        AgentError: If a temperature is not positive, or they rise.
    """

    name = "annealing"

    # At first an error that is larger by a tenth is accepted with probability 1/e, at last one by half a percent.
    def __init__(self, proxy: str = "kl", first_temperature: float = 0.1, last_temperature: float = 0.005) -> None:
        self.proxy = get_proxies(proxy)[0]
        self.first = number_between("first_temperature", first_temperature, _LEAST_TEMPERATURE)
        self.last = number_between("last_temperature", last_temperature, _LEAST_TEMPERATURE)
        if self.last > self.first:
            raise AgentError(f"the last temperature {self.last} is above the first one, {self.first}.")

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        current: IntArray | None = next(iter(good_starts(session, prior(session, self.proxy))), None)
        energy = math.inf if current is None else self._energy(session, evaluate(session, current))
        fruitless = 0
        while current is not None:
            before = session.evaluations
            if fruitless < _PATIENCE:
                candidate = self._neighbour(session, current)
            else:
                candidate, energy = fresh_choices(session), math.inf
                if candidate is None:
                    return
            if candidate is not None:
                there = self._energy(session, evaluate(session, candidate))
                temperature = self.first * (self.last / self.first) ** (session.evaluations / session.limit)
                if there <= energy or session.rng.random() < math.exp((energy - there) / temperature):
                    current, energy = candidate, there
            fruitless = 0 if session.evaluations > before else fruitless + 1

    def _neighbour(self, session: SearchSession, current: IntArray) -> IntArray | None:
        """The first of a few neighbours that is within the budget, else the last one, repaired."""
        candidate = current
        for _ in range(_TRIES):
            candidate = random_neighbour(session.task, current, session.rng)
            if fits(session, candidate):
                return candidate
        return within_budget(session, candidate)

    def _energy(self, session: SearchSession, trial: Trial | None) -> float:
        if trial is None:
            return math.inf
        return -session.task.gain(trial.quality)
