"""`amed bench leaderboard`: the ranking of the results that hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amed_env.commands.bench.options import ReplayOption, WorkersOption, parse_replays
from amed_env.commands.options import JsonOption
from amed_env.commands.output import Output
from amed_env.errors import InputError
from amed_env.support.files import write_atomically

if TYPE_CHECKING:
    from amed_env.bench.validation import Verdict


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
    replays = parse_replays(replay)
    with Output(as_json) as output:
        with output.status("starting"):
            from amed_env.bench.leaderboard import leaderboard_figures, leaderboard_text, rank
            from amed_env.commands.bench.verdicts import files_of, show_verdict, verdict_json, verdicts_of

        files = files_of([results])
        for target in filter(None, (out, figures)):
            _check_target(target)  # before the validation, which may take hours
        verdicts, interrupted = verdicts_of(output, files, replays, workers)
        for verdict in verdicts:
            if not verdict.valid or verdict.remarks:
                show_verdict(output, verdict)
        entries = [verdict_json(verdict) for verdict in verdicts]
        if interrupted:
            output.document({"leaderboard": None, "files": entries})
            raise typer.Exit(interrupted)
        board = rank(verdicts)
        write_atomically(out, leaderboard_text(board))
        if figures is not None:
            write_atomically(figures, json.dumps(leaderboard_figures(board), indent=1, sort_keys=True) + "\n")
        output.show(f"{out}: {_summary(verdicts)}")
        output.document({"leaderboard": str(out), "files": entries})
    raise typer.Exit(0 if all(verdict.valid for verdict in verdicts) else 1)


def _summary(verdicts: list[Verdict]) -> str:
    valid = sum(verdict.valid for verdict in verdicts)
    replayed, runs = sum(verdict.replayed for verdict in verdicts), sum(verdict.runs for verdict in verdicts)
    rest = "" if replayed == runs else "; the counts of the others are unchecked"
    return f"{valid} of {len(verdicts)} files are valid, {replayed} of {runs} runs replayed{rest}."


def _check_target(path: Path) -> None:
    """Make the folder of a file that will be written.

    Raises:
        InputError: If it cannot be a file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}: {path.parent}.") from error
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file to write.")
