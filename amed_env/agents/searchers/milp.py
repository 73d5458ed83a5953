"""The exact optimum of an additive proxy under the budgets, then the best of what the trials have made of the proxy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from amed_env.agents.options import true_or_false
from amed_env.agents.protocol import Agent
from amed_env.agents.searchers.calibration import Calibration, Evidence, Terms
from amed_env.agents.searchers.candidates import Candidates
from amed_env.agents.searchers.moves import IntArray, evaluate, good_starts, prior
from amed_env.agents.session import SearchSession
from amed_env.problem.best_choices import objective
from amed_env.tasks.proxies import get_proxies

_POOL = 64  # most promising allocations among which the uncertain ones are preferred
_OPTIMISM = 1.0  # deviations by which an uncertain allocation is thought better than expected
_BATCH_SHARE = 20  # the model is fitted anew when there is one more trial for so many


class MilpAgent(Agent):
    """Solves a multiple-choice knapsack: one precision a layer, least proxy, all budgets met.

    The first evaluation is the optimum of the (first) proxy, found by HiGHS. With `calibrate`, every trial then
    corrects the proxy (`Calibration`), and the exact solver gives the best of what is not evaluated. Without, the
    evaluations follow the proxy's own order exactly; several proxies take turns.

    Args:
        proxy: Name of a proxy, or several with commas or as a list.
        calibrate: Whether trials correct the proxy.

    Raises:
        UnknownNameError: If there is no such proxy.
        AgentError: If an option is of the wrong type.
    """

    name = "milp"
    saw = ("a few runs on digits-cnn and kws-dscnn, for the settings of its calibration",)

    def __init__(self, proxy: str | Iterable[str] = "kl", calibrate: bool = True) -> None:
        self.proxies = get_proxies(proxy)
        self.calibrate = true_or_false("calibrate", calibrate)

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        priors = [Terms(prior(session, proxy), None) for proxy in self.proxies]
        candidates = Candidates(session, priors[0])
        for terms in priors:
            for choices in good_starts(session, terms.single)[:1]:
                candidates.use(choices)
                evaluate(session, choices)
        if self.calibrate:
            search_calibrated(session, candidates, Calibration(priors))
        else:
            search_in_order(session, candidates, priors)


def search_in_order(session: SearchSession, candidates: Candidates, priors: list[Terms]) -> None:
    """Evaluate the best of what is left by each prior in turn, until nothing is left."""
    count = 1
    while True:
        for terms in priors:
            best_left = candidates.best(terms, 1 if len(priors) > 1 else count)
            if len(best_left) == 0:
                return
            for choices in best_left:
                candidates.use(choices)
                evaluate(session, choices)
        count = min(2 * count, 256)


def search_calibrated(session: SearchSession, candidates: Candidates, model: Calibration) -> None:
    """Fit the model to all trials, evaluate the most promising allocations, and so on, until nothing is left.

    Among the best by expectation those come first that may be better than expected (an upper confidence bound).
    """
    evidence = Evidence(session)
    while True:
        session.check()
        promising = most_promising(session, candidates, model, evidence)
        if len(promising) == 0:
            return
        for choices in promising[: max(1, len(session.trials) // _BATCH_SHARE)]:
            candidates.use(choices)
            evaluate(session, choices)


def most_promising(session: SearchSession, candidates: Candidates, model: Calibration, evidence: Evidence) -> IntArray:
    """What the model, fitted to all trials, finds most promising of what is not used: int64 (N, L), best first."""
    evidence.update()
    # There are no trials if whatever was tried failed.
    terms = model.fit(evidence.choices, evidence.targets) if session.trials else model.priors[0]
    promising = candidates.best(terms, _POOL)
    if session.trials and len(promising):
        expected = objective(terms.single, terms.pairs, promising)
        promising = promising[np.argsort(expected - _OPTIMISM * model.deviation(promising), kind="stable")]
    return promising
