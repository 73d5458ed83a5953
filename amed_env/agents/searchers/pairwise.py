"""A proxy with terms of pairs of layers, as in CLADO (Deng et al., arXiv 2307.05657), solved to a stated gap."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from amed_env.agents.options import true_or_false, whole_number
from amed_env.agents.protocol import Agent
from amed_env.agents.searchers.calibration import Calibration, Terms
from amed_env.agents.searchers.candidates import Candidates
from amed_env.agents.searchers.milp import search_calibrated, search_in_order
from amed_env.agents.searchers.moves import evaluate, prior
from amed_env.agents.session import SearchSession
from amed_env.errors import InputError
from amed_env.tasks.proxies import get_proxies
from amed_env.tasks.task import Task

logger = logging.getLogger(__name__)

MOST_PAIRS = 4_000
"""Pairs of choices that are measured by default; more layers than fit are coupled to near ones only."""


class PairwiseAgent(Agent):
    """Predicts an allocation by what single layers and pairs of layers lose, and evaluates what is best by that.

    The prior are divergences on calibration samples by forward passes: KL(i, j) - KL(i) - KL(j) is what two layers do
    together beyond the sum of each alone. Where a task gives no such divergences, the prior has single layers only,
    and a warning says so. With `calibrate`, the optimum without pairs is evaluated first, then that with pairs; the
    prior is the average of both, and every trial corrects the terms of layers and of pairs. For divergences grow little
    more once a layer at 2 bits has spoilt the network, and the sum of many negative pairs makes the rest seem free.

    Args:
        reach: Couple layers at most so far apart; by default as far as `MOST_PAIRS` goes.
        project: Whether the prior is the nearest positive-semidefinite form, as in CLADO.
        calibrate: Whether trials correct the prior.
        most_width: Effort of the solver; see `best_choices`.

    Attributes:
        gap: By how much the first solution with pairs may miss the optimum of the prior, in nats; 0 is proven to be
            optimal, infinite where costs do not add up.

    Raises:
        AgentError: If an option is of the wrong type.
    """

    name = "pairwise"
    saw = ("a few runs on digits-cnn and kws-dscnn, for the settings of its calibration",)

    def __init__(
        self, reach: int | None = None, project: bool = True, calibrate: bool = True, most_width: int = 4_096
    ) -> None:
        self.reach = None if reach is None else whole_number("reach", reach)
        self.project = true_or_false("project", project)
        self.calibrate = true_or_false("calibrate", calibrate)
        self.most_width = whole_number("most_width", most_width)
        self.gap = np.inf

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        single = Terms(prior(session, get_proxies("kl")[0]), None)
        terms = self._terms(session, single)
        priors = [single] if terms is single else [single, terms]
        candidates = Candidates(session, terms, self.most_width)
        for start in priors if self.calibrate else [terms]:
            first = candidates.best(start, 1)
            self.gap = candidates.gap
            for choices in first:
                candidates.use(choices)
                evaluate(session, choices)
        if 0 < self.gap < np.inf:
            logger.info("the optimum with pairs is optimal by its proxy to %.3g nats", self.gap)
        if self.calibrate:
            search_calibrated(session, candidates, Calibration(priors, pairwise=True))
        else:
            search_in_order(session, candidates, [terms])

    def _terms(self, session: SearchSession, single: Terms) -> Terms:
        """Single layers with their pairs, or the single layers alone where a task gives no pairs."""
        task = session.task
        reach = longest_reach(task) if self.reach is None else min(self.reach, len(task.workload) - 1)
        session.say("measuring pairs of layers")
        try:
            pairs = task.evaluator.pair_divergences(task.precisions, reach)
        except InputError as error:
            logger.warning("pairwise starts from single layers: %s", error)
            return single
        finally:
            session.say("")
        return positive_semidefinite(single.single, pairs) if self.project else Terms(single.single, pairs)


def longest_reach(task: Task) -> int:
    """How far apart layers are coupled by default: at least neighbours."""
    layers, choices = len(task.workload), len(task.space.free_choices)
    reach = min(1, layers - 1)
    while reach + 1 < layers:
        if sum(layers - apart for apart in range(1, reach + 2)) * choices**2 > MOST_PAIRS:
            break
        reach += 1
    return reach


def positive_semidefinite(single: npt.NDArray[np.float64], pairs: npt.NDArray[np.float64]) -> Terms:
    """The nearest terms (in the Frobenius norm) whose quadratic form is positive semidefinite.

    The form has `single` on its diagonal and half of each pair's term at both of its places.

    Args:
        single: (L, P) terms of one layer.
        pairs: (L, P, L, P) symmetric terms of two layers.
    """
    layers, count = single.shape
    cells = layers * count
    form = pairs.reshape(cells, cells) / 2 + np.diag(single.ravel())
    values, vectors = np.linalg.eigh((form + form.T) / 2)
    projected = (vectors * np.maximum(values, 0.0)) @ vectors.T
    diagonal = np.diag(projected).reshape(layers, count).copy()
    together = (2 * projected).reshape(layers, count, layers, count)
    for layer in range(layers):
        together[layer, :, layer] = 0.0  # two precisions of one layer never meet
    return Terms(diagonal, together)
