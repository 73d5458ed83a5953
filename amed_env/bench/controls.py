"""Negative controls: agents that are told something wrong, and must therefore do as badly as random ones or worse.

A control that does well means that the benchmark, or the agent, uses what it should not. Claims are always measured
with the true quality: only what the agent sees is changed.

* `control/AGENT-shuffled`: every predicted loss stands at a random place, so sensitivities say nothing.
* `control/AGENT-inverted`: the agent sees the wrong samples in place of the correct ones and the negative of losses, so
  that it looks for the worst allocation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from amed_env.agents.protocol import Agent
from amed_env.agents.registry import make_agent
from amed_env.agents.session import SearchSession
from amed_env.allocation import BitAllocation, Precision
from amed_env.errors import UnknownNameError
from amed_env.evaluation.quality import Evaluator, GradientMeasure, Quality, Split
from amed_env.evaluation.store import Trial
from amed_env.task import Task

CONTROL_PREFIX = "control/"
CONTROLS = ("control/greedy-shuffled", "control/maskable-ppo-inverted")
"""The controls that the report shows; others of the same forms can be made."""
_SHUFFLE_SEED = 20_000  # away from the seeds of searches


class _Told(Evaluator):
    """The evaluator that a control sees: predicted losses and qualities of the true one, changed."""

    def __init__(
        self,
        inner: Evaluator,
        losses: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
        quality: Callable[[Quality], Quality],
    ) -> None:
        self.workload, self.kept_float = inner.workload, inner.kept_float
        self.fingerprint = inner.fingerprint
        self._inner, self._losses, self._quality = inner, losses, quality

    def evaluate(self, allocation: BitAllocation, split: Split = "search") -> Quality:
        """See `Evaluator.evaluate`."""
        return self._quality(self._inner.evaluate(allocation, split))

    def predicted_loss(self, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """See `Evaluator.predicted_loss`."""
        return self._losses(self._inner.predicted_loss(precisions))

    def sensitivity(self, measure: GradientMeasure, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """See `Evaluator.sensitivity`."""
        return self._losses(self._inner.sensitivity(measure, precisions))

    def weight_statistics(self) -> npt.NDArray[np.float64]:
        """See `Evaluator.weight_statistics`."""
        return self._inner.weight_statistics()


class _ToldSession:
    """A session whose task and answers are changed; what it counts and records is the true session's."""

    def __init__(self, inner: SearchSession, task: Task, quality: Callable[[Quality], Quality]) -> None:
        self._inner, self.task, self._quality = inner, task, quality

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def evaluate(self, allocation: BitAllocation) -> Trial:
        """See `SearchSession.evaluate`."""
        trial = self._inner.evaluate(allocation)
        return Trial(trial.allocation, self._quality(trial.quality), trial.costs, trial.seconds)

    def best(self) -> Trial | None:
        """The trial that seems best to the control."""
        told = [
            Trial(trial.allocation, self._quality(trial.quality), trial.costs)
            for trial in self._inner.trials
            if self._inner.task.feasible(trial.costs)
        ]
        return min(told, key=lambda trial: (-trial.quality.accuracy, trial.quality.loss), default=None)


class _Control(Agent):
    """An agent that is told something wrong.

    Args:
        agent: The agent.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.family = agent.family

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        task = copy.copy(session.task)
        task.evaluator = _Told(session.task.evaluator, lambda losses: self.losses(losses, session.seed), self.quality)
        for name in ("predicted_loss", "float_quality"):
            task.__dict__.pop(name, None)  # what the true task remembers of its evaluator
        self.agent.folder = self.folder
        self.agent.explore(cast(SearchSession, _ToldSession(session, task, self.quality)))

    def losses(self, losses: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
        """Predicted losses (L, P) as the agent is told them."""
        return losses

    def quality(self, quality: Quality) -> Quality:
        """A quality as the agent is told it."""
        return quality


class ShuffledSensitivities(_Control):
    """An agent that is told the predicted losses of other layers and widths."""

    description = "negative control: sensitivities are shuffled over layers and widths"

    def losses(self, losses: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
        """The same numbers at random places."""
        rng = np.random.default_rng((_SHUFFLE_SEED, seed))
        return rng.permutation(losses.reshape(-1)).reshape(losses.shape)


class InvertedQuality(_Control):
    """An agent that is told the inverse: what is wrong is right, and what is harmful is harmless."""

    description = "negative control: the search sees the inverse of quality and sensitivities"

    def losses(self, losses: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
        """What is missing from the largest of the losses."""
        return np.asarray(losses.max() - losses)

    def quality(self, quality: Quality) -> Quality:
        """Wrong samples for correct ones, and minus the loss."""
        return Quality(quality.samples - quality.correct, quality.samples, -quality.loss, quality.partial)


_KINDS: dict[str, type[_Control]] = {"shuffled": ShuffledSensitivities, "inverted": InvertedQuality}


def make_control(spec: str, /, **options: Any) -> Agent:
    """The control of a name, for example `control/greedy-shuffled`.

    Args:
        spec: `control/`, an agent, `-shuffled` or `-inverted`.
        **options: Options of the agent.

    Raises:
        UnknownNameError: If there is no such kind of control, or no such agent.
    """
    agent, _, kind = spec.removeprefix(CONTROL_PREFIX).rpartition("-")
    if not agent or kind not in _KINDS:
        raise UnknownNameError("control", spec, CONTROLS, "Write control/AGENT-shuffled or control/AGENT-inverted.")
    control = _KINDS[kind](make_agent(agent, **options))
    control.name = spec
    return control
