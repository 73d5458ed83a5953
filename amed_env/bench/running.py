"""One run of the benchmark: an agent searches one cell with one seed, and what it claims is recorded."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import perf_counter

from amed_env.agents.session import SearchSession
from amed_env.bench.contender import Contender
from amed_env.bench.counting import counted
from amed_env.bench.result_file import Improvement, Run, one_line, sequence_digest
from amed_env.bench.suites import Cell, cell_task
from amed_env.evaluation.store import Trial
from amed_env.support.threads import torch_threads
from amed_env.tasks.task import Task

logger = logging.getLogger(__name__)

LONGEST_NOTE = 500
"""Characters of an error in a run."""
LIBRARIES = {"site-packages", "dist-packages", f"python{sys.version_info.major}.{sys.version_info.minor}"}
"""Folders, of which one is in the path of code that is installed."""
_logged: set[tuple[str, str]] = set()
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
        AmedError: If the task of the cell cannot be made.
    """
    task, asked = counted(cell_task(cell))
    record = _Record()
    note = None
    started = perf_counter()
    with torch_threads(1):  # sums of floats, and so the way of a learner, depend on the number of threads
        try:
            result = contender.make().search(task, evaluations, seed, on_change=record.follow)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit, or what extensions raise: it costs this run and no other
            note = _note(f"{type(error).__name__}: {error}{_place_of(error)}")
            level = logging.DEBUG if (contender.name, note) in _logged else logging.WARNING  # once, not 360 times
            _logged.add((contender.name, note))
            logger.log(level, "%s, seed %d, %s: %s", contender.name, seed, cell, note)
        else:
            if result.interrupted:
                return None
            record.faults = len(result.faults)
            if result.gave_up:
                note = _note(f"gave up: {result.faults[-1] if result.faults else 'too many faults in a row'}")
    seconds = round(perf_counter() - started, 3)
    miscounted = _miscounted(len(asked), record.evaluations, evaluations)
    if miscounted is not None:
        return failed_run(cell, seed, miscounted, seconds)
    return Run(
        task=cell.task,
        device=cell.device,
        budget=dict(cell.budget),
        seed=seed,
        evaluations=record.evaluations,
        improvements=improvements(task, zip(record.numbers, record.trials, strict=True)),
        sequence=sequence_digest(trial.allocation.key() for trial in record.trials),
        faults=record.faults,
        seconds=seconds,
        note=note,
    )


def _miscounted(asked: int, counted_by_session: int, allowed: int) -> str | None:
    """Why the number of evaluations disqualifies a run, or None.

    Args:
        asked: Distinct allocations whose quality the evaluator was asked for.
        counted_by_session: Those that went through the session; some of them may have failed before the evaluator.
        allowed: How many may be evaluated.
    """
    if asked > counted_by_session:
        return (
            f"{asked - counted_by_session} qualities were asked for past session.evaluate, where they are not counted; "
            "an environment within an agent needs measure=session.evaluate"
        )
    if counted_by_session > allowed:
        return f"{counted_by_session} qualities were asked for, of which {allowed} are allowed"
    return None


def _place_of(error: BaseException) -> str:
    """Where the agent's own code was when it failed; nothing if only this package and libraries were involved."""
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        installed = path.is_relative_to(_PACKAGE) or LIBRARIES & set(path.parts)
        if path.is_file() and not installed:
            place = f" ({path.name}, line {frame.lineno})"
    return place


def _note(text: str) -> str:
    """The beginning of a text in one line, such that a replay gives it again."""
    return _ADDRESS.sub("0x…", one_line(text))[:LONGEST_NOTE]


class _Record:
    """What a session did, also if the agent breaks in the middle of it."""

    def __init__(self) -> None:
        self.trials: list[Trial] = []
        self.numbers: list[int] = []  # of the evaluation that each trial is; those that failed count too
        self.evaluations = self.faults = 0

    def follow(self, session: SearchSession) -> None:
        """Take over what is new."""
        self.evaluations, self.faults = session.evaluations, len(session.faults)
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
    better: list[Improvement] = []
    best = (-1, 0.0)  # worse than any trial
    for number, trial in trials:
        score = _counted(trial)
        if score > best and task.feasible(trial.costs):
            best = score
            better.append(improvement(task, trial, number))
    return tuple(better)


def _counted(trial: Trial) -> tuple[int, float]:
    """Correct samples and minus the loss: larger is better."""
    quality = trial.quality
    assert quality.correct is not None and quality.loss is not None  # suites are scored by accuracy
    return quality.correct, -quality.loss


def improvement(task: Task, trial: Trial, number: int) -> Improvement:
    """A trial as it stands in a file."""
    correct, minus_loss = _counted(trial)
    return Improvement(
        evaluation=number,
        choices="".join(str(choice) for choice in task.choices(trial.allocation)),
        accuracy=100.0 * trial.quality.accuracy,
        loss=-minus_loss,
        correct=correct,
        relative_costs=relative_costs(task, trial.costs),
    )


def relative_costs(task: Task, costs: Mapping[str, float]) -> dict[str, float]:
    """Costs that the task limits, as factors of the uniform 8-bit cost."""
    return {budget.name: costs[budget.metric] / task.reference_cost[budget.metric] for budget in task.budgets}
