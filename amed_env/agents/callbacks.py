"""What watches a learner of stable-baselines3 while it searches."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from amed_env.agents.session import SearchSession

STALLED_EPISODES = 200
"""Episodes in a row without a new allocation after which a learner is taken to have converged."""


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
