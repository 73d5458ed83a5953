"""AMED in training: the walk over allocations goes on while the weights adapt to where it has been.

Every few steps of the optimizer the walk of `agents.amed` scores the allocation that was just trained by the training
loss and the latency, learns from it, and moves. All allocations share the float weights; every (layer, width) has step
sizes of its own, so a width that comes back finds what it had learned.
Source: Kimhi, Rozen, Mendelson, Baskin: AMED, arXiv 2205.15437.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from amed_env.agents.options import parse_agent_options
from amed_env.agents.session import SearchSession
from amed_env.agents.walks.amed import walk_task
from amed_env.agents.walks.options import AmedOptions
from amed_env.agents.walks.walk import AllocationWalk
from amed_env.errors import BudgetError
from amed_env.evaluation.quality import Quality
from amed_env.evaluation.store import Trial
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.quality_score import gain
from amed_env.tasks.task import Task
from amed_env.training.trainer import Progress

CANDIDATES = 8
"""Allocations of the walk that are validated in the end."""
_UNLIMITED = 2**31 - 1


class TrainingWalk:
    """A walk of AMED that is fed with losses of training.

    Args:
        task: Network, device, widths, budgets and pins.
        epochs: How long it walks.
        every: Steps of the optimizer between two moves of the whole allocation.
        seed: Of its moves.
        options: Options of the agent `amed`; without an accuracy threshold by default, as accuracy under augmentation
            is not comparable with that of the float network.

    Attributes:
        task: The task, with pinned ends if the options say so.
        allocation: Where it stands, or what was chosen.
        ended: Whether an allocation was chosen.
        moves: Times that it moved.

    Raises:
        AgentError: If an option is unknown or out of range.
        BudgetError: If no way into the budgets is found.
    """

    def __init__(
        self, task: Task, epochs: int, every: int = 20, seed: int = 0, options: Mapping[str, Any] | None = None
    ) -> None:
        chosen = parse_agent_options("amed", AmedOptions, {"accuracy_threshold": None, **(options or {})})
        self.task = task = walk_task("amed", task, chosen)
        self.epochs, self.every = epochs, every
        self._session = SearchSession(task, _UNLIMITED, seed)
        self._walk = AllocationWalk(self._session, task, chosen)
        if not self._walk.enter_budgets():
            raise BudgetError(f"the walk finds no way from uniform 8 bit into {' and '.join(map(str, task.budgets))}.")
        self.ended, self.moves = False, 0
        self.allocation = task.allocation(self._walk.choices)
        self._stretch, self._stretch_steps = Progress(), 0
        self._gains: dict[tuple[int, ...], float] = {}

    @property
    def widths(self) -> tuple[int, ...]:
        """All widths that a layer may get."""
        return self.task.bits

    def learn(self, loss: float, correct: int, samples: int) -> bool:
        """Take in a step of training under `allocation`; whether the walk moved on.

        Args:
            loss: Mean loss of the batch.
            correct: Samples that were right.
            samples: Samples.
        """
        self._stretch.add(loss, correct, samples)
        self._stretch_steps += 1
        if self._stretch_steps < self.every:
            return False
        done = self._stretch
        quality = Quality(done.correct, done.samples, done.mean_loss)
        trial = Trial(self.allocation, quality, self.task.total_costs(self.allocation), 0.0)
        reference = self._walk.reference
        zeta = self._walk.zeta(trial)
        self._gains[tuple(self._walk.choices.tolist())] = 0.0 if reference is None else gain(reference, zeta)
        self._walk.learn(trial)
        self._walk.move()
        self.allocation = self.task.allocation(self._walk.choices)
        self._stretch, self._stretch_steps, self.moves = Progress(), 0, self.moves + 1
        return True

    def candidates(self) -> list[BitAllocation]:
        """What is worth validating: where it stands, and what was best against its moving reference."""
        ranked = sorted(self._gains, key=lambda choices: -self._gains[choices])
        candidates = [self.allocation, *(self.task.allocation(choices) for choices in ranked)]
        return list(dict.fromkeys(candidates))[:CANDIDATES]

    def choose(self, qualities: Mapping[BitAllocation, Quality]) -> None:
        """End with the candidate of the highest accuracy, of equal ones that of the lowest loss."""
        self.allocation = min(qualities, key=lambda allocation: qualities[allocation].order)
        self.ended = True

    def state(self) -> dict[str, Any]:
        """All that is needed to go on, as JSON values."""
        return {
            "choices": self._walk.choices.tolist(),
            "scores": self._walk.scores.values.tolist(),
            "reference": self._walk.reference,
            "generator": self._session.rng.bit_generator.state,
            "stretch": [self._stretch.loss, self._stretch.correct, self._stretch.samples, self._stretch_steps],
            "gains": [[list(choices), value] for choices, value in self._gains.items()],
            "moves": self.moves,
            "chosen": self.allocation.to_json() if self.ended else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._walk.choices = np.asarray(state["choices"], dtype=np.int64)
        self._walk.scores.values[:] = state["scores"]
        self._walk.reference = state["reference"]
        self._session.rng.bit_generator.state = state["generator"]
        loss, correct, samples, self._stretch_steps = state["stretch"]
        self._stretch = Progress(loss, correct, samples)
        self._gains = {tuple(choices): value for choices, value in state["gains"]}
        self.moves, self.ended = state["moves"], state["chosen"] is not None
        chosen = state["chosen"]
        self.allocation = (
            self.task.allocation(self._walk.choices) if chosen is None else BitAllocation.from_json(chosen)
        )
