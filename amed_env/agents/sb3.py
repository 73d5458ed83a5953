"""One adapter for the algorithms of stable-baselines3 and sb3-contrib.

A learner first practises on the *predicted* reward, which costs no evaluation (the single-layer sensitivities that
`greedy` uses too), and then learns from true evaluations. `warm_start_steps=0` switches the practice off.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from amed_env.agents.protocol import Agent, check_options
from amed_env.agents.session import SearchSession
from amed_env.envs.layer_wise import LayerWiseEnv, RewardKind
from amed_env.errors import AgentError
from amed_env.threads import torch_threads

STALLED_EPISODES = 200
"""Episodes in a row without a new allocation after which a learner is taken to have converged."""


class SB3Agent(Agent):
    """Learns `AMED/LayerWise-v0` with an algorithm of stable-baselines3; subclasses name it.

    Args:
        warm_start_steps: Environment steps of practice on the predicted reward; None for the class's own number.
        reward: Reward of the true environment, `shaped` or `terminal`.
        gamma: Discount of learner and shaping.
        **hyperparameters: Arguments of the algorithm's constructor, in place of this class's `defaults`.

    Raises:
        UnknownNameError: If the algorithm has no such argument.
    """

    family = "learner"
    algorithm: ClassVar[str]
    defaults: ClassVar[dict[str, Any]]
    practice_environments: ClassVar[int] = 1
    model: BaseAlgorithm | None = None  # the learner of the last search
    default_warm_start_steps: ClassVar[int] = 40_000

    def __init__(
        self,
        *,
        warm_start_steps: int | None = None,
        reward: RewardKind = "shaped",
        gamma: float = 1.0,
        **hyperparameters: Any,
    ) -> None:
        if warm_start_steps is None:
            warm_start_steps = self.default_warm_start_steps
        if isinstance(warm_start_steps, bool) or not isinstance(warm_start_steps, int) or warm_start_steps < 0:
            raise AgentError(f"warm_start_steps is {warm_start_steps!r}; give a whole number, 0 for none.")
        module, _, name = self.algorithm.partition(":")
        self._class: type[Any] = getattr(importlib.import_module(module), name)
        own = {"env", "policy", "seed", "gamma", "tensorboard_log", "verbose", "self", "_init_setup_model", "device"}
        known = {
            "warm_start_steps": None,
            "reward": None,
            "gamma": None,
            **{key: None for key in inspect.signature(self._class.__init__).parameters if key not in own},
        }
        check_options(self.name, hyperparameters, known)
        self.warm_start_steps, self.reward_kind, self.gamma = warm_start_steps, reward, gamma
        self.hyperparameters = {**self.defaults, **hyperparameters}

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        with torch_threads(1):
            env = LayerWiseEnv(session.task, reward=self.reward_kind, gamma=self.gamma, measure=session.evaluate)
            model = self._model([lambda: env], session)
            if self.warm_start_steps:
                self._practise(model, session)
            if self.folder is not None:
                model.set_logger(configure(str(self.folder / "tensorboard"), ["tensorboard"]))
            self.model = model
            callback = _UntilEnded(session, len(session.task.workload))
            steps = session.limit * len(session.task.workload)
            while not session.ended and not callback.stalled:
                model.learn(steps, callback=callback, reset_num_timesteps=False, log_interval=1)

    def _model(self, makers: list[Callable[[], LayerWiseEnv]], session: SearchSession) -> BaseAlgorithm:
        environments = DummyVecEnv([lambda make=make: Monitor(make()) for make in makers])  # type: ignore[misc]
        sized = self._sized(len(session.task.workload), len(makers))
        try:
            model: BaseAlgorithm = self._class(
                "MlpPolicy", environments, seed=session.seed, gamma=self.gamma, device="cpu", **sized
            )
        except Exception as error:  # the library checks hyperparameters with assertions and errors of many types
            raise AgentError(
                f"agent {self.name!r} cannot be made with {sized}: {type(error).__name__}: {error}."
            ) from error
        return model

    def _sized(self, layers: int, environments: int) -> dict[str, Any]:
        """Hyperparameters of the constructor, for episodes of `layers` steps."""
        return dict(self.hyperparameters)

    def _practise(self, model: BaseAlgorithm, session: SearchSession) -> None:
        """Train a copy on the predicted reward and take over its weights; its optimiser and memory are left behind."""
        task, steps = session.task, self.warm_start_steps

        def make() -> LayerWiseEnv:
            return LayerWiseEnv(task, reward="predicted", gamma=self.gamma)

        practised = self._model([make] * self.practice_environments, session)
        practised.learn(steps, callback=_SayProgress(session, steps))
        model.policy.load_state_dict(practised.policy.state_dict())
        session.say("")


class _SayProgress(BaseCallback):
    """Keeps the note of the session up to date while a model practises."""

    def __init__(self, session: SearchSession, steps: int) -> None:
        super().__init__()
        self._session, self._steps, self._said = session, steps, -1

    def _on_step(self) -> bool:
        percent = min(100, 100 * self.num_timesteps // self._steps)
        if percent != self._said:
            self._said = percent
            self._session.say(f"practising on the predicted loss, {percent} %")
        return True


class _UntilEnded(BaseCallback):
    """Stops the learner when the evaluations are used up, or when it only repeats itself.

    Entropy is steered as well, for learners that have a bonus for it: repeated allocations cost no evaluation and teach
    nothing new, so where most episodes of a rollout repeat old ones the bonus grows, and it shrinks back otherwise.
    """

    def __init__(self, session: SearchSession, layers: int) -> None:
        super().__init__()
        self._session, self._layers = session, layers
        self._last_new = 0  # step at which the last new allocation came
        self._known = 0
        self._rollout_start = (0, 0)
        self._least_entropy: float | None = None

    @property
    def stalled(self) -> bool:
        """Whether the learner has brought nothing new for a long time."""
        return self.num_timesteps - self._last_new > STALLED_EPISODES * self._layers

    def _on_step(self) -> bool:
        if self._session.evaluations > self._known:
            self._known, self._last_new = self._session.evaluations, self.num_timesteps
        return not self._session.ended and not self.stalled

    def _on_rollout_start(self) -> None:
        self._rollout_start = (self.num_timesteps, self._session.evaluations)

    def _on_rollout_end(self) -> None:
        best = self._session.best()
        if best is not None:
            self.logger.record("search/best_accuracy", best.quality.accuracy)
        self.logger.record("search/evaluations", self._session.evaluations)
        model: Any = self.model
        bonus = getattr(model, "ent_coef", None)
        if not isinstance(bonus, float):
            return
        if self._least_entropy is None:
            self._least_entropy = bonus
        episodes = (self.num_timesteps - self._rollout_start[0]) / self._layers
        new = self._session.evaluations - self._rollout_start[1]
        if episodes > 0:
            factor = 1.5 if new < 0.5 * episodes else 1 / 1.5
            model.ent_coef = min(1.0, max(self._least_entropy, bonus * factor))
        self.logger.record("search/entropy_bonus", model.ent_coef)


class _OnPolicyAgent(SB3Agent):
    """Learners that collect whole episodes before each update."""

    practice_environments = 16
    episodes_per_update: ClassVar[int] = 16

    def _sized(self, layers: int, environments: int) -> dict[str, Any]:
        sized = dict(self.hyperparameters)
        if "n_steps" not in self.hyperparameters:
            # Practice has many environments of a few episodes each, the search one environment of as many.
            sized["n_steps"] = layers * (4 if environments > 1 else self.episodes_per_update)
        sized.setdefault("batch_size", max(2, sized["n_steps"] * environments // 4))
        return sized


class PPOAgent(_OnPolicyAgent):
    """PPO; forbidden actions are clamped by the environment."""

    name = "ppo"
    algorithm = "stable_baselines3:PPO"
    defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 1e-3,
        "n_epochs": 8,
        "gae_lambda": 0.95,
        "ent_coef": 0.005,
        "max_grad_norm": 0.5,
    }


class MaskablePPOAgent(_OnPolicyAgent):
    """PPO whose policy never proposes what would break the budget."""

    name = "maskable-ppo"
    algorithm = "sb3_contrib:MaskablePPO"
    defaults: ClassVar[dict[str, Any]] = PPOAgent.defaults


class DQNAgent(SB3Agent):
    """DQN; forbidden actions are clamped by the environment. One width for weights and activations only."""

    name = "dqn"
    default_warm_start_steps = 25_000  # a step of DQN costs several times one of PPO
    algorithm = "stable_baselines3:DQN"
    defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 5e-4,
        "buffer_size": 50_000,
        "learning_starts": 100,
        "batch_size": 64,
        "train_freq": 4,
        "gradient_steps": 1,
        "target_update_interval": 500,
        "exploration_initial_eps": 0.3,
        "exploration_fraction": 0.5,
        "exploration_final_eps": 0.1,
    }

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`.

        Raises:
            AgentError: If weights and activations are chosen apart, which DQN's single discrete action cannot.
        """
        if session.task.separate:
            raise AgentError(
                "dqn needs one discrete action, but this task chooses weights and activations apart; use "
                "ppo or maskable-ppo, or leave them tied."
            )
        super().explore(session)
