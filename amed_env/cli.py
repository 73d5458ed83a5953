"""The command line `amed`: its commands, and what becomes of their errors.

A command is a module of `amed_env.commands`, with its options and what it does.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import amed_env._version as version
from amed_env.commands import (
    agents,
    devices,
    evaluate,
    export,
    fetch,
    finetune,
    inspect,
    search,
    simulate,
    table,
    tasks,
)
from amed_env.commands.bench import leaderboard, report, run, validate
from amed_env.commands.output import describe_disk_error, is_disk_error, show_error, silence_stdout
from amed_env.commands.signature import command_of
from amed_env.errors import AmedError

_INTERRUPTED = 130
_NETWORKS, _CATALOGUE, _DEVICES, _AGENTS = "Find and measure", "What there is", "Devices", "Compare agents"
"""Panels of `amed --help`, in their order."""


class Commands(TyperGroup):
    """Turns errors that the package raises on purpose into one line and an exit code; others keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was given."""
        try:
            return super().invoke(ctx)
        except AmedError as error:
            if ctx.params.get("debug"):
                raise
            show_error(str(error))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            if ctx.params.get("debug"):
                raise
            show_error("interrupted")
            raise typer.Exit(_INTERRUPTED) from None
        except BrokenPipeError:
            silence_stdout()
            raise typer.Exit(1) from None
        except OSError as error:
            if ctx.params.get("debug") or not is_disk_error(error):
                raise
            show_error(f"{describe_disk_error(error)}.")
            raise typer.Exit(1) from error


def _group(**options: Any) -> typer.Typer:
    return typer.Typer(rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]}, **options)


app = _group(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)
devices_app = _group(invoke_without_command=True)
bench_app = _group(
    no_args_is_help=True, help="Compare agents at equal numbers of evaluations, and check what results claim."
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"amed {version.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
) -> None:
    """Find the bit-width of every layer of a network of the best quality within a budget.

    [b]Example:[/b] amed search digits-cnn --device bitfusion --budget latency=0.5 --out runs/first

    [b]amed tasks[/b], [b]amed devices[/b] and [b]amed agents[/b] list what there is to choose from.
    """


app.command("search", rich_help_panel=_NETWORKS)(command_of(search.search))
app.command("evaluate", rich_help_panel=_NETWORKS)(command_of(evaluate.evaluate))
app.command("finetune", rich_help_panel=_NETWORKS)(command_of(finetune.finetune))
app.command("export", rich_help_panel=_NETWORKS)(command_of(export.export))
app.command("inspect", rich_help_panel=_NETWORKS)(inspect.inspect)

app.command("tasks", rich_help_panel=_CATALOGUE)(tasks.tasks)
app.command("agents", rich_help_panel=_CATALOGUE)(agents.agents)
app.command("fetch", rich_help_panel=_CATALOGUE)(fetch.fetch)

app.add_typer(devices_app, name="devices", rich_help_panel=_DEVICES)
devices_app.callback()(devices.devices)
devices_app.command("show")(devices.show)
devices_app.command("check")(devices.check)
app.command("simulate", rich_help_panel=_DEVICES)(command_of(simulate.simulate))
app.command("table", rich_help_panel=_DEVICES)(table.table)

app.add_typer(bench_app, name="bench", rich_help_panel=_AGENTS)
bench_app.command("tiny")(command_of(run.tiny))
bench_app.command("real")(command_of(run.real))
bench_app.command("validate")(validate.validate)
bench_app.command("leaderboard")(leaderboard.leaderboard)
bench_app.command("report")(report.report)


def _make_streams_safe() -> None:
    """Let a command end with its work and not at its output."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the shell closed it; otherwise the next file that is opened takes its number
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for as long as the process
    # Names and dashes that a terminal cannot show; in JSON these escapes are the same text.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def main() -> None:
    """Entry point of the console script."""
    _make_streams_safe()
    # Threads that spin while they wait make evaluations 20 times slower where other processes want the cores as
    # well. The OpenMP library reads this when torch is imported, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app(args=sys.argv[1:], prog_name="amed")
