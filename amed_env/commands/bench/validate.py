"""`amed bench validate`: what results are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amed_env.commands.bench.options import ReplayOption, WorkersOption, parse_replays
from amed_env.commands.options import JsonOption
from amed_env.commands.output import Output


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
    is made again, and the counts of the others are not verified. Ctrl-C ends it and says what was checked.

    [b]Example:[/b] amed bench validate runs/tiny/*.jsonl --workers 2
    """
    replays = parse_replays(replay)
    with Output(as_json) as output:
        with output.status("starting"):
            from amed_env.commands.bench.verdicts import files_of, show_verdict, verdict_json, verdicts_of

        verdicts, interrupted = verdicts_of(output, files_of(files), replays, workers)
        for verdict in verdicts:
            show_verdict(output, verdict)
        output.document({"files": [verdict_json(verdict) for verdict in verdicts]})
    raise typer.Exit(interrupted or (0 if all(verdict.valid for verdict in verdicts) else 1))
