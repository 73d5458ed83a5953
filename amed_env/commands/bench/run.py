"""`amed bench SUITE`: agents on all cells of a suite, at equal numbers of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from amed_env.bench.limits import MOST_EVALUATIONS, MOST_SEEDS, Cells
from amed_env.commands.bench.options import WorkersOption
from amed_env.commands.interrupts import Interrupts
from amed_env.commands.options import OUTPUT, JsonOption, cli_option
from amed_env.commands.output import Output, keeping_on_disk_errors
from amed_env.errors import InputError

if TYPE_CHECKING:
    from amed_env.bench.contender import Contender
    from amed_env.bench.results_folder import AgentFile
    from amed_env.bench.suites import Cell

ALWAYS = ("random", "greedy")
"""Agents that every comparison has, beside the exact optimum."""
COMPARISON = "Comparison"


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What `amed bench SUITE` is asked for."""

    agents: Annotated[
        list[str],
        cli_option(
            COMPARISON,
            "Names from [b]amed agents[/b], with commas. [b]random[/b] and [b]greedy[/b] always run too.",
            "--agents",
            metavar="A,B,…",
        ),
    ] = field(default_factory=list)
    agent: Annotated[
        list[str],
        cli_option(
            COMPARISON,
            "One more agent: a name, package.module:Class, or a recipe. May be repeated.",
            "--agent",
            "-a",
            metavar="NAME|MODULE:CLASS|FILE.yaml",
        ),
    ] = field(default_factory=list)
    seeds: Annotated[
        int,
        cli_option(COMPARISON, "Runs of an agent in every cell.", "--seeds", min=1, max=MOST_SEEDS, metavar="N"),
    ] = 10
    evaluations: Annotated[
        int,
        cli_option(
            COMPARISON,
            "Different allocations to evaluate in a run.",
            "--evaluations",
            "-n",
            min=1,
            max=MOST_EVALUATIONS,
            metavar="N",
        ),
    ] = 500
    cells: Annotated[
        Cells,
        cli_option(COMPARISON, "The cells of the leaderboard, or those on which agents may be tuned.", "--cells"),
    ] = Cells.HELD_OUT
    task: Annotated[
        list[str],
        cli_option(COMPARISON, "Only this task of the suite, for a try. May be repeated.", "--task", metavar="TASK"),
    ] = field(default_factory=list)
    out: Annotated[Path, cli_option(OUTPUT, "Folder of results, one file an agent.", "--out", "-o", metavar="DIR")]
    resume: Annotated[bool, cli_option(OUTPUT, "Keep the finished runs in --out and make the others.", "--resume")] = (
        False
    )
    as_json: JsonOption = False
    workers: WorkersOption = 1


def tiny(options: BenchOptions) -> int:
    """Run the suite of three tables: exact regret, nothing to download.

    Ctrl-C keeps the finished runs; --resume makes the others.

    [b]Examples:[/b]

    amed bench tiny --agents dqn,maskable-ppo --out runs/tiny --workers 2

    amed bench tiny --agent my_module:MyAgent --seeds 3 --out runs/mine
    """
    return bench("tiny", options)


def real(options: BenchOptions) -> int:
    """Run the suite of ResNet-20 and ResNet-56 on CIFAR-10: every evaluation takes its time, and no optimum is known.

    [b]Example:[/b] amed bench real --agents dqn --seeds 3 --evaluations 100 --out runs/real
    """
    return bench("real", options)


def bench(suite_name: str, options: BenchOptions) -> int:
    """Run a suite and write its results.

    Args:
        suite_name: Its name.
        options: Who runs in it, and how long.

    Returns:
        The exit code: 0; 1 if a run ended with an error; or 128 + the signal that ended it.
    """
    with Output(options.as_json) as output:
        with output.status("starting"):
            from amed_env.bench.result_file import read_result
            from amed_env.bench.results_folder import AgentFile, make_header
            from amed_env.bench.suites import cell_task, find_suite, usable_tasks
            from amed_env.commands.bench.summary import show_summary

        suite = find_suite(suite_name)
        contenders = _contenders(options)
        usable, missing = usable_tasks(suite, options.task or None)
        for task, reason in missing.items():
            output.warn(f"task {task} is left out: {reason}. Results without it are not those of the whole suite.")
        cells = suite.cells(options.cells, usable)
        with output.status("preparing the tasks"):
            for cell in cells:
                cell_task(cell)  # an unreachable budget is reported before anything runs
            headers = [
                make_header(contender, suite, options.cells, cells, options.evaluations, options.seeds)
                for contender in contenders
            ]
        with (
            keeping_on_disk_errors(f"Finished runs are kept in {options.out}"),
            ExitStack() as stack,
            Interrupts() as interrupts,
        ):
            files = [
                stack.enter_context(AgentFile(options.out, contender.file_stem, header, cells, options.resume))
                for contender, header in zip(contenders, headers, strict=True)
            ]
            code = _run(output, options, contenders, files, cells, interrupts)
        show_summary(output, suite, [read_result(file.path) for file in files], cells, complete=code in (0, 1))
        return code


def _contenders(options: BenchOptions) -> list[Contender]:
    """Those that were asked for after those that are always there; each is made once, to find errors at once."""
    from amed_env.bench.contender import Contender

    listed = [name.strip() for text in options.agents for name in text.split(",")]
    if "" in listed:
        raise InputError("--agents has an empty name; write names with commas, for example greedy,dqn.")
    contenders = [Contender(spec) for spec in dict.fromkeys([*ALWAYS, *listed, *options.agent])]
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
    options: BenchOptions,
    contenders: Sequence[Contender],
    files: Sequence[AgentFile],
    cells: Sequence[Cell],
    interrupts: Interrupts,
) -> int:
    from amed_env.bench.execution import Job, run_all
    from amed_env.commands.progress import progress_bars

    missing = {file.path: file.missing(cells, options.seeds) for file in files}
    jobs = [
        Job(contender, cell, seed, options.evaluations)
        for contender, file in zip(contenders, files, strict=True)
        for cell, seed in missing[file.path]
    ]
    file_of = dict(zip((contender.spec for contender in contenders), files, strict=True))
    left = {spec: len(missing[file.path]) for spec, file in file_of.items()}
    total = len(cells) * options.seeds * len(files)
    for file in files:
        if not missing[file.path]:
            file.sort()  # a process that was killed may not have come to it
    if len(jobs) < total:
        output.note(f"{total - len(jobs)} of {total} runs are finished already.")
    bars = progress_bars(output.stderr, output.live)
    bar = bars.add_task("running", total=total, completed=total - len(jobs))
    try:
        with bars:
            for job, run in run_all(jobs, options.workers):
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
        output.note(f"interrupted; {done} of {total} runs are kept in {options.out}, continue with --resume.")
        return interrupts.exit_code or 130
    return 1 if any(run.note is not None for file in files for run in file.done.values()) else 0


def _summary(file: AgentFile) -> str:
    runs = file.done.values()
    failed = [run for run in runs if run.note is not None]
    text = f"{len(runs)} runs, {sum(run.seconds for run in runs):.1f} s"
    return text if not failed else f"{text}; {len(failed)} ended with an error, the first: {failed[0].note}"
