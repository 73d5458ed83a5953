"""Wrappers of the environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from amed_env.envs.base import REWARD_VECTOR


class VectorReward(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Returns the reward vector in place of the scalar, by MO-Gymnasium's convention.

    The vector is `info["reward_vector"]` at the end of an episode (see `envs.base.REWARD_VECTOR`) and zero before, and
    after a fault. `reward_space` is its space.

    Args:
        env: `AMED/LayerWise-v0` or `AMED/OneShot-v0`; the walk has a reward at every step and no vector.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        low = np.full(len(REWARD_VECTOR), -np.inf, dtype=np.float32)
        high = np.zeros(len(REWARD_VECTOR), dtype=np.float32)
        score = env.get_wrapper_attr("task").score
        if score.higher_is_better:
            low[0], high[0] = (0.0, 1.0) if score.scale == "fraction" and score.unit == "%" else (-np.inf, np.inf)
        self.reward_space = spaces.Box(low, high, dtype=np.float32)

    def step(self, action: Any) -> tuple[Any, npt.NDArray[np.float32], bool, bool, dict[str, Any]]:
        """Step, with a float32 vector of the length of `REWARD_VECTOR` as reward."""
        observation, _, terminated, truncated, info = self.env.step(action)
        vector = info.get("reward_vector", np.zeros(len(REWARD_VECTOR), dtype=np.float32))
        return observation, vector, terminated, truncated, info
