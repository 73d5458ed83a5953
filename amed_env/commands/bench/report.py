"""`amed bench report`: pictures and a page of a folder of results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amed_env.commands.options import JsonOption
from amed_env.commands.output import Output


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of results of one suite.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the report; by default DIR/report."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw regret curves, profiles and fronts of results, and write one page of them that works offline.

    [b]Example:[/b] amed bench report runs/tiny
    """
    with Output(as_json) as output:
        with output.status("computing the report"):
            from amed_env.bench.report import report as run

            written = run(folder, folder / "report" if out is None else out)
        output.show(*(str(path) for path in written))
        output.document({"files": [str(path) for path in written]})
