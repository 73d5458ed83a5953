"""Names of metrics in other units than the package's: `latency_us` is `latency_ms` in microseconds."""

from __future__ import annotations

from amed_env.hardware.protocol import METRIC_UNITS
from amed_env.problem.units import unit_factor


def known_metric(name: str) -> tuple[str, float] | None:
    """The metric that a name means in another unit, and what its values are multiplied by; None if there is none."""
    quantity, _, suffix = name.rpartition("_")
    if name in METRIC_UNITS or not quantity:
        return None
    for metric, unit in METRIC_UNITS.items():
        factor = unit_factor(suffix, unit)
        if metric.rpartition("_")[0] == quantity and factor is not None:
            return metric, factor
    return None
