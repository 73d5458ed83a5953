"""Arguments of the commands of the benchmark: `amed bench SUITE`, `amed bench validate`, `amed bench leaderboard`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from amed_env.bench.limits import MOST_EVALUATIONS, MOST_SEEDS
from amed_env.commands.bench.bench_report import report
from amed_env.commands.options import JsonOption
from amed_env.commands.output import Output

bench_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compare agents at equal numbers of evaluations, and check what results claim.",
)


class CellsOption(StrEnum):
    """Cells that a benchmark uses."""

    HELD_OUT = "held-out"
    DEVELOPMENT = "development"


OutOption = Annotated[
    Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of results, one file an agent.", show_default=False)
]
AgentsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--agents",
        metavar="A,B,…",
        help="Names from [b]amed agents[/b], with commas. [b]random[/b] and [b]greedy[/b] always run too.",
    ),
]
AgentOption = Annotated[
    list[str] | None,
    typer.Option(
        "--agent",
        "-a",
        metavar="NAME|MODULE:CLASS|FILE.yaml",
        help="One more agent: a name, package.module:Class, or a recipe. May be repeated.",
    ),
]
SeedsOption = Annotated[
    int, typer.Option("--seeds", min=1, max=MOST_SEEDS, metavar="N", help="Runs of an agent in every cell.")
]
EvaluationsOption = Annotated[
    int,
    typer.Option(
        "--evaluations",
        "-n",
        min=1,
        max=MOST_EVALUATIONS,
        metavar="N",
        help="Different allocations to evaluate in a run.",
    ),
]
CellsArgument = Annotated[
    CellsOption,
    typer.Option("--cells", help="The cells of the leaderboard, or those on which agents may be tuned."),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Keep the finished runs in --out and make the others.")]
WorkersOption = Annotated[
    int, typer.Option("--workers", "-w", min=1, metavar="N", help="Processes; results do not depend on them.")
]
TaskOption = Annotated[
    list[str] | None,
    typer.Option("--task", metavar="TASK", help="Only this task of the suite, for a try. May be repeated."),
]


@bench_app.command()
def tiny(
    out: OutOption,
    agents: AgentsOption = None,
    agent: AgentOption = None,
    seeds: SeedsOption = 10,
    evaluations: EvaluationsOption = 500,
    cells: CellsArgument = CellsOption.HELD_OUT,
    resume: ResumeOption = False,
    workers: WorkersOption = 1,
    task: TaskOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the suite of three tables: exact regret, nothing to download.

    Ctrl-C keeps the finished runs; --resume makes the others.

    [b]Examples:[/b]

    amed bench tiny --agents dqn,maskable-ppo --out runs/tiny --workers 2

    amed bench tiny --agent my_module:MyAgent --seeds 3 --out runs/mine
    """
    _bench("tiny", out, agents, agent, seeds, evaluations, cells, resume, workers, task, as_json)


@bench_app.command()
def real(
    out: OutOption,
    agents: AgentsOption = None,
    agent: AgentOption = None,
    seeds: SeedsOption = 10,
    evaluations: EvaluationsOption = 500,
    cells: CellsArgument = CellsOption.HELD_OUT,
    resume: ResumeOption = False,
    workers: WorkersOption = 1,
    task: TaskOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the suite of ResNet-20 and ResNet-56 on CIFAR-10: every evaluation takes its time, and no optimum is known.

    [b]Example:[/b] amed bench real --agents dqn --seeds 3 --evaluations 100 --out runs/real
    """
    _bench("real", out, agents, agent, seeds, evaluations, cells, resume, workers, task, as_json)


def _bench(
    suite: str,
    out: Path,
    agents: list[str] | None,
    agent: list[str] | None,
    seeds: int,
    evaluations: int,
    cells: CellsOption,
    resume: bool,
    workers: int,
    tasks: list[str] | None,
    as_json: bool,
) -> None:
    with Output(as_json) as output:
        with output.status("starting"):
            from amed_env.bench.suites import Cells
            from amed_env.commands.bench.bench import BenchRequest, bench
        request = BenchRequest(
            suite=suite,
            out=out,
            seeds=seeds,
            evaluations=evaluations,
            cells=Cells(cells.value),
            resume=resume,
            workers=workers,
            agent_lists=agents or [],
            agents=agent or [],
            tasks=tasks or [],
        )
        code = bench(output, request)
    raise typer.Exit(code)


def _replays(text: str) -> int | None:
    if text == "all":
        return None
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise typer.BadParameter(f"{text!r} is neither a whole number nor 'all'.")
    return number


ReplayOption = Annotated[
    str, typer.Option("--replay", metavar="N|all", help="Runs of each file, drawn by chance, that are made again.")
]


@bench_app.command()
def validate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE…", help="Files of results, or folders.", show_default=False)
    ],
    replay: ReplayOption = "all",
    workers: WorkersOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Measure every claim of result files again, and replay every run; ends with 1 unless all of it holds.

    It imports and runs the agents that the files name, and takes as long as the runs took. With --replay N a sample
    is made again, and the counts of the others are believed. Ctrl-C ends it and says what was checked.

    [b]Example:[/b] amed bench validate runs/tiny/*.jsonl --workers 2
    """
    replays = _replays(replay)
    with Output(as_json) as output:
        with output.status("starting"):
            from amed_env.commands.bench.bench_results import validate as run
        code = run(output, files, replays, workers)
    raise typer.Exit(code)


@bench_app.command()
def leaderboard(
    results: Annotated[Path, typer.Option("--results", metavar="DIR", help="Folder of results of one suite.")] = Path(
        "benchmarks/results/tiny"
    ),
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The Markdown file.")] = Path(
        "benchmarks/LEADERBOARD.md"
    ),
    figures: Annotated[
        Path | None, typer.Option("--figures", metavar="FILE", help="Write the ranked regrets as JSON too.")
    ] = None,
    replay: ReplayOption = "1",
    workers: WorkersOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Write the leaderboard of the results that hold; the others are named with the reason, and ranked nowhere.

    One run of each file, drawn by chance, is made again; amed bench validate makes all.

    [b]Example:[/b] amed bench leaderboard --results runs/tiny --out runs/tiny/LEADERBOARD.md
    """
    replays = _replays(replay)
    with Output(as_json) as output:
        with output.status("starting"):
            from amed_env.commands.bench.bench_results import leaderboard as run
        code = run(output, results, out, replays, workers, figures)
    raise typer.Exit(code)


bench_app.command()(report)
