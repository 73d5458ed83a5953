"""`amed bench SUITE`: agents on all cells of a suite, at equal numbers of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from amed_env.bench.contender import Contender
from amed_env.bench.curves import CHECKPOINTS, agent_runs
from amed_env.bench.execution import Job, run_all
from amed_env.bench.result_file import ResultFile, read_result
from amed_env.bench.results_folder import AgentFile, make_header
from amed_env.bench.run_statistics import interquartile_mean
from amed_env.bench.suites import Cell, Cells, Suite, cell_task, find_suite, is_tabular, usable_tasks
from amed_env.bench.truth import cell_truth
from amed_env.commands.interrupts import Interrupts
from amed_env.commands.output import Output, describe_disk_error, is_disk_error
from amed_env.commands.progress import progress_bars
from amed_env.errors import AmedError, InputError

ALWAYS = ("random", "greedy")
"""Agents that every comparison has, beside the exact optimum."""


@dataclass(frozen=True)
class BenchRequest:
    """The arguments of `amed bench SUITE`, as they were given."""

    suite: str
    out: Path
    seeds: int
    evaluations: int
    cells: Cells = Cells.HELD_OUT
    resume: bool = False
    workers: int = 1
    agent_lists: list[str] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)


def bench(output: Output, request: BenchRequest) -> int:
    """Run a suite and write its results.

    Returns:
        The exit code: 0; 1 if a run ended with an error; or 128 + the signal that ended it.
    """
    suite = find_suite(request.suite)
    contenders = _contenders(request)
    usable, missing = usable_tasks(suite, request.tasks or None)
    for task, reason in missing.items():
        output.warn(f"task {task} is left out: {reason}. Results without it are not those of the whole suite.")
    cells = suite.cells(request.cells, usable)
    with output.status("preparing the tasks"):
        for cell in cells:
            cell_task(cell)  # an unreachable budget is reported before anything runs
        headers = [
            make_header(contender, suite, request.cells, cells, request.evaluations, request.seeds)
            for contender in contenders
        ]
    try:
        with ExitStack() as stack, Interrupts() as interrupts:
            files = [
                stack.enter_context(AgentFile(request.out, contender.file_stem, header, cells, request.resume))
                for contender, header in zip(contenders, headers, strict=True)
            ]
            code = _run(output, request, contenders, files, cells, interrupts)
    except OSError as error:
        if not is_disk_error(error):
            raise
        raise AmedError(
            f"{describe_disk_error(error)}. Finished runs are kept in {request.out}; continue with --resume."
        ) from error
    _show(output, suite, [read_result(file.path) for file in files], cells, complete=code in (0, 1))
    return code


def _contenders(request: BenchRequest) -> list[Contender]:
    """Those that were asked for after those that are always there; each is made once, to find errors at once."""
    listed = [name.strip() for text in request.agent_lists for name in text.split(",")]
    if "" in listed:
        raise InputError("--agents has an empty name; write names with commas, for example greedy,dqn.")
    contenders = [Contender(spec) for spec in dict.fromkeys([*ALWAYS, *listed, *request.agents])]
    stems: dict[str, str] = {}
    for contender in contenders:
        contender.make()
        other = stems.setdefault(contender.file_stem.casefold(), contender.spec)
        if other != contender.spec:
            raise InputError(
                f"the agents {other!r} and {contender.spec!r} would both write {contender.file_stem}.jsonl; rename one."
            )
    return contenders


def _run(
    output: Output,
    request: BenchRequest,
    contenders: Sequence[Contender],
    files: Sequence[AgentFile],
    cells: Sequence[Cell],
    interrupts: Interrupts,
) -> int:
    missing = {file.path: file.missing(cells, request.seeds) for file in files}
    jobs = [
        Job(contender, cell, seed, request.evaluations)
        for contender, file in zip(contenders, files, strict=True)
        for cell, seed in missing[file.path]
    ]
    file_of = dict(zip((contender.spec for contender in contenders), files, strict=True))
    left = {spec: len(missing[file.path]) for spec, file in file_of.items()}
    total = len(cells) * request.seeds * len(files)
    for file in files:
        if not missing[file.path]:
            file.sort()  # a process that was killed may not have come to it
    if len(jobs) < total:
        output.note(f"{total - len(jobs)} of {total} runs are finished already.")
    bars = progress_bars(output.stderr, output.live)
    bar = bars.add_task("running", total=total, completed=total - len(jobs))
    try:
        with bars:
            for job, run in run_all(jobs, request.workers):
                with interrupts.held():
                    file = file_of[job.contender.spec]
                    file.add(run)
                    left[job.contender.spec] -= 1
                    if not left[job.contender.spec]:
                        file.sort()
                        output.note(f"{job.contender.name}: {_summary(file)}")
                bars.update(bar, advance=1, description=f"{job.contender.name}, {job.cell}")
                interrupts.check()
    except KeyboardInterrupt:
        done = sum(len(file.done) for file in files)
        output.note(f"interrupted; {done} of {total} runs are kept in {request.out}, continue with --resume.")
        return interrupts.exit_code or 130
    return 1 if any(run.note is not None for file in files for run in file.done.values()) else 0


def _summary(file: AgentFile) -> str:
    runs = file.done.values()
    failed = [run for run in runs if run.note is not None]
    text = f"{len(runs)} runs, {sum(run.seconds for run in runs):.1f} s"
    return text if not failed else f"{text}; {len(failed)} ended with an error, the first: {failed[0].note}"


def _show(output: Output, suite: Suite, results: list[ResultFile], cells: list[Cell], complete: bool) -> None:
    rows = []
    tabular = all(is_tabular(cell.task) for cell in cells)
    last = results[0].header.evaluations
    moments = sorted({k for k in CHECKPOINTS if k < last} | {last})
    if tabular and complete:
        rows.append({"agent": "optimum", "regret": dict.fromkeys(map(str, moments), 0.0), "seconds": 0.0, "errors": 0})
    for result in results:
        row: dict[str, Any] = {"agent": result.header.agent}
        if tabular and complete:
            runs = agent_runs(result, [cell_truth(cell) for cell in cells])
            regrets = map(interquartile_mean, runs.regrets_after(moments))
            row["regret"] = {str(after): float(regret) for after, regret in zip(moments, regrets, strict=True)}
        elif complete:
            best = [run.improvements[-1].accuracy if run.improvements else 0.0 for run in result.runs]
            row["mean_accuracy"] = sum(best) / len(best)
        row["seconds"] = sum(run.seconds for run in result.runs)
        row["errors"] = sum(run.note is not None for run in result.runs)
        rows.append(row)
    output.show(_table(suite, rows, moments if tabular and complete else []))
    output.document({"suite": suite.name, "complete": complete, "agents": rows})


def _table(suite: Suite, rows: list[dict[str, Any]], moments: list[int]) -> Table:
    title = f"{suite.name}: interquartile mean of regret in accuracy points after … evaluations" if moments else None
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    table.add_column("agent", no_wrap=True)
    accuracies = any("mean_accuracy" in row for row in rows)
    for name in [*map(str, moments), *(["accuracy %"] if accuracies else []), "seconds", "errors"]:
        table.add_column(name, justify="right")
    for row in rows:
        values = [f"{row['regret'][str(after)]:.3f}" for after in moments]
        if accuracies:
            values.append(f"{row['mean_accuracy']:.2f}")
        table.add_row(row["agent"], *values, f"{row['seconds']:.1f}", str(row["errors"]))
    return table
