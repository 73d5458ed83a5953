"""`AMED/LayerWise-v0` as a Gymnasium vector environment that steps all of its environments at once."""

from __future__ import annotations

import logging
import operator
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from amed_env.envs.base import budget_option
from amed_env.envs.batch import LayerWiseBatch, why_not
from amed_env.envs.layer_wise import LayerWiseEnv
from amed_env.errors import InputError

logger = logging.getLogger(__name__)

Observations = npt.NDArray[np.float32]
_GENERATOR = ("np_random", "np_random_seed")
_OF_ONE_EPISODE = {"reset", "step", "render", "set_wrapper_attr", "true_reward", "within_limits"}
"""What would act on the episode of a single environment, of which those that are stepped together have none."""


def shared_attribute(env: LayerWiseEnv, name: str) -> Any:
    """What environments that are stepped together all have under a name.

    Args:
        env: The environment that they are like.
        name: A public attribute that does not depend on the episode.

    Raises:
        AttributeError: If there is none of this name, or it would be another one in each environment.
    """
    if name.startswith("_") or name in _OF_ONE_EPISODE:
        raise AttributeError(
            f"environments that are stepped together have no {name!r} each; use the methods of the vector environment."
        )
    return env.get_wrapper_attr(name)


class LayerWiseVectorEnv(VectorEnv[Observations, Any, npt.NDArray[Any]]):
    """N environments of `AMED/LayerWise-v0` without a loop over them.

    ## Description
    Quality must come from a table (tasks named `tabular/…`) and costs must add up, or the reward must be `predicted`.
    Each environment is what `LayerWiseEnv` is, but for the following.

    ## Seeds
    One generator draws the budgets of all environments, so that equal seeds give equal vectors of budgets. A list of N
    seeds makes one generator of all of them; for None a seed is drawn from the generator that was used before.
    `reset(options={"budget": …})` takes one budget for all, or a sequence of N.

    ## Next-step autoreset
    As in all vector environments of Gymnasium by default, the step after the last one of an episode ignores its
    actions, begins the next episodes and returns their first observations with rewards 0. (Stable-baselines3 resets in
    the same step: `amed_env.agents.learners.vec_env.LayerWiseVecEnv`.)

    ## Information
    Arrays with a row for each environment, and beside each `key` a mask `_key`. There is no `allocation`; `choices` is
    int64 (N, L), and `task.allocation` makes one of a row.

    Args:
        num_envs: N.
        **options: Those of `LayerWiseEnv`.

    Raises:
        InputError: If many environments cannot be stepped at once; the message says why.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, num_envs: int = 1, **options: Any) -> None:
        self._setup(LayerWiseEnv(**options), num_envs)

    @classmethod
    def of(cls, env: LayerWiseEnv, num_envs: int) -> LayerWiseVectorEnv:
        """Environments like a given one."""
        made = cls.__new__(cls)
        made._setup(env, num_envs)
        return made

    def _setup(self, env: LayerWiseEnv, num_envs: int) -> None:
        self.batch = LayerWiseBatch(env, num_envs)
        self.task, self.num_envs = env.task, num_envs
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space
        self.observation_space = batch_space(env.observation_space, num_envs)
        self.action_space = batch_space(env.action_space, num_envs)
        self._started = False

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start N episodes.

        Args:
            seed: Seeds the drawing of budgets: one whole number, or a list of N, each of which may be None.
            options: `{"budget": …}`: one budget for all, or a sequence of N.

        Raises:
            InputError: If an option is unknown, or seeds are not N whole numbers of at least 0.
            BudgetError: If a budget cannot be met.
        """
        budget = budget_option(options)
        if isinstance(seed, list | tuple | np.ndarray):
            self._seed_with(seed)
        else:
            super().reset(seed=seed)
        limits = self.batch.draw_limits(self.np_random) if budget is None else self.batch.limits_of(budget)
        self.batch.start(limits)
        self._started = True
        return self.batch.observe(), self._with_masks({"limits": self.batch.limits()})

    def _seed_with(self, seeds: Sequence[int | None] | npt.NDArray[Any]) -> None:
        """One generator from N seeds; with nothing but None the generator stays."""
        if len(seeds) != self.num_envs:
            raise InputError(f"{len(seeds)} seeds for {self.num_envs} environments; give one for each, or one in all.")
        numbers = [None if seed is None else _whole(seed) for seed in seeds]
        if any(number is not None for number in numbers):
            drawn = self.np_random.integers(2**32, size=self.num_envs).tolist() if None in numbers else numbers
            entropy = [new if number is None else number for number, new in zip(numbers, drawn, strict=True)]
            self.np_random = np.random.default_rng(np.random.SeedSequence(entropy))

    def step(
        self, actions: Any
    ) -> tuple[Observations, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        """Set the precision of the current layer everywhere; after the last one, begin the next episodes instead.

        Raises:
            InputError: If an action is not in the action space, or `reset` was never called.
        """
        if not self._started:
            raise InputError("call reset() before the first step().")
        never = np.zeros(self.num_envs, dtype=bool)
        if self.batch.over:
            observations, info = self.reset()
            return observations, np.zeros(self.num_envs), never, never.copy(), info
        rewards, details = self.batch.step(actions)
        ended = np.full(self.num_envs, self.batch.over)
        return self.batch.observe(), rewards, ended, never, self._with_masks(details)

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """What may be done now: bool (N, P), or (N, 2W) for `MultiDiscrete`."""
        return self.batch.masks()

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What each environment answers: the result of a method, or an attribute, as in `SyncVectorEnv`.

        Args:
            name: Name of the method or attribute.
            *args: Positional arguments of the method.
            **kwargs: Keyword arguments of the method.

        Returns:
            N answers; the rows of the masks, bool (P,) or (2W,) each, for `action_masks`.

        Raises:
            AttributeError: If there is none of this name, or it acts on the episode of a single environment.
        """
        if name == "action_masks":
            return tuple(self.action_masks(*args, **kwargs))
        attribute = getattr(self, name) if name in _GENERATOR else shared_attribute(self.batch.env, name)
        return tuple(attribute(*args, **kwargs) if callable(attribute) else attribute for _ in range(self.num_envs))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each environment: N values.

        Raises:
            AttributeError: As in `call`.
        """
        return self.call(name)

    def _with_masks(self, info: dict[str, Any]) -> dict[str, Any]:
        """Gymnasium's convention: beside each key a mask of the environments that have it."""
        everywhere = np.ones(self.num_envs, dtype=bool)
        masked: dict[str, Any] = {}
        for key, value in info.items():
            masked[key] = self._with_masks(value) if isinstance(value, dict) else value
            masked[f"_{key}"] = everywhere
        return masked


def _whole(seed: Any) -> int:
    """A seed of one environment.

    Raises:
        InputError: If it is no whole number of at least 0.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise InputError(f"the seed {seed!r} of an environment is no whole number of at least 0; give one, or None.")
    return number


def make_layer_wise_vector(num_envs: int = 1, **options: Any) -> VectorEnv[Observations, Any, npt.NDArray[Any]]:
    """What `gymnasium.make_vec("AMED/LayerWise-v0", num_envs)` returns.

    Where many environments cannot be stepped at once they are stepped one after the other; they share their task.

    Args:
        num_envs: Number of environments.
        **options: Those of `LayerWiseEnv`.
    """
    first = LayerWiseEnv(**options)
    reason = why_not(first)
    if reason is None:
        return LayerWiseVectorEnv.of(first, num_envs)
    logger.info("environments are stepped one after the other: %s", reason)
    of_the_task = {"task", "device", "bits", "separate", "budget", "pin"}
    shared = {"task": first.task, **{key: value for key, value in options.items() if key not in of_the_task}}

    def make() -> gym.Env[Observations, Any]:
        return LayerWiseEnv(**shared)

    return SyncVectorEnv([make] * num_envs)
