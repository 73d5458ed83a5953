"""One run of the benchmark: an agent searches one cell with one seed, and what it claims is recorded."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import PurePath
from time import perf_counter
from typing import Any

from amed_env.agents.protocol import Agent
from amed_env.agents.registry import list_agents, make_agent
from amed_env.agents.session import SearchSession
from amed_env.allocation import BitAllocation
from amed_env.bench.controls import CONTROL_PREFIX, make_control
from amed_env.bench.counting import counted
from amed_env.bench.result_file import Improvement, Run, sequence_digest
from amed_env.bench.suites import Cell, cell_task
from amed_env.evaluation.store import Trial
from amed_env.objective import BUDGET_METRICS
from amed_env.task import Task
from amed_env.threads import torch_threads

logger = logging.getLogger(__name__)

_LONGEST_NOTE = 500  # characters of an error in a run


@dataclass(frozen=True)
class Contender:
    """An agent of the benchmark.

    Attributes:
        spec: What makes it: a name, `package.module:Class`, a recipe, or a control.
        options: Options of the agent.
    """

    spec: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The spec; of a recipe `recipe/` and the file's name without its ending."""
        return f"recipe/{PurePath(self.spec).stem}" if self.spec.endswith((".yaml", ".yml")) else self.spec

    @property
    def file_stem(self) -> str:
        """The name as a file name without its ending."""
        return re.sub(r"[^\w.=+-]+", "-", self.name).strip("-.") or "agent"

    def make(self) -> Agent:
        """A new agent.

        Raises:
            AmedError: If there is no such agent, or it cannot be made.
        """
        if self.spec.startswith(CONTROL_PREFIX):
            return make_control(self.spec, **self.options)
        return make_agent(self.spec, **self.options)

    def describe(self) -> tuple[str, str, tuple[str, ...]]:
        """Family, description, and what the agent was tuned on.

        Raises:
            AmedError: If it cannot be made.
        """
        agent = self.make()
        listed = list_agents().get(self.spec)
        recipe = getattr(agent, "recipe", None) or {}
        family = agent.family if agent.family in ("learner", "search") else "search"
        own = recipe.get("description") or agent.description or type(agent).__name__
        return (
            family,
            own if listed is None else listed.description,
            tuple(dict.fromkeys((*agent.saw, *recipe.get("tuned_on", ())))),
        )


def run_once(contender: Contender, cell: Cell, seed: int, evaluations: int) -> Run | None:
    """Search a cell once.

    Whatever an agent raises is recorded in the run's note; what it found before counts.

    Args:
        contender: The agent; a new one is made for every run.
        cell: The cell.
        seed: Seed of the search.
        evaluations: Distinct evaluations that the agent has.

    Returns:
        The run, or None if Ctrl-C ended it.

    Raises:
        AmedError: If the task of the cell cannot be made.
    """
    task, evaluator = counted(cell_task(cell))
    record = _Record()
    note = None
    started = perf_counter()
    with torch_threads(1):
        try:
            result = contender.make().search(task, evaluations, seed, on_change=record.follow)
        except (Exception, SystemExit) as error:
            note = f"{type(error).__name__}: {error}"[:_LONGEST_NOTE]
            logger.warning("%s, seed %d, %s: %s", contender.name, seed, cell, note)
        else:
            if result.interrupted:
                return None
            record.faults = len(result.faults)
            if result.gave_up:
                note = f"gave up: {result.faults[-1] if result.faults else 'too many faults in a row'}"[:_LONGEST_NOTE]
    beside = len(evaluator.asked - record.seen)
    if beside:
        return failed_run(
            cell,
            seed,
            f"{beside} qualities were asked for past session.evaluate, where they are not counted",
            round(perf_counter() - started, 3),
        )
    return Run(
        task=cell.task,
        device=cell.device,
        budget=dict(cell.budget),
        seed=seed,
        evaluations=record.evaluations,
        improvements=improvements(task, zip(record.numbers, record.trials, strict=True)),
        sequence=sequence_digest(trial.allocation.key() for trial in record.trials),
        faults=record.faults,
        seconds=round(perf_counter() - started, 3),
        note=note,
    )


class _Record:
    """What a session did, also if the agent breaks in the middle of it."""

    def __init__(self) -> None:
        self.trials: list[Trial] = []
        self.numbers: list[int] = []  # of the evaluation that each trial is; those that failed count too
        self.seen: Set[BitAllocation] = set()
        self.evaluations = self.faults = 0

    def follow(self, session: SearchSession) -> None:
        """Take over what is new."""
        self.evaluations, self.faults = session.evaluations, len(session.faults)
        self.seen = session.asked
        if len(session.trials) > len(self.trials):
            self.trials.append(session.trials[-1])
            self.numbers.append(session.evaluations)


def failed_run(cell: Cell, seed: int, note: str, seconds: float = 0.0) -> Run:
    """A run of which nothing is known but why it failed."""
    return Run(
        task=cell.task,
        device=cell.device,
        budget=dict(cell.budget),
        seed=seed,
        evaluations=0,
        improvements=(),
        sequence=sequence_digest(()),
        faults=0,
        seconds=seconds,
        note=note,
    )


def improvements(task: Task, trials: Iterable[tuple[int, Trial]]) -> tuple[Improvement, ...]:
    """Every feasible trial that was better than all feasible ones before it; of equal accuracy the lower loss wins.

    Args:
        task: The task.
        trials: Trials in order, each with the number of its evaluation.
    """
    found: list[Improvement] = []
    best: tuple[int, float] | None = None
    for number, trial in trials:
        score = (trial.quality.correct, -trial.quality.loss)
        if (best is None or score > best) and task.feasible(trial.costs):
            best = score
            found.append(improvement(task, trial, number))
    return tuple(found)


def improvement(task: Task, trial: Trial, number: int) -> Improvement:
    """A trial as it stands in a file."""
    return Improvement(
        evaluation=number,
        choices="".join(str(choice) for choice in task.choices(trial.allocation)),
        accuracy=100.0 * trial.quality.accuracy,
        loss=trial.quality.loss,
        correct=trial.quality.correct,
        relative_costs=relative_costs(task, trial.costs),
    )


def relative_costs(task: Task, costs: Mapping[str, float]) -> dict[str, float]:
    """Costs that the task limits, as factors of the uniform 8-bit cost."""
    reference = task.reference_cost
    assert reference is not None  # a relative budget needs one
    return {budget.name: costs[BUDGET_METRICS[budget.name]] / reference[budget.metric] for budget in task.budgets}
