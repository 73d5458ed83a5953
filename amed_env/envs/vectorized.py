"""`AMED/LayerWise-v0` as a Gymnasium vector environment that steps all of its environments at once."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from amed_env.envs.batch import LayerWiseBatch, why_not
from amed_env.envs.layer_wise import LayerWiseEnv
from amed_env.errors import InputError

logger = logging.getLogger(__name__)

Observations = npt.NDArray[np.float32]


class LayerWiseVectorEnv(VectorEnv[Observations, Any, npt.NDArray[Any]]):
    """N environments of `AMED/LayerWise-v0` without a loop over them.

    ## Description
    Quality must come from a table (tasks named `tabular/…`) and costs must add up, or the reward must be `predicted`.
    Each environment is what `LayerWiseEnv` is, but for the following.

    ## Seeds
    One generator draws the budgets of all environments, so that equal seeds give equal vectors of budgets.
    `reset(options={"budget": …})` takes one budget for all, or a sequence of N.

    ## Next-step autoreset
    As in all vector environments of Gymnasium by default, the step after the last one of an episode ignores its
    actions, begins the next episodes and returns their first observations with rewards 0. (Stable-baselines3 resets in
    the same step: `amed_env.agents.vec_env.LayerWiseVecEnv`.)

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
            seed: Seeds the drawing of budgets; one whole number for all environments.
            options: `{"budget": …}`: one budget for all, or a sequence of N.

        Raises:
            InputError: If an option is unknown, or the seed is a list.
            BudgetError: If a budget cannot be met.
        """
        if isinstance(seed, list):
            raise InputError("these environments share one generator; give one seed.")
        unknown = sorted(set(options or {}) - {"budget"})
        if unknown:
            raise InputError(f"reset: unknown option {', '.join(map(repr, unknown))}; the only one is 'budget'.")
        super().reset(seed=seed)
        if options and options.get("budget") is not None:
            self.batch.start(self.batch.limits_of(options["budget"]))
        else:
            self.batch.start(self.batch.draw_limits(self.np_random))
        self._started = True
        return self.batch.observe(), self._with_masks({"limits": self.batch.limits()})

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
        rewards, found = self.batch.step(actions)
        ended = np.full(self.num_envs, self.batch.over)
        return self.batch.observe(), rewards, ended, never, self._with_masks(found)

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """What may be done now: bool (N, P), or (N, 2W) for `MultiDiscrete`."""
        return self.batch.masks()

    def _with_masks(self, info: dict[str, Any]) -> dict[str, Any]:
        """Gymnasium's convention: beside each key a mask of the environments that have it."""
        everywhere = np.ones(self.num_envs, dtype=bool)
        masked: dict[str, Any] = {}
        for key, value in info.items():
            masked[key] = self._with_masks(value) if isinstance(value, dict) else value
            masked[f"_{key}"] = everywhere
        return masked


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
