"""The command line `amed`: parses, calls, prints.

Nothing heavy is imported here, so that help and listings come at once.
"""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import amed_env._version as version
from amed_env.commands import finetune_cli, hardware_cli
from amed_env.commands.bench import bench_cli
from amed_env.commands.options import (
    AGENT_WITHOUT_BUDGET,
    DEFAULT_DEVICE,
    POLICY_AGENT,
    ActivationBitsOption,
    AllocationOption,
    BitsOption,
    DeviceOption,
    JsonOption,
    PinOption,
)
from amed_env.commands.output import Output, describe_disk_error, is_disk_error, show_error, silence_stdout
from amed_env.errors import AmedError

_INTERRUPTED = 130


class Split(StrEnum):
    """Samples that `amed evaluate` uses."""

    SEARCH = "search"
    TEST = "test"
    ALL = "all"


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


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

NetworkOption = Annotated[
    str | None,
    typer.Option(
        "--network",
        metavar="MODULE:FUNCTION",
        help="A network of your own: a function that returns a dict with network, calibration, search and test "
        "(and perhaps name and example_input).",
    ),
]
TaskArgument = Annotated[
    str | None, typer.Argument(metavar="TASK", help="A name from [b]amed tasks[/b].", show_default=False)
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, metavar="N", help="Threads of an evaluation; by default all cores."),
]


RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="How the network is prepared for narrow widths: nearest, bias-correction, equalization, layer, block, "
        "network-rounding or network (the default). What is learned is kept for the next time.",
    ),
]


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
    """Find the bit-width of every layer of a network that gives the most accuracy within a budget.

    [b]Example:[/b] amed search digits-cnn --device bitfusion --budget latency=0.5 --out runs/first
    """


@app.command()
def tasks(as_json: JsonOption = False) -> None:
    """List the tasks: networks with their data, and what of it is missing here.

    [b]Example:[/b] amed tasks --json
    """
    from amed_env.commands import listing

    with Output(as_json) as output:
        listing.show_rows(output, "tasks", listing.task_rows())


app.add_typer(hardware_cli.devices_app, name="devices")
app.add_typer(bench_cli.bench_app, name="bench")


@app.command()
def agents(as_json: JsonOption = False) -> None:
    """List the agents: learners and searchers, shipped and of plug-ins.

    [b]Example:[/b] amed agents
    """
    from amed_env.commands import listing

    with Output(as_json) as output:
        listing.show_agents(output)


@app.command()
def search(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for everything that is found.")],
    task: TaskArgument = None,
    network: NetworkOption = None,
    device: DeviceOption = DEFAULT_DEVICE,
    agent: Annotated[
        str | None,
        typer.Option(
            "--agent",
            "-a",
            metavar="NAME|MODULE:CLASS",
            help="A name from [b]amed agents[/b], package.module:Class, or a recipe (agents/dqn.yaml); "
            f"by default {POLICY_AGENT} (an answer at once, then search), or {AGENT_WITHOUT_BUDGET} without a budget.",
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy", metavar="DIR", help="Ask a saved goal-conditioned policy; the same as --agent policy with it."
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            "--budget",
            "-b",
            metavar="NAME=VALUE",
            help="Limit on latency, energy, memory (of weights) or bops: a factor of uniform 8 bit (latency=0.6) or "
            "with a unit (memory=96KiB). May be repeated.",
        ),
    ] = None,
    evaluations: Annotated[
        int, typer.Option("--evaluations", "-n", min=1, metavar="N", help="Different allocations to evaluate.")
    ] = 300,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0, max=2**32 - 1, metavar="S", help="Random seed.")] = 0,
    bits: Annotated[
        str | None,
        typer.Option("--bits", metavar="LIST", help="Widths to choose from; 2,3,4,8 or a table's own by default."),
    ] = None,
    separate: Annotated[
        bool, typer.Option("--separate", help="Choose the widths of weights and activations apart.")
    ] = False,
    activation_bits: Annotated[
        int | None,
        typer.Option(
            "--activation-bits", metavar="N", help="One width for all activations; only weights are searched."
        ),
    ] = None,
    pin: PinOption = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the agent. May be repeated."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the search in --out.")] = False,
    threads: ThreadsOption = None,
    recipe: RecipeOption = None,
    device_timeout: Annotated[
        float | None,
        typer.Option("--device-timeout", metavar="SECONDS", help="Time that one call of the device may take."),
    ] = None,
    device_retries: Annotated[
        int | None, typer.Option("--device-retries", min=0, metavar="N", help="Further tries of a call that failed.")
    ] = None,
    max_faults: Annotated[
        int,
        typer.Option("--max-faults", min=1, metavar="N", help="Failures in a row after which the search stops."),
    ] = 20,
    as_json: JsonOption = False,
) -> None:
    """Search the allocation of the most accuracy within the budgets, and write it with its comparison and pictures.

    Ctrl-C ends a search with what was found; --resume continues it, whatever stopped it.

    [b]Examples:[/b]

    amed search digits-cnn --budget latency=0.5 --out runs/digits

    amed search cifar10-resnet20 --device eyeriss-ws --agent greedy --budget energy=0.6 --budget memory=96KiB
    --evaluations 100 --out runs/resnet

    amed search --network my_package.nets:make --device my_device.yaml --option warm_start_steps=2000 --out runs/own
    """
    with Output(as_json) as output:
        with output.status("starting"):
            from amed_env.commands.search import SearchRequest, chosen_agent
            from amed_env.commands.search import search as run
        request = SearchRequest(
            task=task,
            network=network,
            device=device,
            agent=chosen_agent(agent, policy, budget or []),
            evaluations=evaluations,
            seed=seed,
            bits=bits,
            separate=separate,
            activation_bits=activation_bits,
            out=out,
            resume=resume,
            threads=threads,
            recipe=recipe,
            budgets=budget or [],
            pins=pin or [],
            options=[*(option or []), *([] if policy is None else [f"policy={json.dumps(str(policy))}"])],
            device_timeout=device_timeout,
            device_retries=device_retries,
            max_faults=max_faults,
        )
        code = run(output, request)
    raise typer.Exit(code)


@app.command()
def evaluate(
    task: TaskArgument = None,
    network: NetworkOption = None,
    allocation: AllocationOption = None,
    bits: BitsOption = None,
    activation_bits: ActivationBitsOption = None,
    pin: PinOption = None,
    split: Annotated[
        Split, typer.Option("--split", help="Samples to use; [b]all[/b] is search and test together.")
    ] = Split.SEARCH,
    device: DeviceOption = DEFAULT_DEVICE,
    threads: ThreadsOption = None,
    recipe: RecipeOption = None,
    finetuned: Annotated[
        Path | None,
        typer.Option("--finetuned", metavar="DIR", help="What [b]amed finetune[/b] trained there, at its allocation."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the accuracy of a network under an allocation, and its cost where the device has those widths.

    [b]Examples:[/b]

    amed evaluate digits-cnn --allocation runs/digits/allocation.json --split test

    amed evaluate digits-cnn --bits 4 --activation-bits 32 --split all     (weights only)
    """
    with Output(as_json) as output:
        from amed_env.commands.evaluate import evaluate as run

        chosen = (allocation, bits, activation_bits, pin)
        run(output, task, network, device, chosen, split.value, threads, recipe, finetuned)


app.command()(finetune_cli.finetune)
app.command()(hardware_cli.simulate)
app.command()(hardware_cli.table)


@app.command()
def inspect(
    task: TaskArgument = None,
    network: NetworkOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the layers of a network, with shapes and work: what is quantized, and what stays in float and why.

    [b]Examples:[/b]

    amed inspect cifar10-resnet20

    amed inspect --network my_package.nets:make --json
    """
    with Output(as_json) as output:
        from amed_env.commands.inspect import inspect as run

        run(output, task, network)


@app.command()
def fetch(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A name from [b]amed tasks[/b].")],
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
        from amed_env.commands.fetch import fetch as run

        run(output, task, to)


def main() -> None:
    """Entry point of the console script."""
    # Threads that spin while they wait make evaluations 20 times slower where other processes want the cores as
    # well. The OpenMP library reads this when torch is imported, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app(args=sys.argv[1:], prog_name="amed")
