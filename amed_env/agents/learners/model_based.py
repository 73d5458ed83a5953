"""Model-based reinforcement learning: a policy that is trained on a learned model of the reward.

True evaluations are what counts, steps against a model are cheap. So, as in Dyna (Sutton 1991), all trials of the
session train a model of the reward, and the policy (PPO with masks) is trained on many episodes of the model between
two batches of true evaluations. Its reward is the model's mean plus some of its deviation, so it moves on to where the
model is hopeful or unsure, and repeating itself gains nothing. Which of its proposals are evaluated is drawn by
Thompson sampling: each gets a random number from the model's distribution of its reward, and the highest win.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sb3_contrib import MaskablePPO

from amed_env.agents.learners.reward_model import RewardModel
from amed_env.agents.learners.sb3 import silent_logger
from amed_env.agents.learners.vec_env import LayerWiseVecEnv
from amed_env.agents.options import number_between, whole_number
from amed_env.agents.protocol import Agent
from amed_env.agents.searchers.moves import evaluate, random_choices, tolerant
from amed_env.agents.session import SearchSession
from amed_env.envs.layer_wise import LayerWiseEnv
from amed_env.errors import BackendError
from amed_env.problem.constraints import cheapest_choices
from amed_env.problem.objective import final_reward
from amed_env.support.threads import torch_threads

Choices = npt.NDArray[np.int64]

_WORST_REWARD = -4.0
"""Rewards of the policy are clipped here: how hopeless a proposal is teaches nothing."""
_MOST_KEPT = 512  # proposals that wait for their turn
_MOST_EMPTY_ROUNDS = 20  # rounds in a row without anything new, after which the space counts as exhausted


class ModelPPOAgent(Agent):
    """PPO with masks, trained on a Gaussian process of the reward that is fitted to all trials.

    Args:
        batch: True evaluations between two fits of the model.
        first: Allocations that are evaluated first: the exact solutions of the proxy, as it is and with its
            sensitivities disturbed.
        rollouts: Updates of the policy between two batches.
        environments: Episodes of an update.
        random_proposals: Random allocations among the proposals of each batch.
        disturbance: Standard deviation of the logarithm of the disturbed sensitivities.
        optimism: How many of the model's standard deviations count as reward for the policy.
        learning_rate: Of the policy.
        entropy: Weight of the policy's entropy.
        epochs: Passes over an update's episodes.

    Raises:
        AgentError: If an option is out of range.
    """

    name = "model-ppo"
    family = "learner"
    saw = ("eyeriss-ws latency=0.35", "eyeriss-ws latency=0.5", "memory latency=0.35", "eyeriss energy=0.45")

    def __init__(
        self,
        *,
        batch: int = 10,
        first: int = 10,
        rollouts: int = 2,
        environments: int = 64,
        random_proposals: int = 16,
        disturbance: float = 0.5,
        optimism: float = 1.0,
        learning_rate: float = 1e-3,
        entropy: float = 0.05,
        epochs: int = 4,
    ) -> None:
        self.batch = whole_number("batch", batch)
        self.first = whole_number("first", first, least=2)  # one trial says nothing about spread
        self.rollouts = whole_number("rollouts", rollouts, least=0)
        self.environments = whole_number("environments", environments)
        self.random_proposals = whole_number("random_proposals", random_proposals, least=0)
        self.epochs = whole_number("epochs", epochs)
        self.disturbance = number_between("disturbance", disturbance, 0.0)
        self.optimism = number_between("optimism", optimism, 0.0)
        self.learning_rate = number_between("learning_rate", learning_rate, 0.0)
        self.entropy = number_between("entropy", entropy, 0.0)

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        with torch_threads(1):
            search = _Search(self, session)
            search.evaluate_first()
            empty = 0
            while empty < _MOST_EMPTY_ROUNDS:
                empty = 0 if search.round() else empty + 1


class _Search:
    """One search: trials, model, policy, and the proposals that wait."""

    def __init__(self, options: ModelPPOAgent, session: SearchSession) -> None:
        self.options, self.session, self.task = options, session, session.task
        self.env = LayerWiseEnv(self.task, reward="predicted")
        widths = np.log2(np.asarray(self.task.precisions, dtype=np.float64))
        if (widths[:, 0] == widths[:, 1]).all():
            widths = widths[:, :1]
        self.model = RewardModel(widths, len(self.task.workload))
        self.known: dict[bytes, float] = {}  # choices to reward; what failed has none
        self.trials: list[Choices] = []
        self.failed: set[bytes] = set()
        self.waiting: dict[bytes, Choices] = {}
        self.next_rates = 0
        environments = LayerWiseVecEnv(options.environments, self.env, reward_of=self._imagined)
        self.policy = MaskablePPO(
            "MlpPolicy",
            environments,
            n_steps=len(self.task.workload),
            batch_size=max(2, len(self.task.workload) * options.environments // 2),
            n_epochs=options.epochs,
            learning_rate=options.learning_rate,
            ent_coef=options.entropy,
            gamma=1.0,  # the reward comes at the end alone
            gae_lambda=0.95,
            seed=session.seed,
            device="cpu",
        )
        self.policy.set_logger(silent_logger())

    def evaluate_first(self) -> None:
        """Evaluate the exact solutions of the proxy, as it is and disturbed, then random allocations."""
        for attempt in range(3 * self.options.first):  # disturbed solutions often repeat each other
            if len(self.trials) >= self.options.first:
                break
            choices = self._proxy_solution(disturbed=attempt > 0)
            if choices is not None:
                self._evaluate(choices)
        for _ in range(100):
            if len(self.trials) >= 2:
                break
            choices = self._random()
            if choices is not None:
                self._evaluate(choices)

    def _proxy_solution(self, disturbed: bool) -> Choices | None:
        loss = self.task.predicted_loss
        if disturbed:
            loss = loss * np.exp(self.session.rng.normal(0.0, self.options.disturbance, loss.shape))
        costs, limits = self.task.device_costs.bounded_limits(self.task.limits)
        return cheapest_choices(costs, limits, loss, self.task.choosable)

    def round(self) -> bool:
        """Fit the model, train the policy on it, evaluate the best proposals; False if there was none."""
        if len(self.trials) < 2:
            return False
        fit_rates = len(self.trials) >= self.next_rates
        if fit_rates:
            # Fitting rates takes longer than conditioning on trials, so it is done ever less often.
            self.next_rates = int(1.5 * len(self.trials)) + 1
        choices = np.stack(self.trials)
        self.model.fit(choices, self._prior(choices), np.asarray(list(self.known.values())), rates=fit_rates)
        if self.options.rollouts:
            steps = len(self.task.workload) * self.options.environments
            self.policy.learn(self.options.rollouts * steps, reset_num_timesteps=False)
        for _ in range(self.options.random_proposals):
            drawn = self._random()
            if drawn is not None:
                self._propose(drawn[None])
        if not self.waiting:
            return False
        keys = list(self.waiting)
        waiting = np.stack(list(self.waiting.values()))
        mean, deviation = self.model.predict(waiting, self._prior(waiting))
        # Thompson sampling found more near-optimal allocations than expected improvement (docs/decisions.md, 59).
        drawn_rewards = mean + deviation * self.session.rng.standard_normal(len(mean))
        order = np.argsort(-drawn_rewards, kind="stable")
        chosen = [self.waiting.pop(keys[position]) for position in order[: self.options.batch]]
        for position in np.argsort(-(mean + self.options.optimism * deviation), kind="stable")[_MOST_KEPT:]:
            self.waiting.pop(keys[position], None)
        return sum(map(self._evaluate, chosen)) > 0

    def _random(self) -> Choices | None:
        """A random allocation within the budgets, or None if none was met or the device failed."""
        return tolerant(self.session, lambda: random_choices(self.task, self.session.rng))

    def _prior(self, choices: Choices) -> npt.NDArray[np.float64]:
        """What sensitivities predict: -ln(1 + loss), (N,)."""
        layers = np.arange(choices.shape[1])
        return np.asarray(-np.log1p(self.task.predicted_loss[layers, choices].sum(axis=1)))

    def _imagined(self, choices: Choices) -> npt.NDArray[np.float64]:
        """Rewards of the policy's allocations by the model; what is new among them becomes a proposal."""
        new = self._propose(choices)
        mean, deviation = self.model.predict(choices, self._prior(choices))
        best = max(self.known.values())
        hope = (mean + self.options.optimism * deviation - best) / self.model.spread
        return np.where(new, np.maximum(hope, _WORST_REWARD), _WORST_REWARD)

    def _propose(self, choices: Choices) -> npt.NDArray[np.bool_]:
        """Keep what was not evaluated yet; returns which that is, (N,)."""
        new = np.ones(len(choices), dtype=bool)
        for position, row in enumerate(choices):
            key = row.tobytes()
            new[position] = key not in self.known and key not in self.failed
            if new[position] and key not in self.waiting:
                self.waiting[key] = row.copy()
        return new

    def _evaluate(self, choices: Choices) -> bool:
        """Evaluate within the budgets; False if it brought nothing new."""
        try:
            within, repaired = self.env.within_limits(self.task.nearest_choosable(choices))
        except BackendError:
            self.session.check_device()
            self.failed.add(choices.tobytes())
            return False
        key, allocation = within.tobytes(), self.task.allocation(within)
        if repaired:
            self.failed.add(choices.tobytes())
        if key in self.known or key in self.failed:
            return False
        if not self.session.feasible(allocation):  # where costs do not add up, a repair may find no way
            self.failed.add(key)
            return False
        trial = evaluate(self.session, within)
        if trial is None:
            self.failed.add(key)
            return True
        self.known[key] = final_reward(self.task.gain(trial.quality), trial.costs, self.task.limits)
        self.trials.append(within)
        return True
