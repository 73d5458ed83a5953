"""Checks whatever a file of results claims: against the tables, and by running it again.

What the tables know (accuracy, cost, feasibility, order) is checked for every claim. What only a replay can tell (that
the search really took so many evaluations, in that order, and missed nothing) is checked for a sample of the runs, or
for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import isclose
from pathlib import Path

import numpy as np

from amed_env.allocation import BitAllocation
from amed_env.bench.execution import Job, run_all
from amed_env.bench.result_file import Improvement, ResultFile, Run, read_result
from amed_env.bench.running import Contender, relative_costs
from amed_env.bench.suites import Cell, Cells, Suite, cell_task, find_suite, missing_task, task_digest
from amed_env.errors import AllocationError, AmedError
from amed_env.run_folder import versions
from amed_env.task import Task

MOST_PROBLEMS = 10
"""Problems after which a file is not looked at any further."""
DEFAULT_REPLAYS = 3
_TOLERANCE = 1e-9  # relative, of costs: sums of floats depend on their order


@dataclass
class Verdict:
    """What is known of a file.

    Attributes:
        path: The file.
        result: What it holds, or None if it cannot be read.
        problems: What does not hold; with any, the file is refused.
        unchecked: What could not be checked here, and why; with any, the file is not validated.
        claims: Claims that were measured again.
        replayed: Runs that were made again and came out the same.
    """

    path: Path
    result: ResultFile | None = None
    problems: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    claims: int = 0
    replayed: int = 0

    @property
    def valid(self) -> bool:
        """Whether everything was checked and holds."""
        return not self.problems and not self.unchecked

    @property
    def word(self) -> str:
        """`valid`, `refused` or `not validated`."""
        return "refused" if self.problems else "not validated" if self.unchecked else "valid"


def validate(
    path: str | Path,
    replays: int | None = DEFAULT_REPLAYS,
    *,
    workers: int = 1,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Check a file.

    Args:
        path: The file.
        replays: Runs that are made again, drawn by the digest of the file; None for all.
        workers: Processes for the replays.
        on_progress: Called with a line whenever something is done.
    """
    verdict = Verdict(Path(path))
    try:
        verdict.result = result = read_result(path)
        suite = find_suite(result.header.suite)
    except AmedError as error:
        verdict.problems.append(str(error))
        return verdict
    _check_header(verdict, result, suite)
    if verdict.problems or verdict.unchecked:
        return verdict
    _check_complete(verdict, result, suite)
    for number, run in enumerate(result.runs, 2):
        for problem in _run_problems(run, result):
            verdict.problems.append(f"line {number}, seed {run.seed} of {run.cell}: {problem}")
        verdict.claims += len(run.improvements)
        if len(verdict.problems) >= MOST_PROBLEMS:
            verdict.problems.append("there may be more; the check ended here.")
            return verdict
    if not verdict.problems:
        _replay(verdict, result, replays, workers, on_progress)
    return verdict


def _check_header(verdict: Verdict, result: ResultFile, suite: Suite) -> None:
    header = result.header
    for task in header.tables:
        if task not in suite.tasks:
            verdict.problems.append(f"task {task!r} is none of suite {suite.name}.")
    for task in suite.tasks:
        reason = missing_task(task)
        if reason is not None and task in header.tables:
            verdict.unchecked.append(f"{task} is not here: {reason}")
        elif reason is None and task not in header.tables:
            verdict.problems.append(f"it has no runs on {task}, which belongs to suite {suite.name}.")
        elif reason is None:
            here = task_digest(cell_task(suite.cells(Cells(header.cells), [task])[0]))
            if header.tables[task] != here:
                verdict.problems.append(
                    f"it was made with another {task}: the digest is {header.tables[task][:12]}…, here {here[:12]}…."
                )


def _check_complete(verdict: Verdict, result: ResultFile, suite: Suite) -> None:
    cells = suite.cells(Cells(result.header.cells), list(result.header.tables))
    wanted = {(cell, seed) for cell in cells for seed in range(result.header.seeds)}
    found = {run.key for run in result.runs}
    for cell, seed in sorted(found - wanted, key=str):
        known = "none of the cells" if cell not in cells else f"none of the {result.header.seeds} seeds"
        verdict.problems.append(f"seed {seed} of {cell} is {known} that the header claims.")
    absent = sorted(wanted - found, key=str)
    if absent:
        cell, seed = absent[0]
        verdict.problems.append(f"{len(absent)} of {len(wanted)} runs are missing, the first is seed {seed} of {cell}.")


def _run_problems(run: Run, result: ResultFile) -> Iterator[str]:
    limit = result.header.evaluations
    if run.evaluations > limit:
        yield f"it took {run.evaluations} evaluations, {limit} are allowed."
    if run.faults > run.evaluations:
        yield f"{run.faults} of {run.evaluations} evaluations failed."
    task = cell_task(run.cell)
    before: Improvement | None = None
    for position, claim in enumerate(run.improvements, 1):
        for problem in _claim_problems(task, claim, before, run.evaluations):
            yield f"improvement {position}: {problem}"
        before = claim


def _claim_problems(task: Task, claim: Improvement, before: Improvement | None, evaluations: int) -> Iterator[str]:
    if claim.evaluation > evaluations:
        yield f"evaluation {claim.evaluation} is after the last one, {evaluations}."
    if before is not None and claim.evaluation <= before.evaluation:
        yield f"evaluation {claim.evaluation} does not come after {before.evaluation}."
    if before is not None and (claim.correct, -claim.loss) <= (before.correct, -before.loss):
        yield "it is no better than the one before."
    allocation = _allocation(task, claim.choices)
    if isinstance(allocation, str):
        yield allocation
        return
    layers = allocation.to_json()["layers"]
    if claim.allocation is not None and claim.allocation != layers:
        yield "its allocation is not that of its choices."
    quality = task.quality(allocation)
    true = (quality.correct, quality.loss, 100.0 * quality.accuracy)
    for name, claimed, measured in zip(("correct", "loss", "accuracy"), _claimed(claim), true, strict=True):
        if claimed != measured:
            yield f"{name} is claimed to be {claimed}, measured {measured}."
    costs = task.total_costs(allocation)
    relative = relative_costs(task, costs)
    if set(claim.relative_costs) != set(relative):
        yield f"costs are given for {', '.join(claim.relative_costs)}, expected {', '.join(relative)}."
    for name, value in relative.items():
        if name in claim.relative_costs and not isclose(claim.relative_costs[name], value, rel_tol=_TOLERANCE):
            yield f"{name} is claimed to be {claim.relative_costs[name]} of 8 bit, measured {value}."
    if not task.feasible(costs):
        used = ", ".join(f"{name}={value:.6g}" for name, value in relative.items())
        yield f"it is not feasible: {used} exceeds {', '.join(map(str, task.budgets))}."


def _claimed(claim: Improvement) -> tuple[int, float, float]:
    return claim.correct, claim.loss, claim.accuracy


def _allocation(task: Task, choices: str) -> BitAllocation | str:
    """The allocation of choices, or what is wrong with them."""
    layers, precisions = len(task.workload), len(task.precisions)
    if len(choices) != layers:
        return f"{len(choices)} choices are given for {layers} layers."
    numbers = [int(choice) for choice in choices]
    if max(numbers) >= precisions:
        return f"choice {max(numbers)} is none of the {precisions} precisions."
    allocation = task.allocation(numbers)
    try:
        task.choices(allocation)
    except AllocationError as error:
        return str(error)
    return allocation


def _replay(
    verdict: Verdict, result: ResultFile, replays: int | None, workers: int, on_progress: Callable[[str], None]
) -> None:
    header = result.header
    contender = Contender(header.spec, header.options)
    chosen = list(result.runs)
    if replays is not None and replays < len(chosen):
        # Who edits a file draws another sample by it.
        rng = np.random.default_rng(int(result.digest[:16], 16))
        chosen = [chosen[position] for position in sorted(rng.choice(len(chosen), replays, replace=False))]
    if not chosen:
        return
    try:
        name = contender.name
        contender.make()
    except AmedError as error:
        verdict.unchecked.append(f"no run can be replayed, as the agent cannot be made here: {error}")
        return
    if name != header.agent:
        verdict.problems.append(f"the agent is called {header.agent!r}, but {header.spec!r} is {name!r}.")
        return
    claimed: dict[tuple[Cell, int], Run] = {run.key: run for run in chosen}
    jobs = [Job(contender, run.cell, run.seed, header.evaluations) for run in chosen]
    for job, run in run_all(jobs, workers):
        difference = _difference(claimed[job.cell, job.seed], run)
        if difference is None:
            verdict.replayed += 1
        else:
            verdict.problems.append(
                f"seed {job.seed} of {job.cell} does not replay: {difference}{_other_versions(result)}."
            )
        on_progress(f"{verdict.path.name}: {verdict.replayed} of {len(jobs)} runs replayed")


def _difference(claimed: Run, made: Run) -> str | None:
    for name, what in (("evaluations", "evaluations"), ("faults", "failed evaluations"), ("note", "note")):
        old, new = getattr(claimed, name), getattr(made, name)
        if old != new:
            return f"{what} {old!r} claimed, {new!r} found"
    if claimed.sequence != made.sequence:
        return "the allocations, or their order, are others"
    if len(claimed.improvements) != len(made.improvements):
        return f"{len(claimed.improvements)} improvements claimed, {len(made.improvements)} found"
    for position, (old, new) in enumerate(zip(claimed.improvements, made.improvements, strict=True), 1):
        if (old.evaluation, old.choices) != (new.evaluation, new.choices):
            return f"improvement {position} is another"
    return None


def _other_versions(result: ResultFile) -> str:
    here = versions()
    differing = [
        f"{name} {made} there, {here.get(name, 'none')} here"
        for name, made in result.header.versions.items()
        if here.get(name) != made
    ]
    return f" (versions differ: {'; '.join(differing)})" if differing else ""
