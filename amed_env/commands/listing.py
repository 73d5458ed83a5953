"""`amed tasks`, `amed devices`, `amed agents`: what there is, and what is missing or broken."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from amed_env.commands.output import Output

Row = dict[str, Any]


def task_rows() -> list[Row]:
    """Every task with `name`, `description`, and `problem`: what is missing or broken, or None."""
    from amed_env.catalogue import TASKS

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
    """Every agent with `name`, `family`, `regret` or None, `description`, `source`, and `problem` or None."""
    from amed_env.agents.measured import measured_regret
    from amed_env.agents.registry import list_agents

    measured = measured_regret()
    regrets = {} if measured is None else measured.agents

    return [
        {
            "name": i.name,
            "family": i.family,
            "regret": regrets[i.name][0] if i.name in regrets else None,
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
    columns = [column for column in (rows[0] if rows else {"name": ""}) if column not in ("description", "problem")]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    table.add_column("description", overflow="fold")
    for row in rows:
        text = Text(row["description"])
        if row["problem"]:
            text.append(f"{'; ' if row['description'] else ''}{row['problem']}", style="yellow")
        table.add_row(*(Text(_cell(row[column])) for column in columns), text)
    output.show(table)
    output.document({kind: rows})


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
