"""`amed fetch`: data and weights of a task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from amed_env.commands.output import Output

if TYPE_CHECKING:
    from amed_env.datasets.fetch import Fetched


def fetch(output: Output, name: str, folder: Path | None) -> None:
    """Download what a task needs; see `amed fetch --help`."""
    from amed_env.tasks.catalogue import TASKS

    entry = TASKS.get(name)
    from amed_env.datasets.fetch import ASSETS
    from amed_env.datasets.fetch import fetch as fetch_assets

    fetched: list[Fetched] = []
    if name in ASSETS:
        fetched = fetch_assets(name, folder, progress=output.live)
    elif entry.fetch is not None:
        output.show(f"{name}: in {entry.fetch()}")
    else:
        output.show(f"{name} needs no download.")
    for item in fetched:
        output.show(f"{item.title}: {'fetched to' if item.downloaded else 'already in'} {item.path}")
    if fetched and folder is not None:
        output.note(f"set AMED_DATA_DIR={folder.resolve()} so that amed finds them there.")
    output.document(
        {
            "task": name,
            "files": [{"title": i.title, "path": str(i.path), "downloaded": i.downloaded} for i in fetched],
        }
    )
