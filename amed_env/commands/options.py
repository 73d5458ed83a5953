"""Options that several subcommands of `amed` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_DEVICE = "bitfusion"
POLICY_AGENT, AGENT_WITHOUT_BUDGET = "policy", "maskable-ppo"
"""What `amed search` takes by default: a policy is asked for a budget."""
WIDTHS = "Bit-widths, 1 to 16; 32 stands for float."
DEVICE_FORMS = (
    "A name from [b]amed devices[/b], a device file (.yaml), a table (.csv, .npy), package.module:Class, or a program: "
    "'command: ./simulator --fast'."
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
DeviceOption = Annotated[str, typer.Option("--device", "-d", metavar="NAME|FILE|MODULE:CLASS", help=DEVICE_FORMS)]
AllocationOption = Annotated[
    Path | None, typer.Option("--allocation", metavar="FILE", help="An allocation file, as [b]amed search[/b] writes.")
]
BitsOption = Annotated[int | None, typer.Option("--bits", metavar="N", help=f"The same width everywhere. {WIDTHS}")]
ActivationBitsOption = Annotated[
    int | None, typer.Option("--activation-bits", metavar="N", help="Width of activations, if not that of --bits.")
]
NetworkShapesOption = Annotated[
    str | None,
    typer.Option(
        "--network",
        metavar="TASK|MODULE:FUNCTION",
        help="A name from [b]amed tasks[/b] (neither data nor weights are needed), or package.module:function.",
    ),
]
LayersOption = Annotated[
    Path | None,
    typer.Option("--layers", metavar="FILE", help="Layers as CSV with the columns name,kind,m,n,k,groups."),
]
PinOption = Annotated[
    list[str] | None,
    typer.Option(
        "--pin",
        metavar="LAYER=BITS",
        help="A layer that keeps its width, by name, [b]first[/b] or [b]last[/b]: first=8, or stem=8/4 for weights and "
        "activations apart. May be repeated.",
    ),
]
