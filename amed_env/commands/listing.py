"""`amed tasks`, `amed devices`, `amed agents`: what there is, and what is missing or broken."""

from __future__ import annotations

from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from amed_env.commands.output import Output

Row = dict[str, Any]

_NARROW, _NEEDS_WIDTH = 140, 16
"""Columns below which what an agent needs is wrapped, and the width that it is wrapped to."""


def task_rows() -> list[Row]:
    """Every task with `name`, `description`, and `problem`: what is missing or broken, or None."""
    from amed_env.tasks.catalogue import TASKS

    rows = []
    for name in TASKS.names():
        try:
            entry = TASKS.get(name)
            rows.append({"name": name, "description": entry.description, "problem": entry.missing()})
        except (Exception, SystemExit) as error:  # one broken plug-in must not hide the others
            rows.append({"name": name, "description": "", "problem": str(error) or type(error).__name__})
    return rows


def device_rows() -> list[Row]:
    """Every device with `name`, `description`, `source`, and `problem` or None."""
    from amed_env.hardware.registry import list_devices

    return [
        {"name": i.name, "description": i.description, "source": i.source, "problem": i.error}
        for i in list_devices().values()
    ]


def agent_rows() -> list[Row]:
    """Every agent with `name`, `family`, `regret` or None, `needs`, `description`, `source`, and `problem` or None."""
    from amed_env.agents.measured import measured_regret
    from amed_env.agents.registry import list_agents

    measured = measured_regret()
    regrets = {} if measured is None else measured.agents

    return [
        {
            "name": i.name,
            "family": i.family,
            "regret": regrets[i.name][0] if i.name in regrets else None,
            "needs": i.needs,
            "description": i.description,
            "source": i.source,
            "problem": i.error,
        }
        for i in list_agents().values()
    ]


def show_agents(output: Output) -> None:
    """Print the agents, and what their regrets are."""
    from amed_env.agents.measured import measured_regret

    show_rows(output, "agents", agent_rows())
    measured = measured_regret()
    if measured is not None:
        output.note(measured.conditions)


def show_rows(output: Output, kind: str, rows: list[Row]) -> None:
    """Print a listing; a problem stands in the place of the description's end."""
    output.show(_Listing(rows))
    output.document({kind: rows})


class _Listing:
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
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
