"""NSGA-II by pymoo: error against cost, among allocations within the budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from amed_env.agents.options import import_optional, whole_number
from amed_env.agents.protocol import Agent
from amed_env.agents.searchers.moves import evaluate, good_starts, near_the_budget, new_near, prior
from amed_env.agents.session import SearchSession
from amed_env.evaluation.store import Trial
from amed_env.tasks.proxies import get_proxies

IntArray = npt.NDArray[np.int64]

_WORST = 1e6  # objective of what failed: finite, as NSGA-II divides by the range of the objectives
_CHEAP_ENOUGH = 0.9  # of the limit: below it nothing is gained
_FILLED = 0.5  # probability that the slack of an offspring is spent
_DRAWS = 10  # draws for each place in the first population


class EvolutionAgent(Agent):
    """Keeps a population of allocations that trade quality for cost (NSGA-II, Deb et al. 2002).

    The first population lies near the budget: the proxy's optimum, and random allocations that are widened until
    nothing more fits. Offspring that exceed the budget are narrowed, and half of the others are widened up to it;
    what is known already is mutated until it is new. Being cheaper than 90 % of the budget counts for nothing.

    Args:
        population: Allocations of a generation.
        proxy: Name of the proxy whose optimum is in the first population.

    Raises:
        UnknownNameError: If there is no such proxy.
        AgentError: If pymoo is not installed, or the population is no positive whole number.
    """

    name = "evolution"
    libraries = ("pymoo",)

    def __init__(self, population: int = 20, proxy: str = "kl") -> None:
        self.population = whole_number("population", population)
        self.proxy = get_proxies(proxy)[0]
        self._nsga2 = import_optional("pymoo.algorithms.moo.nsga2", self.name, "pymoo").NSGA2

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        first = self._first_population(session)
        if len(first) == 0:
            return
        algorithm = self._algorithm(session, first)
        started = False
        while True:
            session.check()
            offspring = algorithm.ask()
            genes = offspring.get("X")
            rows = first if not started else [new_near(session, self._choices(session, row), _FILLED) for row in genes]
            tried = [choices for choices in rows if choices is not None]
            if not tried:
                return
            trials = [evaluate(session, choices) for choices in tried]
            offspring = offspring[: len(tried)]
            offspring.set("X", np.asarray([self._genes(session, choices) for choices in tried]))
            offspring.set("F", np.asarray([self._objectives(session, trial) for trial in trials]))
            for individual in offspring:
                individual.evaluated.update({"F", "G", "H"})
            algorithm.tell(infills=offspring)
            started = True

    def _algorithm(self, session: SearchSession, first: IntArray) -> Any:
        # Here, as the library is optional.
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.ux import UniformCrossover
        from pymoo.operators.mutation.pm import PolynomialMutation
        from pymoo.operators.repair.rounding import RoundingRepair

        most = np.maximum(session.task.choosable.sum(axis=1) - 1, 0)
        problem = Problem(n_var=len(most), n_obj=2, xl=np.zeros(len(most)), xu=most, vtype=int)
        algorithm = self._nsga2(
            pop_size=len(first),
            sampling=np.asarray([self._genes(session, choices) for choices in first]),
            crossover=UniformCrossover(prob=0.9),
            # With pymoo's own eta of 20, most steps would round back to the width that a layer has.
            mutation=PolynomialMutation(
                prob=1.0, prob_var=max(0.05, 1.5 / len(most)), eta=3.0, repair=RoundingRepair()
            ),
            eliminate_duplicates=False,
        )
        algorithm.setup(problem, termination=("n_gen", 10**9), seed=session.seed, verbose=False)
        return algorithm

    def _first_population(self, session: SearchSession) -> IntArray:
        starts = good_starts(session, prior(session, self.proxy))[:1]
        members = {choices.tobytes(): choices for choices in starts}
        for _ in range(_DRAWS * self.population):
            if len(members) >= min(self.population, session.limit):
                break
            drawn = near_the_budget(session)
            if drawn is not None:
                members[drawn.tobytes()] = drawn
        return np.asarray(list(members.values()), dtype=np.int64).reshape(len(members), len(session.task.workload))

    def _choices(self, session: SearchSession, genes: IntArray) -> IntArray:
        """A gene is the position among what a layer may choose."""
        rows = zip(session.task.choosable, genes, strict=True)
        return np.asarray([np.flatnonzero(row)[int(gene)] for row, gene in rows], dtype=np.int64)

    def _genes(self, session: SearchSession, choices: IntArray) -> IntArray:
        rows = zip(session.task.choosable, choices, strict=True)
        return np.asarray([np.searchsorted(np.flatnonzero(row), c) for row, c in rows], dtype=np.int64)

    def _objectives(self, session: SearchSession, trial: Trial | None) -> tuple[float, float]:
        """Error, with the loss as a tie-break, and the largest share of a limit (bops where nothing is limited)."""
        if trial is None:
            return _WORST, _WORST
        quality = trial.quality
        error = quality.scored_by.error(quality.score) + 1e-6 * (quality.loss or 0.0)
        limits = session.task.limits
        if not limits:
            return error, trial.costs["bops"]
        share = max(trial.costs[metric] / max(limit, 1e-300) for metric, limit in limits.items())
        return error, max(share, _CHEAP_ENOUGH)
