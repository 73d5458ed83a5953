"""What an allocation costs on a device, where the device has its widths."""

from __future__ import annotations

from collections.abc import Mapping

from amed_env.errors import UnsupportedPrecisionError
from amed_env.hardware.choices import reference_allocation
from amed_env.hardware.costs import evaluate_cost
from amed_env.hardware.protocol import HardwareBackend
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.objective import BUDGET_METRICS
from amed_env.problem.workload import Workload


def costs_of(
    backend: HardwareBackend, workload: Workload, allocation: BitAllocation
) -> tuple[dict[str, float], str | None]:
    """Costs by metric, and why there are none, or None."""
    try:
        return dict(evaluate_cost(backend, workload, allocation).metrics), None
    except UnsupportedPrecisionError as error:
        return {}, str(error)


def relative_costs(backend: HardwareBackend, workload: Workload, costs: Mapping[str, float]) -> dict[str, float]:
    """Costs as factors of those of uniform 8 bit (see `reference_allocation`), by the name of their budget."""
    if not costs:
        return {}
    reference, _ = costs_of(backend, workload, reference_allocation(backend, workload))
    return {
        name: costs[metric] / reference[metric]
        for name, metric in BUDGET_METRICS.items()
        if metric in costs and reference.get(metric)
    }
