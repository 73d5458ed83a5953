"""`amed simulate`: what a network costs on a device; no data and, for named tasks, no weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from amed_env.commands.output import Output
from amed_env.commands.parsing import ChosenAllocation, chosen_allocation
from amed_env.commands.tables import cost_table
from amed_env.errors import InputError
from amed_env.hardware import evaluate_cost, load_device
from amed_env.workload import Workload

if TYPE_CHECKING:
    from amed_env.allocation import BitAllocation


def simulate(
    output: Output,
    network: str | None,
    layers: Path | None,
    device: str,
    given: ChosenAllocation,
) -> None:
    """Print the cost of a network; see `amed simulate --help`."""
    if (network is None) == (layers is None):
        raise InputError(
            f"give either --network or --layers FILE; {'neither is' if network is None else 'both are'} given."
        )
    backend = load_device(device)
    workload = _workload(output, network, layers)
    chosen: BitAllocation = chosen_allocation(workload, *given)
    cost = evaluate_cost(backend, workload, chosen)
    output.show(cost_table(cost, workload.name))
    document = cost.to_json()
    output.document({"device": document.pop("device"), "network": workload.name, **document})


def _workload(output: Output, network: str | None, layers: Path | None) -> Workload:
    if layers is not None:
        return Workload.load_csv(layers)
    assert network is not None
    with output.status(f"tracing {network}"):
        from amed_env.task_registry import import_workload, named_workload

        return import_workload(network) if ":" in network else named_workload(network)
