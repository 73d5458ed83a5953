"""Checks what a file of results claims: against the tables, and by running it again.

What the tables know (accuracy, cost, feasibility, order) is checked for every claim. What only a replay can tell (that
the search really took so many evaluations, in that order, and missed nothing) is checked for all runs, or for a sample
of them. What the header says of the agent is taken as it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from amed_env.bench.claims import run_problems
from amed_env.bench.contender import Contender
from amed_env.bench.execution import PROCESS_DIED, Job, run_all
from amed_env.bench.result_file import ResultFile, Run, read_result
from amed_env.bench.suites import Cell, Cells, Suite, cell_task, find_suite, missing_task, task_digest
from amed_env.errors import AmedError
from amed_env.support.machine import versions

MOST_PROBLEMS = 10
"""Problems after which a file is not looked at any further."""
_MORE = "there may be more; the check ended here."
_OTHER_PROCESSOR = (
    "an agent that learns in float32 may decide otherwise on a processor with other instructions; if so, "
    "the run replays on one like the first (for torch ATEN_CPU_CAPABILITY=avx2 or default makes this one an older one)."
)


@dataclass
class Verdict:
    """What is known of a file.

    Attributes:
        path: The file.
        result: What it holds; None if it cannot be read.
        problems: What does not hold; with any, the file is refused.
        unchecked: What could not be checked here, and why; with any, the file is not validated.
        remarks: What is not as it was, but decides nothing.
        claims: Claims that were measured again.
        replayed: Runs that were made again and came out the same.
        interrupted: Whether Ctrl-C ended the check.
    """

    path: Path
    result: ResultFile | None = None
    problems: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    claims: int = 0
    replayed: int = 0
    interrupted: bool = False

    @property
    def valid(self) -> bool:
        """Whether what was to be checked was checked and holds."""
        return not self.problems and not self.unchecked

    @property
    def word(self) -> str:
        """`valid`, `refused` or `not validated`."""
        return "refused" if self.problems else "not validated" if self.unchecked else "valid"

    @property
    def runs(self) -> int:
        """Runs in the file."""
        return 0 if self.result is None else len(self.result.runs)

    @property
    def count(self) -> str:
        """How much was checked, in words."""
        text = f"{self.claims} claims measured, {self.replayed} of {self.runs} runs replayed"
        return text if self.replayed == self.runs else f"{text}; the counts of the others are unchecked"


def validate(
    path: str | Path,
    replays: int | None = None,
    *,
    workers: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verdict:
    """Check a file. Ctrl-C ends it with what was found so far, and `interrupted`.

    It imports and runs the agent that the file names.

    Args:
        path: The file.
        replays: Runs that are made again, drawn by chance; None for all.
        workers: Processes for the replays.
        on_progress: Called after each replay with their number so far, and the number that there will be.
    """
    verdict = Verdict(Path(path))
    try:
        _check(verdict, replays, workers, on_progress)
    except KeyboardInterrupt:
        verdict.interrupted = True
        verdict.unchecked.append("the check was interrupted.")
    return verdict


def _check(verdict: Verdict, replays: int | None, workers: int, on_progress: Callable[[int, int], None]) -> None:
    try:
        verdict.result = result = read_result(verdict.path)
        suite = find_suite(result.header.suite)
    except AmedError as error:
        verdict.problems.append(str(error))
        return
    _check_tables(verdict, result, suite)
    if verdict.problems or verdict.unchecked:
        return
    contender = _check_agent(verdict, result)
    cells = suite.cells(Cells(result.header.cells), list(result.header.tables))
    _check_complete(verdict, result, cells)
    known = set(cells)
    for number, run in enumerate(result.runs, 2):
        if len(verdict.problems) >= MOST_PROBLEMS:
            verdict.problems.append(_MORE)
            return
        if run.cell not in known:  # which was said already
            continue
        for problem in run_problems(run, result.header.evaluations):
            verdict.problems.append(f"line {number}, seed {run.seed} of {run.cell}: {problem}")
        verdict.claims += len(run.improvements)
    if contender is not None and not verdict.problems:
        _replay(verdict, result, contender, replays, workers, on_progress)


def _check_tables(verdict: Verdict, result: ResultFile, suite: Suite) -> None:
    header = result.header
    for task in header.tables:
        if task not in suite.tasks:
            verdict.problems.append(f"task {task!r} is none of suite {suite.name}.")
    for task in suite.tasks:
        if task not in header.tables:
            verdict.problems.append(f"it has no runs on {task}, which belongs to suite {suite.name}.")
            continue
        reason = missing_task(task)
        if reason is not None:
            verdict.unchecked.append(f"{task} is not here: {reason}")
            continue
        here = task_digest(cell_task(suite.cells(Cells(header.cells), [task])[0]))
        if header.tables[task] != here:
            verdict.problems.append(
                f"it was made with another {task}: the digest is {header.tables[task][:12]}…, here {here[:12]}…."
            )


def _check_agent(verdict: Verdict, result: ResultFile) -> Contender | None:
    """The agent that replays, or None if it is not here."""
    header = result.header
    contender = Contender(header.spec, header.options)
    if contender.name != header.agent:
        verdict.problems.append(f"the agent is called {header.agent!r}, but {header.spec!r} is {contender.name!r}.")
        return None
    differing = _differing_versions(result)
    if differing:
        verdict.remarks.append(f"it was made with other versions: {differing}.")
    try:
        contender.make()
    except AmedError as error:
        verdict.unchecked.append(f"no run can be replayed, as the agent cannot be made here: {error}")
        return None
    return contender


def _check_complete(verdict: Verdict, result: ResultFile, cells: list[Cell]) -> None:
    wanted = {(cell, seed) for cell in cells for seed in range(result.header.seeds)}
    known = set(cells)
    for number, run in enumerate(result.runs, 2):
        if run.key not in wanted:
            what = f"none of the {result.header.seeds} seeds" if run.cell in known else "none of the cells"
            verdict.problems.append(f"line {number}: seed {run.seed} of {run.cell} is {what} that the header claims.")
    absent = sorted(wanted - {run.key for run in result.runs}, key=str)
    if absent:
        cell, seed = absent[0]
        verdict.problems.append(f"{len(absent)} of {len(wanted)} runs are missing, the first is seed {seed} of {cell}.")


def _replay(
    verdict: Verdict,
    result: ResultFile,
    contender: Contender,
    replays: int | None,
    workers: int,
    on_progress: Callable[[int, int], None],
) -> None:
    chosen = list(result.runs)
    if replays is not None and replays < len(chosen):
        chosen = random.sample(chosen, replays)  # another one each time, so that repeated checks see more of a file
    claimed: dict[tuple[Cell, int], Run] = {run.key: run for run in chosen}
    jobs = [Job(contender, run.cell, run.seed, result.header.evaluations) for run in chosen]
    differing = _differing_versions(result)
    versions_note = f" (versions differ: {differing})" if differing else ""
    died_before = any(run.note == PROCESS_DIED for run in chosen)
    for done, (job, run) in enumerate(run_all(jobs, workers, own_process=died_before), 1):
        difference = _difference(claimed[job.cell, job.seed], run)
        if difference is None:
            verdict.replayed += 1
        else:
            verdict.problems.append(f"seed {job.seed} of {job.cell} does not replay: {difference.text}{versions_note}.")
            rounded = difference.of_the_search and result.header.family == "learner"
            if rounded and _OTHER_PROCESSOR not in verdict.remarks:
                verdict.remarks.append(_OTHER_PROCESSOR)
        on_progress(done, len(jobs))
        if len(verdict.problems) >= MOST_PROBLEMS and done < len(jobs):
            verdict.problems.append(_MORE)
            return


class _Difference(NamedTuple):
    """In what a replay differs, and whether that is the way of the search."""

    text: str
    of_the_search: bool = True


def _difference(claimed: Run, made: Run) -> _Difference | None:
    for name, what in (("evaluations", "evaluations"), ("faults", "failed evaluations"), ("note", "note")):
        old, new = getattr(claimed, name), getattr(made, name)
        if old != new:
            return _Difference(f"{what} {old!r} claimed, {new!r} found", claimed.sequence != made.sequence)
    if claimed.sequence != made.sequence:
        return _Difference("the allocations, or their order, are others")
    if len(claimed.improvements) != len(made.improvements):
        return _Difference(f"{len(claimed.improvements)} improvements claimed, {len(made.improvements)} found", False)
    for position, (old, new) in enumerate(zip(claimed.improvements, made.improvements, strict=True), 1):
        if (old.evaluation, old.choices) != (new.evaluation, new.choices):
            return _Difference(f"improvement {position} is another", False)
    return None


def _differing_versions(result: ResultFile) -> str:
    there = result.header.versions
    here = {**versions(there.keys() - versions().keys()), **versions()}
    return "; ".join(f"{name} {made} there, {here[name]} here" for name, made in there.items() if here[name] != made)
