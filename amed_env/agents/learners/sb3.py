"""One adapter for the algorithms of stable-baselines3 and sb3-contrib.

A learner may first practise on the *predicted* reward, which costs no evaluation (the single-layer sensitivities that
`greedy` uses too), and then learns from true evaluations. `agents/learners.py` has the algorithms by name, with
hyperparameters of their own; any other class of the library has those of the library.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib import QRDQN
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from amed_env.agents.learners.callbacks import SayProgress, UntilEnded
from amed_env.agents.learners.hyperparameters import check_types, constructor_options
from amed_env.agents.learners.masking import ObservedMask, masked, masks_itself
from amed_env.agents.learners.vec_continuous import ContinuousVecEnv
from amed_env.agents.learners.vec_env import LayerWiseVecEnv
from amed_env.agents.options import check_options, number_between, true_or_false, whole_number
from amed_env.agents.protocol import Agent
from amed_env.agents.session import SearchSession
from amed_env.envs.layer_wise import LayerWiseEnv, RewardKind
from amed_env.errors import AgentError, AmedError
from amed_env.support.registry import import_object
from amed_env.support.threads import torch_threads, unchecked_distributions
from amed_env.tasks.task import Task

_SCHEDULE_EVALUATIONS = 500
"""Evaluations that schedules of the library (exploration, for example) go by: those of a run of the benchmark. Going by
those that are allowed, a search that is continued with more of them would have learned otherwise from the beginning."""
_OWN_OPTIONS = (
    "policy", "warm_start_steps", "reward", "masks", "gamma", "environments", "practice_environments",
)  # fmt: skip


def silent_logger() -> Logger:
    """A logger that writes nothing; the library's own makes an empty folder among the temporary files for each run."""
    return Logger(folder=None, output_formats=[])


@contextmanager
def divergence_named(agent: str, model: BaseAlgorithm) -> Iterator[None]:
    """Say of a learner whose weights are no numbers any more that it diverged, whatever its library raises then.

    Raises:
        AgentError: If it did; errors of learners that are sound pass.
    """
    try:
        yield
    except AmedError:
        raise
    except Exception as error:
        if all(bool(torch.isfinite(weights).all()) for weights in model.policy.parameters()):
            raise
        raise AgentError(
            f"agent {agent!r} diverged after {model.num_timesteps:,} steps: weights of its network are NaN or "
            "infinite. Look at its hyperparameters, above all learning_rate, ent_coef and max_grad_norm; finished "
            "trials are kept, and --resume goes on from them."
        ) from error


class SB3Agent(Agent):
    """Learns `AMED/LayerWise-v0` with an algorithm of stable-baselines3; subclasses name it.

    Args:
        algorithm: The algorithm, or its import path; None for the class's own.
        policy: Name of its policy.
        warm_start_steps: Environment steps of practice on the predicted reward; None for the class's own number.
        reward: Reward of the true environment, `shaped` or `terminal`.
        masks: Whether forbidden actions are masked; otherwise the environment replaces them. None masks where it can.
        gamma: Discount of learner and shaping.
        environments: Episodes that are played side by side; None for the class's own number.
        practice_environments: The same for the practice.
        **hyperparameters: Arguments of the algorithm's constructor, in place of this class's `defaults`.

    Raises:
        AgentError: If it is no algorithm of stable-baselines3, cannot mask, or a value is of the wrong type.
        UnknownNameError: If the algorithm has no such argument.
    """

    family = "learner"
    needs = "sensitivities"
    algorithm: ClassVar[str | None] = None
    defaults: ClassVar[dict[str, Any]] = {}
    default_masks: ClassVar[bool | None] = None
    default_warm_start_steps: ClassVar[int] = 0
    default_environments: ClassVar[int] = 1
    default_practice_environments: ClassVar[int] = 1
    model: BaseAlgorithm | None = None  # the learner of the last search

    def __init__(
        self,
        algorithm: type[BaseAlgorithm] | str | None = None,
        *,
        policy: str = "MlpPolicy",
        warm_start_steps: int | None = None,
        reward: RewardKind = "shaped",
        masks: bool | None = None,
        gamma: float = 1.0,
        environments: int | None = None,
        practice_environments: int | None = None,
        **hyperparameters: Any,
    ) -> None:
        if warm_start_steps is None:
            warm_start_steps = self.default_warm_start_steps
        if reward not in ("shaped", "terminal"):
            raise AgentError(f"reward {reward!r} is unknown; a learner's true reward is 'shaped' or 'terminal'.")
        algorithm = self.algorithm if algorithm is None else algorithm
        self._class: type[Any] = import_object(algorithm, "algorithm") if isinstance(algorithm, str) else algorithm  # type: ignore[assignment]
        if not (isinstance(self._class, type) and issubclass(self._class, BaseAlgorithm)):
            raise AgentError(
                f"{algorithm!r} is no algorithm; expected a subclass of stable-baselines3's BaseAlgorithm."
            )
        if not issubclass(self._class, OffPolicyAlgorithm | OnPolicyAlgorithm):
            raise AgentError(f"{self._class.__name__} is neither an on-policy nor an off-policy algorithm.")
        if not isinstance(policy, str) or policy not in self._class.policy_aliases:
            known = ", ".join(self._class.policy_aliases)
            raise AgentError(f"policy is {policy!r}; {self._class.__name__} has {known}.")
        check_options(self.name, hyperparameters, [*_OWN_OPTIONS, *constructor_options(self._class)])
        check_types(self.name, self._class, hyperparameters)
        self.warm_start_steps = whole_number("warm_start_steps", warm_start_steps, least=0)
        self.reward_kind, self.policy = reward, policy
        self.gamma = number_between("gamma", gamma, 0.0, 1.0)
        self.masks = self._masked(self.default_masks if masks is None else masks)
        self.environments = whole_number(
            "environments", self.default_environments if environments is None else environments
        )
        if practice_environments is None:
            practice_environments = self.default_practice_environments
        self.practice_environments = whole_number("practice_environments", practice_environments)
        self.hyperparameters = {**self.defaults, **hyperparameters}

    def _masked(self, masks: bool | None) -> bool:
        """Whether the learner gets masks; takes the algorithm's masked variant for it."""
        if masks is not None:
            true_or_false("masks", masks)
        if masks_itself(self._class):
            if masks is False:
                raise AgentError(f"{self._class.__name__} always masks; take ppo without masks.")
            return True
        if masks is False:
            return False
        variant = masked(self._class)
        if variant is None:
            if masks:
                raise AgentError(
                    f"there are no masks for {self._class.__name__}; write masks: false, and forbidden actions are "
                    "replaced by the nearest allowed ones."
                )
            return False
        self._class = variant
        return True

    @property
    def continuous(self) -> bool:
        """Whether the algorithm wants continuous actions, as those off-policy do that are no Q-learning."""
        return issubclass(self._class, OffPolicyAlgorithm) and not issubclass(self._class, DQN | QRDQN)

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        with torch_threads(1), unchecked_distributions():
            model = self._model(self.environment(session, self.environments), session)
            if self.warm_start_steps:
                self._practise(model, session)
            if self.folder is not None:
                model.set_logger(configure(str(self.folder / "tensorboard"), ["tensorboard"]))
            self.model = model
            steps_an_episode = self.episode_steps(session.task)
            callback = UntilEnded(session, steps_an_episode)
            steps = _SCHEDULE_EVALUATIONS * steps_an_episode
            while not session.ended and not callback.stalled:
                with divergence_named(self.name, model):
                    model.learn(steps, callback=callback, reset_num_timesteps=False, log_interval=1)

    def environment(self, session: SearchSession, count: int) -> VecEnv:
        """Environments with the true reward, evaluated through a session."""
        env = LayerWiseEnv(session.task, reward=self.reward_kind, gamma=self.gamma, measure=session.evaluate)

        def rewards(choices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
            limits = vector.batch.limits()
            values = np.zeros(len(choices))
            for row, chosen in enumerate(choices):
                session.check_device()  # a dead device is not asked for the other episodes
                values[row] = env.true_reward(chosen, {metric: float(of[row]) for metric, of in limits.items()})
            return values

        vector = LayerWiseVecEnv(count, env, reward_of=rewards)
        return self.acting(vector)

    def practice(self, task: Task) -> VecEnv:
        """Environments with the predicted reward, shaped as the true one is."""
        env = LayerWiseEnv(task, reward=self.reward_kind, gamma=self.gamma)
        layers = np.arange(len(task.workload))

        def rewards(choices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
            return np.asarray(-np.log1p(task.predicted_loss[layers, choices].sum(axis=1)))

        return self.acting(LayerWiseVecEnv(self.practice_environments, env, reward_of=rewards))

    def acting(self, environments: LayerWiseVecEnv) -> VecEnv:
        """Environments as the algorithm acts in them."""
        return ContinuousVecEnv(environments) if self.continuous else environments

    def episode_steps(self, task: Task) -> int:
        """Steps that an episode has; a continuous action is one number, and widths that are apart need two."""
        return len(task.workload) * (2 if self.continuous and task.separate else 1)

    def _model(self, environments: VecEnv, session: SearchSession) -> BaseAlgorithm:
        sized = self._sized(self.episode_steps(session.task), environments.num_envs)
        if self.masks and not masks_itself(self._class):
            assert isinstance(environments, LayerWiseVecEnv)
            sized["policy_kwargs"] = {
                **(sized.get("policy_kwargs") or {}),
                "mask": ObservedMask.of(environments.single),
            }
        try:
            model: BaseAlgorithm = self._class(
                self.policy, environments, seed=session.seed, gamma=self.gamma, device="cpu", **sized
            )
        except Exception as error:  # the library checks hyperparameters with assertions and errors of many types
            raise AgentError(
                f"agent {self.name!r} cannot be made with {sized}: {type(error).__name__}: {error}."
            ) from error
        if not model.verbose and model.tensorboard_log is None:
            model.set_logger(silent_logger())
        return model

    def _sized(self, steps: int, environments: int) -> dict[str, Any]:
        """Hyperparameters of the constructor, for episodes of a number of steps."""
        return copy.deepcopy(self.hyperparameters)  # the library writes into `policy_kwargs`

    def _practise(self, model: BaseAlgorithm, session: SearchSession) -> None:
        """Train a copy on the predicted reward and take over its weights; its optimiser and memory are left behind."""
        practised = self._model(self.practice(session.task), session)
        with divergence_named(self.name, practised):
            practised.learn(self.warm_start_steps, callback=SayProgress(session, self.warm_start_steps))
        model.policy.load_state_dict(practised.policy.state_dict())
        session.say("")
        self._answer(practised, session)

    def _answer(self, practised: BaseAlgorithm, session: SearchSession) -> None:
        """Evaluate what the practised policy does without any chance."""
        environments = self.environment(session, 1)
        observations: Any = environments.reset()
        for _ in range(self.episode_steps(session.task)):
            masks: dict[str, Any] = (
                {"action_masks": get_action_masks(environments)} if masks_itself(self._class) else {}
            )
            actions, _ = practised.predict(observations, deterministic=True, **masks)
            observations, _, _, _ = environments.step(actions)
