"""`amed simulate`: what a network costs on a device; no data and, for named tasks, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amed_env.commands.output import Output
from amed_env.commands.parsing import ChosenAllocation, chosen_allocation, network_shapes
from amed_env.commands.tables import compare_table, cost_table
from amed_env.errors import InputError, UnsupportedPrecisionError
from amed_env.hardware import Cost, evaluate_cost, load_device
from amed_env.hardware.protocol import HardwareBackend
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.workload import Workload

PLOT_SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class SimulateRequest:
    """The arguments of `amed simulate`, as they were given."""

    network: str | None
    layers: Path | None
    device: str
    chosen: ChosenAllocation
    compare: list[str]
    further: list[str]
    plot: Path | None


def simulate(output: Output, request: SimulateRequest) -> None:
    """Print the cost of a network; see `amed simulate --help`."""
    if request.further and not request.compare:
        raise InputError(
            f"{' '.join(request.further)!r} is no option; name a device with --device, several with --compare."
        )
    if request.plot is not None:
        if request.compare:
            raise InputError("--plot draws one device; leave --compare out and name it with --device.")
        if request.plot.suffix.lower() not in PLOT_SUFFIXES:
            raise InputError(f"--plot {request.plot}: a picture ends in {', '.join(PLOT_SUFFIXES)}.")
    if (request.network is None) == (request.layers is None):
        network_shapes(output, request.network, request.layers)  # says what is missing before anything is loaded
    names = list(dict.fromkeys([*request.compare, *request.further])) or [request.device]
    backends = [load_device(name) for name in names]
    workload = network_shapes(output, request.network, request.layers)
    chosen = chosen_allocation(workload, *request.chosen)
    if request.compare:
        _compare(output, backends, workload, chosen)
        return
    cost = evaluate_cost(backends[0], workload, chosen)
    output.show(cost_table(cost, workload.name))
    document = cost.to_json()
    document = {"device": document.pop("device"), "network": workload.name, **document}
    if request.plot is not None:
        from amed_env.report.simulation_chart import draw_simulation
        from amed_env.report.style import picture
        from amed_env.support.files import write_atomically

        figure = draw_simulation(backends[0], workload, cost)
        write_atomically(request.plot, picture(figure, request.plot.suffix.lower().removeprefix(".")))
        output.show(f"wrote {request.plot}")
        document["files"] = [str(request.plot)]
    output.document(document)


def _compare(output: Output, backends: list[HardwareBackend], workload: Workload, allocation: BitAllocation) -> None:
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
