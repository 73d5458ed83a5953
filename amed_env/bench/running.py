"""One run of the benchmark: an agent searches one cell with one seed, and what it claims is recorded."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import PurePath
from time import perf_counter
from typing import Any, Literal

from amed_env.agents.protocol import Agent
from amed_env.agents.recipe import load_recipe
from amed_env.agents.registry import is_recipe, list_agents, make_agent
from amed_env.agents.session import SearchSession
from amed_env.allocation import BitAllocation
from amed_env.bench.controls import CONTROL_PREFIX, make_control
from amed_env.bench.counting import Questions, counted
from amed_env.bench.result_file import Improvement, Run, one_line, sequence_digest
from amed_env.bench.suites import Cell, cell_task
from amed_env.errors import AgentError
from amed_env.evaluation.store import Trial
from amed_env.objective import BUDGET_METRICS
from amed_env.task import Task
from amed_env.threads import torch_threads

logger = logging.getLogger(__name__)

LONGEST_NOTE = 500
"""Characters of an error in a run."""
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")  # of objects, which differ from process to process


@dataclass(frozen=True)
class Description:
    """What an agent says of itself, as it stands in the header of its results.

    Attributes:
        family: `learner` or `search`.
        text: One line.
        saw: What it was tuned on; empty for nothing.
        recipe: SHA-256 (hex) of the contents of its recipe, or None without one.
    """

    family: Literal["learner", "search"]
    text: str
    saw: tuple[str, ...]
    recipe: str | None


@dataclass(frozen=True)
class Contender:
    """An agent of the benchmark.

    Attributes:
        spec: What makes it: a name, `package.module:Class`, a recipe, or a control.
        options: Options of the agent.
        recipe: SHA-256 (hex) of the contents that a recipe must have, if that matters; see `recipe_digest`.
    """

    spec: str
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None

    @property
    def name(self) -> str:
        """The spec; of a recipe `recipe/` and the file's name without its ending."""
        return f"recipe/{PurePath(self.spec).stem}" if is_recipe(self.spec) else self.spec

    @property
    def file_stem(self) -> str:
        """The name as a file name without its ending."""
        return re.sub(r"[^\w.=+-]+", "-", self.name).strip("-.") or "agent"

    def make(self) -> Agent:
        """A new agent.

        Raises:
            AmedError: If there is no such agent, it cannot be made, or has a way of its own to be run.
        """
        control = self.spec.startswith(CONTROL_PREFIX)
        agent = make_control(self.spec, **self.options) if control else make_agent(self.spec, **self.options)
        if type(agent).search is not Agent.search:
            raise AgentError(
                f"agent {self.name!r} has a `search` of its own, which the benchmark cannot count; write `explore`, "
                "which `amed_env.Agent.search` calls."
            )
        return agent

    def describe(self) -> Description:
        """What the agent says of itself.

        Raises:
            AmedError: If it cannot be made, or says something that is no text.
        """
        agent = self.make()
        if isinstance(agent.saw, str) or not all(isinstance(text, str) for text in _tuple_of(agent.saw)):
            raise AgentError(f"agent {self.name!r}: saw is {agent.saw!r}; give a tuple of texts, () for nothing.")
        if not isinstance(agent.description, str):
            raise AgentError(f"agent {self.name!r}: description is {agent.description!r}; give a text.")
        listed = list_agents().get(self.spec)
        recipe = getattr(agent, "recipe", None) or {}
        own = recipe.get("description") or agent.description or type(agent).__name__
        saw = (*agent.saw, *recipe.get("tuned_on", ()))
        return Description(
            family="learner" if agent.family == "learner" else "search",
            text=one_line(own if listed is None else listed.description),
            saw=tuple(dict.fromkeys(map(one_line, saw))),
            recipe=recipe_digest(self.spec),
        )

    def require_recipe(self) -> None:
        """Check that the recipe says what it has to.

        Raises:
            AgentError: If it says something else now, or cannot be read.
        """
        if self.recipe is not None and self.recipe != recipe_digest(self.spec):
            raise AgentError(f"the recipe {self.spec} has other contents than when the runs began.")


def recipe_digest(spec: str) -> str | None:
    """SHA-256 (hex) of what a recipe says, however its file is laid out; None if the spec is no recipe.

    Raises:
        AgentError: If the recipe cannot be read or is malformed.
    """
    if not is_recipe(spec):
        return None
    contents = load_recipe(spec).model_dump()
    return sha256(json.dumps(contents, sort_keys=True, default=str).encode()).hexdigest()


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
        AmedError: If the task of the cell cannot be made, or the recipe was changed meanwhile.
    """
    contender.require_recipe()
    task, questions = counted(cell_task(cell))
    record = _Record(questions)
    note = None
    started = perf_counter()
    with torch_threads(1):
        try:
            result = contender.make().search(task, evaluations, seed, on_change=record.follow)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit, or what extensions raise: it costs this run and no other
            note = _note(f"{type(error).__name__}: {error}")
            logger.warning("%s, seed %d, %s: %s", contender.name, seed, cell, note)
        else:
            if result.interrupted:
                return None
            record.faults = len(result.faults)
            if result.gave_up:
                note = _note(f"gave up: {result.faults[-1] if result.faults else 'too many faults in a row'}")
    record.look()
    foul = None
    if record.beside:
        foul = f"{record.beside} qualities were asked for past session.evaluate, where they are not counted"
    elif len(questions) > evaluations:
        foul = f"{len(questions)} qualities were asked for, of which {evaluations} are allowed"
    if foul is not None:
        return failed_run(cell, seed, foul, round(perf_counter() - started, 3))
    return Run(
        task=cell.task,
        device=cell.device,
        budget=dict(cell.budget),
        seed=seed,
        evaluations=record.evaluations,
        # Of a task that the agent had no hand on.
        improvements=improvements(cell_task(cell), zip(record.numbers, record.trials, strict=True)),
        sequence=sequence_digest(trial.allocation.key() for trial in record.trials),
        faults=record.faults,
        seconds=round(perf_counter() - started, 3),
        note=note,
    )


def _tuple_of(values: object) -> tuple[object, ...]:
    """Values of a list, or something that is no text where there is none."""
    return tuple(values) if isinstance(values, tuple | list) else (None,)


def _note(text: str) -> str:
    """The beginning of a text in one line, such that a replay gives it again."""
    return _ADDRESS.sub("0x…", one_line(text))[:LONGEST_NOTE]


class _Record:
    """What a session did, also if the agent breaks in the middle of it.

    Whenever the session tells of something new, all that its evaluator was asked must be known to the session. So
    nothing can be asked for beforehand and told to the session later, in a better order.

    Args:
        questions: What the evaluator of the session's task was asked.
    """

    def __init__(self, questions: Questions) -> None:
        self.trials: list[Trial] = []
        self.numbers: list[int] = []  # of the evaluation that each trial is; those that failed count too
        self.evaluations = self.faults = 0
        self.beside = 0  # qualities that were asked for past the session, or before it
        self._questions = questions
        self._looked_at = 0
        self._known: Set[BitAllocation] = set()

    def follow(self, session: SearchSession) -> None:
        """Take over what is new."""
        self.evaluations, self.faults = session.evaluations, len(session.faults)
        self._known = session.asked
        self.look()
        if len(session.trials) > len(self.trials):
            self.trials.append(session.trials[-1])
            self.numbers.append(session.evaluations)

    def look(self) -> None:
        """Count what the evaluator was asked since the last look and the session does not know."""
        new = self._questions.after(self._looked_at)
        self._looked_at += len(new)
        self.beside += sum(allocation not in self._known for allocation in new)


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
