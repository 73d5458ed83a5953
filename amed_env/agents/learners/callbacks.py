"""What watches a learner of stable-baselines3 while it searches."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from amed_env.agents.learners.masking import MaskedExploration
from amed_env.agents.session import SearchSession

STALLED_EPISODES = 200
"""Episodes in a row without a new allocation after which a learner is taken to have converged."""

_WINDOW_EPISODES = 16  # after which exploration is steered


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


class SayProgress(BaseCallback):
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


class UntilEnded(BaseCallback):
    """Stops the learner when the evaluations are used up, or when it only repeats itself.

    Exploration is steered as well: repeated allocations cost no evaluation and teach nothing new, so where most of the
    last episodes repeat old ones it grows, and it shrinks back otherwise. What grows is the bonus for entropy, the
    share of random actions, or the noise, whichever a learner has.
    """

    def __init__(self, session: SearchSession, layers: int) -> None:
        super().__init__()
        self._session, self._layers = session, layers
        self._last_new = 0  # step at which the last new allocation came
        self._known = 0
        self._window_start = (0, 0)  # steps and evaluations
        self._steered: _Steered | None = None

    @property
    def stalled(self) -> bool:
        """Whether the learner has brought nothing new for a long time."""
        return self.num_timesteps - self._last_new > STALLED_EPISODES * self._layers

    def _on_step(self) -> bool:
        if self._session.evaluations > self._known:
            self._known, self._last_new = self._session.evaluations, self.num_timesteps
        return not self._session.ended and not self.stalled

    def _on_rollout_end(self) -> None:
        steps, before = self._window_start
        episodes = (self.num_timesteps - steps) / self._layers
        if episodes < _WINDOW_EPISODES:
            return
        new = self._session.evaluations - before
        self._window_start = (self.num_timesteps, self._session.evaluations)
        best = self._session.best()
        if best is not None:
            self.logger.record("search/best_score", best.quality.score)
        self.logger.record("search/evaluations", self._session.evaluations)
        self._steered = self._steered or _steered(self.model)
        if self._steered is not None:
            # Repeated allocations cost nothing and teach nothing (docs/decisions.md, 23). Growing and shrinking are by
            # the same factor, so that it comes back to where it was.
            amount = self._steered.change(1.5 if new < 0.5 * episodes else 1 / 1.5)
            self.logger.record(f"search/{self._steered.label}", amount)


class _Steered:
    """An attribute of a learner, or of parts of it, that sets how much it explores.

    Args:
        label: What it is called in the log.
        owners: What has the attribute.
        attribute: Its name; its value now is the least that it will have.
        start: What the first growth is a multiple of, if the attribute is less.
    """

    def __init__(self, label: str, owners: list[Any], attribute: str, start: float = 0.0) -> None:
        self.label, self._owners, self._attribute = label, owners, attribute
        self._least = self._amount = float(getattr(owners[0], attribute))
        self._start = max(self._least, start)

    def change(self, factor: float) -> float:
        """Multiply it within its bounds; returns the new value."""
        if factor > 1:
            self._amount = min(1.0, max(self._amount, self._start) * factor)
        else:
            shrunk = self._amount * factor
            self._amount = shrunk if shrunk > self._start else self._least
        for owner in self._owners:
            setattr(owner, self._attribute, self._amount)
        return self._amount


def _steered(model: Any) -> _Steered | None:
    """What sets how much a learner explores, or None if there is nothing of the kind."""
    if isinstance(model, OnPolicyAlgorithm) and isinstance(getattr(model, "ent_coef", None), float):
        return _Steered("entropy_bonus", [model], "ent_coef")
    if isinstance(model, MaskedExploration):
        return _Steered("exploration", [model], "least_exploration", 0.05)
    noises = getattr(model.action_noise, "noises", [model.action_noise]) if hasattr(model, "action_noise") else []
    steered = [noise for noise in noises if isinstance(noise, WidthNoise)]
    if steered:
        return _Steered("noise", steered, "deviation", 0.1)
    return None
