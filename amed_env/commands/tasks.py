"""`amed tasks`: the networks with their data, and what of it is missing here."""

from __future__ import annotations

from amed_env.commands.listing import Row, show_rows
from amed_env.commands.options import JsonOption
from amed_env.commands.output import Output
from amed_env.tasks.catalogue import TASKS


def tasks(as_json: JsonOption = False) -> None:
    """List the tasks: networks with their data, and what of it is missing here.

    [b]Example:[/b] amed tasks --json
    """
    with Output(as_json) as output:
        show_rows(output, "tasks", [_row(name) for name in TASKS.names()])


def _row(name: str) -> Row:
    """`name`, `description`, and `problem`: what is missing or broken, or None."""
    try:
        entry = TASKS.get(name)
        return {"name": name, "description": entry.description, "problem": entry.missing()}
    except (Exception, SystemExit) as error:  # one broken plug-in must not hide the others
        return {"name": name, "description": "", "problem": str(error) or type(error).__name__}
