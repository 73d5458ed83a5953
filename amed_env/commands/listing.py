"""The table of `amed tasks`, `amed devices` and `amed agents`."""

from __future__ import annotations

from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from amed_env.commands.output import Output
from amed_env.commands.tables import MISSING

Row = dict[str, Any]

_NARROW, _NEEDS_WIDTH = 140, 16
"""Columns below which what an agent needs is wrapped, and the width that it is wrapped to."""


def show_rows(output: Output, kind: str, rows: list[Row]) -> None:
    """Print a listing; a problem stands in the place of the description's end."""
    output.show(Listing(rows))
    output.document({kind: rows})


class Listing:
    """A table that wraps `needs` where there is little room, and has no `source` where all agents are built in."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left_out = {"description", "problem"}
        if all("needs" in row and row["source"] == "built in" for row in self._rows):
            left_out.add("source")
        columns = [column for column in (self._rows[0] if self._rows else {"name": ""}) if column not in left_out]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            if column == "needs" and options.max_width < _NARROW:
                table.add_column(column, max_width=_NEEDS_WIDTH, overflow="fold")
            else:
                table.add_column(column, no_wrap=True)
        table.add_column("description", overflow="fold")
        for row in self._rows:
            text = Text(row["description"])
            if row["problem"]:
                text.append(f"{'; ' if row['description'] else ''}{row['problem']}", style="yellow")
            table.add_row(*(Text(_cell(row[column])) for column in columns), text)
        yield table


def _cell(value: object) -> str:
    if value is None or value == "":
        return MISSING
    return f"{value:.3f}" if isinstance(value, float) else str(value)
