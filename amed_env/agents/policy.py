"""The goal-conditioned policy as an agent: an answer without any evaluation, then samples, learning from each trial."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from amed_env.agents.moves import evaluate
from amed_env.agents.protocol import Agent
from amed_env.agents.session import SearchSession
from amed_env.constraints import cheapest_choices
from amed_env.errors import InputError
from amed_env.policies.network import PolicyNetwork, Problems
from amed_env.policies.problem import problem_of
from amed_env.policies.saved import fingerprint, load_policy
from amed_env.repair import repair
from amed_env.task import Task

_SAMPLES = 64
_PATIENCE = 20
"""Draws without anything new after which it draws more widely."""
_HOTTEST = 100.0
"""Temperature at which all choices are equally probable."""


class PolicyAgent(Agent):
    """Asks a trained policy; what it proposes first needs no evaluation.

    The second evaluation is the optimum of the additive proxy. Afterwards allocations are sampled from the policy, most
    probable ones first, and the policy learns from its own trials: the better a trial's rank, the more probable it
    becomes (self-imitation).

    Args:
        policy: Folder of a saved policy; None is the one of the package.
        batch: Evaluations between two updates.
        updates: Steps of learning at each of them; 0 learns nothing.
        learning_rate: Of Adam.

    Raises:
        AgentError: If the policy cannot be read.
        InputError: If an option is out of range.
    """

    saw = ("quality tables of the networks on its card, on other devices and budgets",)
    name = "policy"
    family = "learner"
    description = "a goal-conditioned policy, trained beforehand: an instant answer for any budget, then samples"

    def __init__(
        self, policy: str | Path | None = None, batch: int = 10, updates: int = 10, learning_rate: float = 1e-3
    ) -> None:
        if batch < 1 or updates < 0 or not 0 < learning_rate < 1:
            raise InputError("policy: give a batch of at least 1, updates of at least 0, a learning_rate from 0 to 1.")
        self._network, self.card = load_policy(None if policy is None else Path(str(policy)))
        self.recipe = {"policy": fingerprint(self._network)}  # a search with another policy is another search
        self._batch, self._updates, self._learning_rate = batch, updates, learning_rate

    def answer(self, task: Task) -> npt.NDArray[np.int64]:
        """What the policy answers at once: int64 (L,), numbers of precisions within the budgets.

        Raises:
            BudgetError: If the task has no budget, or none of its allocations could be found within it.
        """
        with torch.no_grad():
            choices = self._network.rollout(Problems.of([problem_of(task)]), 1).choices[0, 0].numpy()
        return _within(task, choices)

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        task = session.task
        session.say("asking the policy")
        evaluate(session, self.answer(task))
        solved = _proxy_optimum(task)  # what a network that the policy never saw is better served with
        if solved is not None:
            evaluate(session, solved)
        problems = Problems.of([problem_of(task)])
        network = copy.deepcopy(self._network).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=self._learning_rate)
        generator = torch.Generator().manual_seed(int(session.rng.integers(2**31)))
        temperature, fruitless, trials = 1.0, 0, 0
        while True:
            session.check()
            with torch.no_grad():
                rollouts = network.rollout(problems, _SAMPLES, generator, temperature)
            order = rollouts.log_probability[0].argsort(descending=True, stable=True)
            new = False
            for choices in rollouts.choices[0][order].numpy():
                if not session.knows(task.allocation(choices)) and session.feasible(task.allocation(choices)):
                    evaluate(session, choices)
                    new = True
                    break
            fruitless = 0 if new else fruitless + 1
            if fruitless >= _PATIENCE:
                if temperature > _HOTTEST:
                    return  # as good as everything within the budgets is known
                temperature, fruitless = temperature * 1.3, 0
            if self._updates and new and len(session.trials) - trials >= self._batch:
                trials = len(session.trials)
                session.say(f"learning from {trials} trials, temperature {temperature:.2f}")
                self._learn(session, network, optimizer, problems)

    def _learn(
        self, session: SearchSession, network: PolicyNetwork, optimizer: torch.optim.Optimizer, problems: Problems
    ) -> None:
        task = session.task
        choices = torch.from_numpy(np.stack([task.choices(trial.allocation) for trial in session.trials]))[None]
        losses = np.asarray([trial.quality.loss for trial in session.trials])
        accuracies = np.asarray([trial.quality.accuracy for trial in session.trials])
        order = np.lexsort((losses, -accuracies))
        ranks = np.empty(len(order))
        ranks[order] = np.arange(len(order))
        # The better a trial's rank, the more it is imitated; the best tenth has most of the weight.
        weights = torch.from_numpy(np.exp(-ranks / max(len(ranks) / 10, 1.0))).float()
        weights = weights / weights.sum()
        for _ in range(self._updates):
            rollouts = network.rollout(problems, choices.shape[1], given=choices)
            loss = -(weights * rollouts.log_probability[0].clamp(min=-60)).sum() - 0.02 * rollouts.entropy.mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()


def _proxy_optimum(task: Task) -> npt.NDArray[np.int64] | None:
    """The allocation of the least predicted loss within the budgets, where costs add up."""
    if not all(metric in task.costs for metric in task.limits):
        return None
    limits = np.asarray(list(task.limits.values()))
    return cheapest_choices(
        np.stack([task.costs[metric] for metric in task.limits]), limits, task.predicted_loss, task.choosable
    )


def _within(task: Task, choices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if task.feasible(task.total_costs(task.allocation(choices))):
        return choices
    repaired = repair(task, choices, task.limits)
    return choices if repaired is None else repaired
