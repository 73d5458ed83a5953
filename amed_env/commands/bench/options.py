"""Options that several commands of the benchmark share."""

from __future__ import annotations

from typing import Annotated

import typer

from amed_env.commands.options import MACHINE, cli_option

WorkersOption = Annotated[
    int,
    cli_option(MACHINE, "Processes; results do not depend on them.", "--workers", "-w", min=1, metavar="N"),
]
ReplayOption = Annotated[
    str, typer.Option("--replay", metavar="N|all", help="Runs of each file, drawn by chance, that are made again.")
]


def parse_replays(text: str) -> int | None:
    """How many runs are made again; None for all.

    Raises:
        BadParameter: If it is neither a number nor `all`.
    """
    if text == "all":
        return None
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is neither a whole number nor 'all'.")
    return int(text)
