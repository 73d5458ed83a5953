"""Negative controls: agents that get a wrong signal on purpose, and must therefore do as badly as random ones or worse.

A control that does well means that the benchmark, or the agent, uses what it should not. Claims are always measured
with the true quality: only what the agent sees is distorted.

* `control/AGENT-shuffled`: predicted losses are permuted over layers and widths, so sensitivities say nothing.
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


class _Distortion(abc.ABC):
    """How what an agent sees differs from the truth."""

    @abc.abstractmethod
    def losses(self, losses: FloatArray) -> FloatArray:
        """Predicted losses or other sensitivities (L, P) as the agent sees them."""

    @abc.abstractmethod
    def pairs(self, divergences: FloatArray) -> FloatArray:
        """Divergences of pairs (L, P, L, P) as the agent sees them; they stay symmetric, and 0 within a layer."""

    @abc.abstractmethod
    def quality(self, quality: Quality) -> Quality:
        """A quality as the agent sees it."""


class _DistortingEvaluator(DelegatingEvaluator):
    """The evaluator that a control sees."""

    def __init__(self, inner: Evaluator, distortion: _Distortion) -> None:
        super().__init__(inner)
        self._distortion = distortion

    def evaluate(self, allocation: BitAllocation, split: Split = "search") -> Quality:
        """See `Evaluator.evaluate`."""
        return self._distortion.quality(super().evaluate(allocation, split))

    def predicted_loss(self, precisions: Sequence[Precision]) -> FloatArray:
        """See `Evaluator.predicted_loss`."""
        return self._distortion.losses(super().predicted_loss(precisions))

    def sensitivity(self, measure: GradientMeasure, precisions: Sequence[Precision]) -> FloatArray:
        """See `Evaluator.sensitivity`."""
        return self._distortion.losses(super().sensitivity(measure, precisions))

    def pair_divergences(self, precisions: Sequence[Precision], reach: int) -> FloatArray:
        """See `Evaluator.pair_divergences`."""
        return self._distortion.pairs(super().pair_divergences(precisions, reach))


class _DistortingSession:
    """A session whose task and answers are changed; what it counts and records is the true session's."""

    def __init__(self, inner: SearchSession, task: Task, distortion: _Distortion) -> None:
        self._inner, self.task, self._distortion = inner, task, distortion
        self._distorted_trials: list[Trial] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def trials(self) -> list[Trial]:
        """Those of the session, as the agent sees them."""
        new = self._inner.trials[len(self._distorted_trials) :]
        self._distorted_trials += map(self._distorted, new)
        return self._distorted_trials

    def evaluate(self, allocation: BitAllocation) -> Trial:
        """See `SearchSession.evaluate`."""
        return self._distorted(self._inner.evaluate(allocation))

    def best(self) -> Trial | None:
        """The trial that seems best to the control."""
        return best_trial([trial for trial in self.trials if self._inner.task.feasible(trial.costs)])

    def _distorted(self, trial: Trial) -> Trial:
        return Trial(trial.allocation, self._distortion.quality(trial.quality), trial.costs, trial.seconds)


class _Control(Agent, abc.ABC):
    """An agent that gets a wrong signal.

    Args:
        agent: The agent.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.family = agent.family

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`."""
        distortion = self.distortion(session.seed)
        task = copy.copy(session.task)
        task.evaluator = _DistortingEvaluator(session.task.evaluator, distortion)
        for name in ("predicted_loss", "float_quality", "reference_score"):
            task.__dict__.pop(name, None)  # what the true task remembers of its evaluator
        self.agent.folder = self.folder
        self.agent.explore(cast(SearchSession, _DistortingSession(session, task, distortion)))

    @abc.abstractmethod
    def distortion(self, seed: int) -> _Distortion:
        """What the agent sees in a search with this seed."""


class _Shuffled(_Distortion):
    def __init__(self, seed: int) -> None:
        self._seed = _SHUFFLE_SEED, seed

    def losses(self, losses: FloatArray) -> FloatArray:
        """The same numbers at random places."""
        return losses.reshape(-1)[self._order(losses.size)].reshape(losses.shape)

    def pairs(self, divergences: FloatArray) -> FloatArray:
        """Permuted like the losses of their layers and widths."""
        layers, choices, *_ = divergences.shape
        order = self._order(layers * choices)
        square = divergences.reshape(len(order), len(order))
        permuted = square[np.ix_(order, order)].reshape(divergences.shape)
        permuted[np.arange(layers), :, np.arange(layers), :] = 0.0
        return permuted

    def quality(self, quality: Quality) -> Quality:
        """The true one."""
        return quality

    def _order(self, size: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng(self._seed).permutation(size)


class _Inverted(_Distortion):
    def losses(self, losses: FloatArray) -> FloatArray:
        """What is missing from the largest of the losses."""
        return np.asarray(losses.max() - losses)

    def pairs(self, divergences: FloatArray) -> FloatArray:
        """Their negatives."""
        return -divergences

    def quality(self, quality: Quality) -> Quality:
        """Wrong samples for correct ones, and the loss of one who takes the true class for the false one."""
        assert quality.correct is not None and quality.loss is not None  # suites are scored by accuracy
        true_class = min(math.exp(-quality.loss), _NEARLY_SURE)
        return Quality(quality.samples - quality.correct, quality.samples, -math.log1p(-true_class))


class ShuffledSensitivities(_Control):
    """An agent that sees the predicted losses of other layers and widths."""

    description = "negative control: sensitivities are shuffled over layers and widths"

    def distortion(self, seed: int) -> _Distortion:
        """See `_Control.distortion`."""
        return _Shuffled(seed)


class InvertedQuality(_Control):
    """An agent that sees the inverse: what is wrong is right, and what is harmful is harmless."""

    description = "negative control: the search sees the inverse of quality and sensitivities"

    def distortion(self, seed: int) -> _Distortion:
        """See `_Control.distortion`."""
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
