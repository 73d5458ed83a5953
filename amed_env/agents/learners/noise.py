"""Noise of continuous actions whose deviation can be changed while a learner searches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.noise import ActionNoise


class WidthNoise(ActionNoise):
    """Normal noise of one action, drawn by NumPy's global generator, which the library seeds.

    Args:
        deviation: Standard deviation, in units of half the range from the narrowest to the widest.

    Attributes:
        deviation: As given; it may be set anew at any time.
    """

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def __call__(self) -> npt.NDArray[np.float32]:
        """Noise for one action: float32 (1,)."""
        return np.random.normal(0.0, self.deviation, 1).astype(np.float32)
