"""One run of the benchmark: an agent searches one cell with one seed, and what it claims is recorded."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from time import perf_counter

from amed_env.agents.session import SearchSession
from amed_env.bench.contender import LIBRARIES, Contender
from amed_env.bench.counting import Questions, counted
from amed_env.bench.result_file import Improvement, Run, one_line, sequence_digest
from amed_env.bench.suites import Cell, cell_task
from amed_env.evaluation.store import Trial
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.objective import BUDGET_METRICS
from amed_env.support.threads import torch_threads
from amed_env.tasks.task import Task

logger = logging.getLogger(__name__)

LONGEST_NOTE = 500
"""Characters of an error in a run."""
_told: set[tuple[str, str]] = set()
_PACKAGE = Path(__file__).resolve().parents[1]
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")  # of objects, which differ from process to process


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
            note = _note(f"{type(error).__name__}: {error}{_place_of(error)}")
            level = logging.DEBUG if (contender.name, note) in _told else logging.WARNING  # once, not 360 times
            _told.add((contender.name, note))
            logger.log(level, "%s, seed %d, %s: %s", contender.name, seed, cell, note)
        else:
            if result.interrupted:
                return None
            record.faults = len(result.faults)
            if result.gave_up:
                note = _note(f"gave up: {result.faults[-1] if result.faults else 'too many faults in a row'}")
    record.look()
    foul = None
    if record.beside:
        foul = (
            f"{record.beside} qualities were asked for past session.evaluate, where they are not counted; an "
            "environment within an agent needs measure=session.evaluate"
        )
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


def _place_of(error: BaseException) -> str:
    """Where the agent's own code was when it failed; nothing if none but this package and libraries was."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(_PACKAGE) and not LIBRARIES & set(Path(frame.filename).parts)
    ]
    own = [frame for frame in own if Path(frame.filename).is_file()]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


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
