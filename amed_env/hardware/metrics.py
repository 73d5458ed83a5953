"""Metrics: their units, other units in their names, checks of the numbers that backends answer, and sums of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from amed_env.errors import BackendError
from amed_env.problem.units import unit_factor

METRIC_UNITS: dict[str, str] = {
    "latency_ms": "ms",
    "energy_uj": "uJ",
    "weight_kib": "KiB",
    "bops": "bit operations",
    "flash_kib": "KiB",
    "ram_kib": "KiB",
    "cycles": "cycles",
    "compute_cycles": "cycles",
    "memory_cycles": "cycles",
}
"""Units of the metrics that the package itself knows; a backend may add its own."""


def known_metric(name: str) -> tuple[str, float] | None:
    """The metric that a name means in another unit (`latency_us`), and the factor of its values; None for no such."""
    quantity, _, suffix = name.rpartition("_")
    if name in METRIC_UNITS or not quantity:
        return None
    for metric, unit in METRIC_UNITS.items():
        factor = unit_factor(suffix, unit)
        if metric.rpartition("_")[0] == quantity and factor is not None:
            return metric, factor
    return None


def checked_metrics(metrics: object, required: Iterable[str], where: str) -> dict[str, float]:
    """Metrics as plain numbers, after checking each of them.

    Args:
        metrics: What a backend answered; should be a mapping of metric name to number.
        required: Metrics that must be there.
        where: Device and layer, for messages.

    Returns:
        Metric name to int or float; what is not required is kept as well.

    Raises:
        BackendError: If it is no mapping, or a metric is missing, no number, negative, infinite or NaN.
    """
    if not isinstance(metrics, Mapping):
        raise BackendError(f"{where}: expected a mapping of metric name to number, found {type(metrics).__name__}.")
    missing = [metric for metric in required if metric not in metrics]
    if missing:
        raise BackendError(f"{where}: declared metrics are missing: {', '.join(missing)}.")
    return {str(metric): checked_number(value, f"{where}: metric {metric!r}") for metric, value in metrics.items()}


def checked_number(value: object, where: str) -> int | float:
    """A finite number that is not negative, as a plain int or float.

    Raises:
        BackendError: If it is something else.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise BackendError(f"{where} is {value!r}, expected a number.")
    number = int(value) if isinstance(value, int | np.integer) else float(value)
    if isinstance(number, int) and number.bit_length() > 1023:  # beyond the largest float, about 2^1024
        raise BackendError(f"{where} is an integer of {number.bit_length()} bits, too large for any device.")
    if not math.isfinite(number) or number < 0:
        raise BackendError(f"{where} is {number}, expected a finite number that is not negative.")
    return number


def sum_over_layers(values: Sequence[float]) -> float:
    """The sum of a metric over layers, the same from whichever representation it is taken.

    Integers are added exactly and floats by `math.fsum`, so that the result depends on no order or blocking,
    and `evaluate` equals the sum over a table to the last bit.
    """
    if all(isinstance(value, int | np.integer) for value in values):
        return sum(int(value) for value in values)
    return math.fsum(values)
