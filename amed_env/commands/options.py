"""Options that several subcommands of `amed` share, and the panels that `--help` sorts options into."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

PROBLEM, DEVICE, OUTPUT, MACHINE = "Problem", "Device", "Output", "Computing"
"""Panels of `--help` that several commands have."""


def cli_option(panel: str, text: str, *names: str, **further: Any) -> Any:
    """An option of a command.

    Args:
        panel: Where `--help` shows it.
        text: What `--help` says of it.
        *names: What it is called on the command line.
        **further: Arguments of `typer.Option`.
    """
    return typer.Option(*names, help=text, rich_help_panel=panel, **further)


_WIDTHS = "Bit-widths, 1 to 16; 32 stands for float."
_DEVICE_FORMS = (
    "A name from [b]amed devices[/b], a device file (.yaml), a table (.csv, .npy), package.module:Class, or a program: "
    "'command: ./simulator --fast'."
)
_TASK_HELP = "A name from [b]amed tasks[/b]."

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help=_TASK_HELP)]
OptionalTaskArgument = Annotated[str | None, typer.Argument(metavar="TASK", help=_TASK_HELP, show_default=False)]
DeviceArgument = Annotated[str, typer.Argument(metavar="NAME|FILE|MODULE:CLASS", help=_DEVICE_FORMS)]

NetworkOption = Annotated[
    str | None,
    cli_option(
        PROBLEM,
        "A network of your own: a function that returns a dict with network, calibration, search and test "
        "(and perhaps name, example_input, outputs, training, score and metrics). To inspect it, a .pt2 file of "
        "torch.export is enough.",
        "--network",
        metavar="MODULE:FUNCTION|FILE",
    ),
]
NetworkShapesOption = Annotated[
    str | None,
    cli_option(
        PROBLEM,
        "A name from [b]amed tasks[/b] (neither data nor weights are needed), package.module:function, or a .pt2 file.",
        "--network",
        metavar="TASK|MODULE:FUNCTION|FILE",
    ),
]
LayersOption = Annotated[
    Path | None,
    cli_option(PROBLEM, "Layers as CSV with the columns name,kind,m,n,k,groups.", "--layers", metavar="FILE"),
]
AllocationOption = Annotated[
    Path | None,
    cli_option(
        PROBLEM,
        "An allocation file, as [b]amed search[/b] writes; or AIMET's encodings, ModelOpt's quant_cfg, "
        "or an object of layers and widths.",
        "--allocation",
        metavar="FILE",
    ),
]
BitsOption = Annotated[int | None, cli_option(PROBLEM, f"The same width everywhere. {_WIDTHS}", "--bits", metavar="N")]
ActivationBitsOption = Annotated[
    int | None, cli_option(PROBLEM, "Width of activations, if not that of --bits.", "--activation-bits", metavar="N")
]
PinOption = Annotated[
    list[str],
    cli_option(
        PROBLEM,
        "A layer that keeps its width, by name, [b]first[/b] or [b]last[/b]: first=8, or stem=8/4 for weights and "
        "activations apart. May be repeated.",
        "--pin",
        metavar="LAYER=BITS",
    ),
]
RecipeOption = Annotated[
    str | None,
    cli_option(
        PROBLEM,
        "How the network is prepared for narrow widths: nearest, bias-correction, equalization, solved, "
        "layer, block, network-rounding or network (the default). What is learned is kept for the next time.",
        "--recipe",
        metavar="NAME",
    ),
]
PrepareTimeOption = Annotated[
    float,
    cli_option(
        PROBLEM,
        "Time to learn how a network is rounded, once: as many steps as fit into it. More time, better narrow widths; "
        "0 for the fewest steps.",
        "--prepare-time",
        min=0,
        metavar="SECONDS",
    ),
]
PREPARE_SECONDS = 120.0
"""Default of it. On two cores with AVX2 that is 700 steps for ResNet-20 and 200 to 300 for ResNet-56; what it costs
against the full recipe stands in docs/evaluation.md."""
ScoreOption = Annotated[
    str | None,
    cli_option(
        PROBLEM,
        "What is optimised: divergence from the float network, which needs no labels (the default; kl or squared-error "
        "say which one), loss, metric, the name of a metric, or a function of yours (outputs, float outputs).",
        "--score",
        metavar="NAME|MODULE:FUNCTION",
    ),
]
MetricOption = Annotated[
    list[str],
    cli_option(
        PROBLEM,
        "What is reported of labelled samples: top-1, top-5, macro-f1, mcc, mean-iou, mae, r2, perplexity, "
        "torchmetrics:NAME, or a class of yours; by default what is usual for such labels. May be repeated.",
        "--metric",
        metavar="NAME|MODULE:CLASS",
    ),
]


class Bias(StrEnum):
    """How biases are kept."""

    FLOAT = "float"
    INT32 = "int32"


BiasOption = Annotated[
    Bias,
    cli_option(
        PROBLEM, "int32: biases as integer-only devices have them, which costs accuracy at narrow widths.", "--bias"
    ),
]
DeviceOption = Annotated[str, cli_option(DEVICE, _DEVICE_FORMS, "--device", "-d", metavar="NAME|FILE|MODULE:CLASS")]
ThreadsOption = Annotated[
    int | None, cli_option(MACHINE, "Threads of torch; by default all cores.", "--threads", min=1, metavar="N")
]
JsonOption = Annotated[
    bool, cli_option(OUTPUT, "Print one JSON document on stdout and nothing else.", "--json", show_default=False)
]
