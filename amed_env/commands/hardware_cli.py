"""Arguments of the commands about devices: `amed devices`, `amed simulate`, `amed table`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amed_env.commands.options import (
    DEFAULT_DEVICE,
    DEVICE_FORMS,
    ActivationBitsOption,
    AllocationOption,
    BitsOption,
    DeviceOption,
    JsonOption,
    LayersOption,
    NetworkShapesOption,
    PinOption,
)
from amed_env.commands.output import Output

devices_app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

DeviceArgument = Annotated[str, typer.Argument(metavar="NAME|FILE|MODULE:CLASS", help=DEVICE_FORMS)]


@devices_app.callback()
def devices(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the devices: shipped, registered, and of plug-ins; show and check one.

    [b]Examples:[/b] amed devices      amed devices show bitfusion      amed devices check my_device.yaml
    """
    from amed_env.commands import listing

    if context.invoked_subcommand is None:
        with Output(as_json) as output:
            listing.show_rows(output, "devices", listing.device_rows())


@devices_app.command()
def show(device: DeviceArgument, as_json: JsonOption = False) -> None:
    """Show what a device can run, what it reports, and its constants with their sources.

    [b]Example:[/b] amed devices show eyeriss-ws
    """
    from amed_env.commands.devices import show as run

    with Output(as_json) as output:
        run(output, device)


@devices_app.command()
def check(
    device: DeviceArgument,
    network: NetworkShapesOption = None,
    layers: LayersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that a device keeps its promises; ends with 1 if it breaks one.

    [b]Examples:[/b]

    amed devices check my_device.yaml

    amed devices check my_module:MyNpu --network digits-cnn
    """
    from amed_env.commands.devices import check as run

    with Output(as_json) as output:
        code = run(output, device, network, layers)
    raise typer.Exit(code)


def simulate(
    network: NetworkShapesOption = None,
    layers: LayersOption = None,
    device: DeviceOption = DEFAULT_DEVICE,
    allocation: AllocationOption = None,
    bits: BitsOption = None,
    activation_bits: ActivationBitsOption = None,
    pin: PinOption = None,
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", metavar="DEVICE DEVICE …", help="Several devices side by side, in one table."),
    ] = None,
    devices: Annotated[
        list[str] | None, typer.Argument(metavar="[DEVICE …]", help="Further devices of --compare.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw latency by layer and bound, and the roofline (.png, .svg, .pdf)."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate what a network costs on a device, layer by layer.

    [b]Examples:[/b]

    amed simulate --network cifar10-resnet20 --device eyeriss-ws --bits 4 --plot resnet.png

    amed simulate --network digits-cnn --bits 4 --compare bitfusion eyeriss-ws systolic-32

    amed simulate --layers layers.csv --device my_device.yaml --allocation allocation.json --json
    """
    from amed_env.commands.simulate import SimulateRequest
    from amed_env.commands.simulate import simulate as run

    with Output(as_json) as output:
        run(
            output,
            SimulateRequest(
                network, layers, device, (allocation, bits, activation_bits, pin), compare or [], devices or [], plot
            ),
        )


def table(
    device: DeviceOption = DEFAULT_DEVICE,
    network: NetworkShapesOption = None,
    layers: LayersOption = None,
    bits: Annotated[
        str | None,
        typer.Option("--bits", metavar="LIST", help="Widths of the table, 2,3,4,8; by default all of the device."),
    ] = None,
    tied: Annotated[bool, typer.Option("--tied", help="Weights and activations of equal width only.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help=".csv or .npy (with a .json beside it); stdout without it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write what every layer costs at every precision, with where the numbers come from; the file is a device itself.

    [b]Examples:[/b]

    amed table --device onnxruntime-cpu --network cifar10-resnet20 --out my_cpu.csv

    amed search cifar10-resnet20 --device my_cpu.csv --bits 8,32 --budget latency=0.8 --out runs/cpu
    """
    from amed_env.commands.table import table as run

    with Output(as_json) as output:
        run(output, device, network, layers, bits, tied, out)
