"""`amed fetch`: data and weights of a task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amed_env.commands.options import JsonOption, TaskArgument
from amed_env.commands.output import Output
from amed_env.tasks.catalogue import TASKS

if TYPE_CHECKING:
    from amed_env.datasets.fetch import Fetched


def fetch(
    task: TaskArgument,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Data folder; by default AMED_DATA_DIR or the user's cache folder."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Download the data and weights of a task from their official homes; an interrupted download continues.

    [b]Example:[/b] amed fetch cifar10-resnet20
    """
    with Output(as_json) as output:
        entry = TASKS.get(task)
        from amed_env.datasets.fetch import ASSETS
        from amed_env.datasets.fetch import fetch as fetch_assets

        fetched: list[Fetched] = []
        if task in ASSETS:
            fetched = fetch_assets(task, to, progress=output.live)
        elif entry.fetch is not None:
            output.show(f"{task}: in {entry.fetch()}")
        else:
            output.show(f"{task} needs no download.")
        for item in fetched:
            output.show(f"{item.title}: {'fetched to' if item.downloaded else 'already in'} {item.path}")
        if fetched and to is not None:
            output.note(f"set AMED_DATA_DIR={to.resolve()} so that amed finds them there.")
        output.document(
            {
                "task": task,
                "files": [{"title": i.title, "path": str(i.path), "downloaded": i.downloaded} for i in fetched],
            }
        )
