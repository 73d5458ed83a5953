"""The goal-conditioned policy as an agent: an answer without any evaluation, then samples, learning from each trial."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from amed_env.agents.options import number_between, whole_number
from amed_env.agents.policy.network import PolicyNetwork, Problems
from amed_env.agents.policy.problem import problem_of
from amed_env.agents.policy.saved import fingerprint, load_policy
from amed_env.agents.protocol import Agent
from amed_env.agents.searchers.calibration import Calibration, Evidence, Terms
from amed_env.agents.searchers.candidates import Candidates
from amed_env.agents.searchers.milp import most_promising
from amed_env.agents.searchers.moves import all_within, evaluate, good_starts, prior
from amed_env.agents.session import SearchSession
from amed_env.errors import BudgetError
from amed_env.evaluation.store import Trial
from amed_env.tasks.proxies import get_proxies
from amed_env.tasks.repair import repair
from amed_env.tasks.task import Task

_SAMPLES = 64
_PATIENCE = 20
"""Draws without anything new after which it draws more widely."""
_FEW = 4096
"""So many allocations within the budgets, and beginnings of them, are listed to see whether all are known."""
_IMITATED = 64
"""Best trials that it learns from."""
_HOTTEST = 100.0
"""Temperature at which all choices are equally probable."""
_FIRST_TURNS, _MEMORY, _BETTER_SHARE = 5, 10, 0.75
"""Proposals of each source before they are compared, proposals that are compared, and the share of the better one."""
_DECIMALS = 9
"""Digits of log-probabilities that decide their order; beyond them are rounding errors."""
_STEPS = 2.0**17
"""Weights are learned in multiples of 1 over this. Otherwise training would amplify rounding errors, which differ
between processors, until another allocation is drawn."""


class PolicyAgent(Agent):
    """Asks a trained policy; what it proposes first needs no evaluation.

    The second evaluation is the optimum of the additive proxy. Afterwards two take turns, the one that lately proposed
    better allocations more often: the policy, which is sampled, most probable allocations first, and learns from all
    trials (the better a trial's rank, the more probable it becomes: self-imitation); and the exact solver of the proxy
    as the trials correct it, as `milp` does, which serves a network unlike those of the training better.

    Args:
        policy: Folder of a saved policy; None is the one of the package.
        batch: Evaluations between two updates.
        updates: Steps of learning at each of them; 0 learns nothing.
        learning_rate: Of Adam.

    Raises:
        AgentError: If the policy cannot be read, or an option is of the wrong type or out of range.
    """

    saw = (
        "quality tables of the networks on its card, on other devices and budgets",
        "regrets on held-out cells, by which its design was chosen (docs/decisions.md, 64)",
    )
    name = "policy"
    family = "learner"

    def __init__(
        self, policy: str | Path | None = None, batch: int = 20, updates: int = 10, learning_rate: float = 1e-3
    ) -> None:
        self._network, self.card = load_policy(None if policy is None else Path(str(policy)))
        self.recipe = {"policy": fingerprint(self._network)}  # a search with another policy is another search
        # In float32, what processors with wider registers add up in another order leads to another search before long.
        self._network = self._network.double()
        self._batch = whole_number("batch", batch)
        self._updates = whole_number("updates", updates, least=0)
        self._learning_rate = number_between("learning_rate", learning_rate, 1e-9, 1.0)

    def answer(self, task: Task) -> npt.NDArray[np.int64]:
        """What the policy answers at once: int64 (L,), numbers of precisions within the budgets.

        Raises:
            BudgetError: If the task has no budget, or none of its allocations could be found within it.
        """
        with torch.no_grad():
            choices = self._network.rollout(Problems.of([problem_of(task)]).double(), 1).choices[0, 0].numpy()
        return _within(task, choices)

    def _first(self, session: SearchSession) -> Trial | None:
        """The trial of the answer; None after a fault, or where the budgets of a device are not met by any repair."""
        try:
            choices = self.answer(session.task)
        except BudgetError:
            if not session.task.limits:
                raise
            return None
        return evaluate(session, choices)

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        session.say("asking the policy")
        first = self._first(session)
        if first is not None:
            reached = session.task.score.text(first.quality.score)
            session.say(f"the policy's answer reaches {reached}; searching on")
        sampler = _Sampler(session, copy.deepcopy(self._network), self._batch, self._updates, self._learning_rate)
        solver = _Solver(session)
        sources: list[_Sampler | _Solver] = [solver, sampler]
        reached_by: list[list[float]] = [[], []]
        while sources:
            session.check()
            turn = _whose_turn(reached_by, session.rng) if len(sources) == 2 else 0
            choices = sources[turn].propose()
            if choices is None:
                del sources[turn], reached_by[turn]
                continue
            trial = evaluate(session, choices)
            reached_by[turn].append(-np.inf if trial is None else session.task.score.goodness(trial.quality.score))


def _whose_turn(reached_by: list[list[float]], rng: np.random.Generator) -> int:
    """The source whose last proposals were better, mostly; in turn while there are few."""
    counts = [len(those_of_one) for those_of_one in reached_by]
    if min(counts) < _FIRST_TURNS:
        return int(np.argmin(counts))
    better = int(np.argmax([np.mean(those_of_one[-_MEMORY:]) for those_of_one in reached_by]))
    return better if rng.random() < _BETTER_SHARE else 1 - better


class _Solver:
    """Proposes what the exact solver finds best by the proxy, as the trials correct it."""

    def __init__(self, session: SearchSession) -> None:
        self._session = session
        terms = Terms(prior(session, get_proxies("kl")[0]), None)
        self._first: list[npt.NDArray[np.int64]] = good_starts(session, terms.single)[:1]
        self._candidates, self._model = Candidates(session, terms), Calibration([terms])
        self._evidence = Evidence(session)

    def propose(self) -> npt.NDArray[np.int64] | None:
        """The next choices (L,), or None if there are no more."""
        while len(proposals := self._first or self._best()):
            self._first = []
            for choices in proposals:
                self._candidates.use(choices)
                if self._session.task.allocation(choices) not in self._session.asked:
                    return choices
        return None

    def _best(self) -> list[npt.NDArray[np.int64]]:
        return list(most_promising(self._session, self._candidates, self._model, self._evidence))


class _Sampler:
    """Proposes samples of a policy, which learns from the trials of the search."""

    def __init__(
        self, session: SearchSession, network: PolicyNetwork, batch: int, updates: int, learning_rate: float
    ) -> None:
        self._session, self._network, self._batch, self._updates = session, network.train(), batch, updates
        self._problems = Problems.of([problem_of(session.task)]).double()
        self._learning_rate = learning_rate
        self._optimizer: torch.optim.Adam | None = None
        self._generator = torch.Generator().manual_seed(int(session.rng.integers(2**31)))
        self._temperature, self._learnt = 1.0, 0

    def propose(self) -> npt.NDArray[np.int64] | None:
        """The next choices (L,), or None if as good as everything within the budgets is known."""
        session = self._session
        if self._updates and len(session.trials) - self._learnt >= self._batch:
            self._learnt = len(session.trials)
            session.say(f"learning from {self._learnt} trials, temperature {self._temperature:.2f}")
            self._learn()
        fruitless = 0
        while self._temperature <= _HOTTEST:
            with torch.no_grad():
                rollouts = self._network.rollout(self._problems, _SAMPLES, self._generator, self._temperature)
            order = rollouts.log_probability[0].round(decimals=_DECIMALS).argsort(descending=True, stable=True)
            for choices in rollouts.choices[0][order].numpy():
                allocation = session.task.allocation(choices)
                if allocation not in session.asked and session.feasible(allocation):
                    return np.asarray(choices)
            session.check()
            fruitless += 1
            if fruitless >= _PATIENCE:
                if self._everything_is_known():
                    return None
                self._temperature, fruitless = self._temperature * 1.3, 0
        return None

    def _everything_is_known(self) -> bool:
        """Whether the allocations within the budgets are so few that they can be listed, and all are known."""
        task, asked = self._session.task, self._session.asked
        within = all_within(task, _FEW)
        return within is not None and all(task.allocation(choices) in asked for choices in within)

    def _learn(self) -> None:
        # Not before: making one imports torch's compiler, which takes seconds that a short search does not have.
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(self._network.parameters(), lr=self._learning_rate)
        trials = self._session.trials
        scores, losses = np.asarray([trial.quality.order for trial in trials]).T
        best = np.lexsort((losses, scores))[:_IMITATED]
        task = self._session.task
        choices = torch.from_numpy(np.stack([task.choices(trials[number].allocation) for number in best]))[None]
        # The better a trial's rank, the more it is imitated; the best tenth has most of the weight.
        shares = np.exp(-np.arange(len(best)) / max(len(trials) / 10, 1.0))
        weights = torch.from_numpy(shares / shares.sum())
        for _ in range(self._updates):
            rollouts = self._network.rollout(self._problems, choices.shape[1], given=choices)
            # Clamped, as an allocation that the policy thinks impossible would outweigh all others; the entropy keeps
            # it sampling.
            loss = -(weights * rollouts.log_probability[0].clamp(min=-60)).sum() - 0.02 * rollouts.entropy.mean()
            self._optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
            self._optimizer.step()
            with torch.no_grad():
                for parameter in self._network.parameters():
                    parameter.mul_(_STEPS).round_().div_(_STEPS)


def _within(task: Task, choices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if task.feasible(task.total_costs(task.allocation(choices))):
        return choices
    repaired = repair(task, choices, task.limits)
    if repaired is None:
        raise BudgetError(f"no allocation within the budgets on {task.device!r} was found near the policy's answer.")
    return repaired
