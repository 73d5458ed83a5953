"""Continuous actions for `AMED/LayerWise-v0`, as in HAQ: one number sets the width of a layer.

After Wang, Liu, Lin, Lin, Han 2019, HAQ: Hardware-Aware Automated Quantization with Mixed Precision (CVPR).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from amed_env.envs.layer_wise import LayerWiseEnv
from amed_env.errors import InputError


class ContinuousWidths(gym.Wrapper[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32], Any]):
    """Widths by a number from -1 (the narrowest) to 1 (the widest).

    The range is divided evenly among the widths, whatever their distances in bits are. Where weights and activations
    are chosen apart, a layer takes two steps: its weights, then its activations; the observation then ends with which
    of them it is (0 or 1) and with the number that was chosen for the weights. A width that would break the budget is
    replaced by the nearest that does not, so every allocation is projected on the budget layer by layer.

    Args:
        env: The environment.
    """

    def __init__(self, env: LayerWiseEnv) -> None:
        super().__init__(env)
        self._inner = env
        self.separate = env.task.separate
        self.widths = len(env.task.bits) if self.separate else len(env.task.precisions)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        size = env.observer.size + 2 * self.separate
        self.observation_space = spaces.Box(0.0, 1.0, (size,), np.float32)
        self._weights: tuple[int, float] | None = None
        self._observation = np.zeros(env.observer.size, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """See `LayerWiseEnv.reset`."""
        self._weights = None
        self._observation, info = self._inner.reset(seed=seed, options=options)
        return self._observe(), info

    def width_of(self, action: Any) -> int:
        """The number of the width that an action stands for.

        Raises:
            InputError: If it is not one finite number.
        """
        number = np.asarray(action, dtype=np.float64)
        if number.shape != (1,) or not np.isfinite(number).all():
            raise InputError(f"action {action!r} is not one finite number in an array, as in {self.action_space}.")
        share = (float(np.clip(number[0], -1.0, 1.0)) + 1.0) / 2.0
        return min(int(share * self.widths), self.widths - 1)

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Set the width of the layer, or of its weights and then of its activations; see `LayerWiseEnv.step`.

        Raises:
            InputError: If the action is not one finite number, or the episode is over.
        """
        width = self.width_of(action)
        if self.separate and self._weights is None:
            self._weights = (width, (width + 0.5) / self.widths)
            return self._observe(), 0.0, False, False, {}
        chosen: Any = width
        if self._weights is not None:
            chosen, self._weights = np.asarray([self._weights[0], width]), None
        self._observation, reward, terminated, truncated, info = self._inner.step(chosen)
        return self._observe(), float(reward), terminated, truncated, info

    def _observe(self) -> npt.NDArray[np.float32]:
        if not self.separate:
            return self._observation
        phase = (0.0, 0.0) if self._weights is None else (1.0, self._weights[1])
        return np.concatenate([self._observation, np.asarray(phase, dtype=np.float32)])
