"""Continuous actions for environments that are stepped at once: `ContinuousWidths` for a `VecEnv`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnvWrapper

from amed_env.agents.learners.vec_env import LayerWiseVecEnv
from amed_env.envs.continuous import ContinuousWidths

Steps = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_], list[dict[str, Any]]]


class ContinuousVecEnv(VecEnvWrapper):
    """N environments whose action is one number from -1 to 1; see `ContinuousWidths` for what it means.

    All of them are always at the same layer and, where widths are apart, at the same part of it.

    Args:
        environments: N environments with discrete actions.
    """

    def __init__(self, environments: LayerWiseVecEnv) -> None:
        self._single = ContinuousWidths(environments.single)
        super().__init__(environments, self._single.observation_space, self._single.action_space)
        self._weights: npt.NDArray[np.int64] | None = None  # (N,) chosen, while activations are not
        self._observations = np.zeros((self.num_envs, environments.single.observer.size), dtype=np.float32)

    def reset(self) -> npt.NDArray[np.float32]:
        """Start N episodes: float32 (N, F)."""
        self._weights = None
        observations = self.venv.reset()
        assert isinstance(observations, np.ndarray)
        self._observations = observations
        return self._observe(self._observations)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep the actions, float (N, 1), until `step_wait`."""
        self._actions = np.asarray(actions, dtype=np.float64)[:, 0]

    def step_wait(self) -> Steps:
        """Observations (N, F), rewards (N,), whether episodes ended (N,), and information."""
        count = self._single.widths
        shares = (np.clip(self._actions, -1.0, 1.0) + 1.0) / 2.0
        widths = np.minimum((shares * count).astype(np.int64), count - 1)
        if self._single.separate and self._weights is None:
            self._weights = widths
            nothing = np.zeros(self.num_envs, dtype=np.float32)
            return self._observe(self._observations), nothing, nothing > 0, [{} for _ in widths]
        if self._weights is not None:
            widths, self._weights = np.stack([self._weights, widths], axis=1), None
        self.venv.step_async(widths)
        observations, rewards, dones, infos = self.venv.step_wait()
        assert isinstance(observations, np.ndarray)
        self._observations = observations
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = self._observe(info["terminal_observation"][None])[0]
        return self._observe(observations), rewards, dones, infos

    def _observe(self, observations: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if not self._single.separate:
            return observations
        phase = np.zeros((len(observations), 2), dtype=np.float32)
        if self._weights is not None:
            phase[:, 0], phase[:, 1] = 1.0, (self._weights + 0.5) / self._single.widths
        return np.concatenate([observations, phase], axis=1)
