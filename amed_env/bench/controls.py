"""Negative controls: agents that are told something wrong, and must therefore do as badly as random ones or worse.

A control that does well means that the benchmark, or the agent, uses what it should not. Claims are always measured
with the true quality: only what the agent sees is changed.

* `control/AGENT-shuffled`: every predicted loss stands at a random place, so sensitivities say nothing.
* `control/AGENT-inverted`: the agent sees the wrong samples in place of the correct ones and low losses for high ones,
  so that it looks for the worst allocation.
"""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from amed_env.agents.protocol import Agent
from amed_env.agents.registry import make_agent
from amed_env.agents.session import SearchSession, best_trial
from amed_env.errors import UnknownNameError
from amed_env.evaluation.delegating import DelegatingEvaluator
from amed_env.evaluation.quality import Evaluator, GradientMeasure, Quality, Split
from amed_env.evaluation.store import Trial
from amed_env.problem.allocation import BitAllocation, Precision
from amed_env.tasks.task import Task

CONTROL_PREFIX = "control/"
CONTROLS = ("control/greedy-shuffled", "control/maskable-ppo-inverted")
"""The controls that the report shows; others of the same forms can be made."""
_SHUFFLE_SEED = 20_000  # away from the seeds of searches
_NEARLY_SURE = 1 - 1e-12  # the inverse of a loss of 0 would be infinite

FloatArray = npt.NDArray[np.float64]


class _Lie(abc.ABC):
    """How what an agent is told differs from the truth."""

    @abc.abstractmethod
    def losses(self, losses: FloatArray) -> FloatArray:
        """Predicted losses or other sensitivities (L, P) as they are told."""

    @abc.abstractmethod
    def pairs(self, divergences: FloatArray) -> FloatArray:
        """Divergences of pairs (L, P, L, P) as they are told; they stay symmetric, and 0 within a layer."""

    @abc.abstractmethod
    def quality(self, quality: Quality) -> Quality:
        """A quality as it is told."""


class _Told(DelegatingEvaluator):
    """The evaluator that a control sees."""

    def __init__(self, inner: Evaluator, lie: _Lie) -> None:
        super().__init__(inner)
        self._lie = lie

    def evaluate(self, allocation: BitAllocation, split: Split = "search") -> Quality:
        """See `Evaluator.evaluate`."""
        return self._lie.quality(super().evaluate(allocation, split))

    def predicted_loss(self, precisions: Sequence[Precision]) -> FloatArray:
        """See `Evaluator.predicted_loss`."""
        return self._lie.losses(super().predicted_loss(precisions))

    def sensitivity(self, measure: GradientMeasure, precisions: Sequence[Precision]) -> FloatArray:
        """See `Evaluator.sensitivity`."""
        return self._lie.losses(super().sensitivity(measure, precisions))

    def pair_divergences(self, precisions: Sequence[Precision], reach: int) -> FloatArray:
        """See `Evaluator.pair_divergences`."""
        return self._lie.pairs(super().pair_divergences(precisions, reach))


class _ToldSession:
    """A session whose task and answers are changed; what it counts and records is the true session's."""

    def __init__(self, inner: SearchSession, task: Task, lie: _Lie) -> None:
        self._inner, self.task, self._lie = inner, task, lie
        self._told: list[Trial] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def trials(self) -> list[Trial]:
        """Those of the session, as they are told."""
        self._told += [self._tell(trial) for trial in self._inner.trials[len(self._told) :]]
        return self._told

    def evaluate(self, allocation: BitAllocation) -> Trial:
        """See `SearchSession.evaluate`."""
        return self._tell(self._inner.evaluate(allocation))

    def best(self) -> Trial | None:
        """The trial that seems best to the control."""
        return best_trial([trial for trial in self.trials if self._inner.task.feasible(trial.costs)])

    def _tell(self, trial: Trial) -> Trial:
        return Trial(trial.allocation, self._lie.quality(trial.quality), trial.costs, trial.seconds)


class _Control(Agent, abc.ABC):
    """An agent that is told something wrong.

    Args:
        agent: The agent.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.family = agent.family

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        lie = self.lie(session.seed)
        task = copy.copy(session.task)
        task.evaluator = _Told(session.task.evaluator, lie)
        for name in ("predicted_loss", "float_quality"):
            task.__dict__.pop(name, None)  # what the true task remembers of its evaluator
        self.agent.folder = self.folder
        self.agent.explore(cast(SearchSession, _ToldSession(session, task, lie)))

    @abc.abstractmethod
    def lie(self, seed: int) -> _Lie:
        """What the agent is told in a search with this seed."""


class _Shuffled(_Lie):
    def __init__(self, seed: int) -> None:
        self._seed = _SHUFFLE_SEED, seed

    def losses(self, losses: FloatArray) -> FloatArray:
        """The same numbers at random places."""
        return losses.reshape(-1)[self._order(losses.size)].reshape(losses.shape)

    def pairs(self, divergences: FloatArray) -> FloatArray:
        """Those of the layers and widths whose losses are told."""
        layers, choices, *_ = divergences.shape
        order = self._order(layers * choices)
        told = divergences.reshape(len(order), -1)[np.ix_(order, order)].reshape(divergences.shape)
        told[np.arange(layers), :, np.arange(layers), :] = 0.0
        return told

    def quality(self, quality: Quality) -> Quality:
        """The true one."""
        return quality

    def _order(self, size: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng(self._seed).permutation(size)


class _Inverted(_Lie):
    def losses(self, losses: FloatArray) -> FloatArray:
        """What is missing from the largest of the losses."""
        return np.asarray(losses.max() - losses)

    def pairs(self, divergences: FloatArray) -> FloatArray:
        """Their negatives."""
        return -divergences

    def quality(self, quality: Quality) -> Quality:
        """Wrong samples for correct ones, and the loss of one who takes the true class for the false one."""
        true_class = min(math.exp(-quality.loss), _NEARLY_SURE)
        return Quality(quality.samples - quality.correct, quality.samples, -math.log1p(-true_class))


class ShuffledSensitivities(_Control):
    """An agent that is told the predicted losses of other layers and widths."""

    description = "negative control: sensitivities are shuffled over layers and widths"

    def lie(self, seed: int) -> _Lie:
        """See `_Control.lie`."""
        return _Shuffled(seed)


class InvertedQuality(_Control):
    """An agent that is told the inverse: what is wrong is right, and what is harmful is harmless."""

    description = "negative control: the search sees the inverse of quality and sensitivities"

    def lie(self, seed: int) -> _Lie:
        """See `_Control.lie`."""
        return _Inverted()


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
