"""`amed simulate`: what a network costs on a device; no data and, for named tasks, no weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amed_env.commands.options import (
    DEVICE,
    OUTPUT,
    ActivationBitsOption,
    AllocationOption,
    BitsOption,
    DeviceOption,
    JsonOption,
    LayersOption,
    NetworkShapesOption,
    PinOption,
    cli_option,
)
from amed_env.commands.output import Output
from amed_env.commands.parsing import check_network_or_layers, chosen_allocation, network_shapes
from amed_env.commands.tables import compare_table, cost_table
from amed_env.errors import InputError, UnsupportedPrecisionError
from amed_env.support.files import write_atomically
from amed_env.tasks.make import DEFAULT_DEVICE

if TYPE_CHECKING:
    from amed_env.hardware import Cost, HardwareBackend
    from amed_env.problem.allocation import BitAllocation
    from amed_env.problem.workload import Workload

PLOT_SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class SimulateOptions:
    """What `amed simulate` is asked for."""

    network: NetworkShapesOption = None
    layers: LayersOption = None
    allocation: AllocationOption = None
    bits: BitsOption = None
    activation_bits: ActivationBitsOption = None
    pin: PinOption = field(default_factory=list)
    device: DeviceOption = DEFAULT_DEVICE
    compare: Annotated[
        list[str],
        cli_option(DEVICE, "Several devices side by side, in one table.", "--compare", metavar="DEVICE DEVICE …"),
    ] = field(default_factory=list)
    devices: Annotated[
        list[str], typer.Argument(metavar="[DEVICE …]", help="Further devices of --compare.", show_default=False)
    ] = field(default_factory=list)
    plot: Annotated[
        Path | None,
        cli_option(
            OUTPUT, "Draw latency by layer and bound, and the roofline (.png, .svg, .pdf).", "--plot", metavar="FILE"
        ),
    ] = None
    as_json: JsonOption = False


def simulate(options: SimulateOptions) -> None:
    """Simulate what a network costs on a device, layer by layer.

    [b]Examples:[/b]

    amed simulate --network cifar10-resnet20 --device eyeriss-ws --bits 4 --plot resnet.png

    amed simulate --network digits-cnn --bits 4 --compare bitfusion eyeriss-ws systolic-32

    amed simulate --layers layers.csv --device my_device.yaml --allocation allocation.json --json
    """
    with Output(options.as_json) as output:
        _check(options)
        with output.status("starting"):
            from amed_env.hardware import evaluate_cost, load_device

        names = list(dict.fromkeys([*options.compare, *options.devices])) or [options.device]
        backends = [load_device(name) for name in names]
        workload = network_shapes(output, options.network, options.layers)
        chosen = chosen_allocation(workload, options.allocation, options.bits, options.activation_bits, options.pin)
        if options.compare:
            _compare(output, backends, workload, chosen)
            return
        cost = evaluate_cost(backends[0], workload, chosen)
        output.show(cost_table(cost, workload.name))
        document = cost.to_json()
        document = {"device": document.pop("device"), "network": workload.name, **document}
        if options.plot is not None:
            _plot(options.plot, backends[0], workload, cost)
            output.show(f"wrote {options.plot}")
            document["files"] = [str(options.plot)]
        output.document(document)


def _check(options: SimulateOptions) -> None:
    """Check what goes together, before anything is loaded.

    Raises:
        InputError: If something does not.
    """
    if options.devices and not options.compare:
        raise InputError(
            f"{' '.join(options.devices)!r} is no option; name a device with --device, several with --compare."
        )
    if options.plot is not None:
        if options.compare:
            raise InputError("--plot draws one device; leave --compare out and name it with --device.")
        if options.plot.suffix.lower() not in PLOT_SUFFIXES:
            raise InputError(f"--plot {options.plot}: a picture ends in {', '.join(PLOT_SUFFIXES)}.")
    check_network_or_layers(options.network, options.layers)


def _plot(path: Path, backend: HardwareBackend, workload: Workload, cost: Cost) -> None:
    from amed_env.report.simulation_chart import draw_simulation
    from amed_env.report.style import picture

    figure = draw_simulation(backend, workload, cost)
    write_atomically(path, picture(figure, path.suffix.lower().removeprefix(".")))


def _compare(output: Output, backends: list[HardwareBackend], workload: Workload, allocation: BitAllocation) -> None:
    from amed_env.hardware import evaluate_cost

    costs: dict[str, Cost] = {}
    problems: dict[str, str] = {}
    for backend in backends:
        try:
            costs[backend.name] = evaluate_cost(backend, workload, allocation)
        except UnsupportedPrecisionError as error:
            problems[backend.name] = str(error)
    if not costs:
        raise UnsupportedPrecisionError(" ".join(problems.values()))
    output.show(compare_table(list(costs.values()), workload.name))
    for problem in problems.values():
        output.warn(problem)
    entries: list[dict[str, Any]] = [cost.to_json() for cost in costs.values()]
    entries += [{"device": name, "problem": problem} for name, problem in problems.items()]
    output.document({"network": workload.name, "allocation": allocation.to_json(workload.name), "devices": entries})
