"""The best allocations of several searches below each other: what differs from device to device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from amed_env.agents.result import allocation_of
from amed_env.errors import InputError
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.objective import BUDGET_METRICS
from amed_env.problem.score import score_from_json
from amed_env.report.style import DARK, MIDDLE, new_figure

_INCHES_PER_LAYER = 0.36
_INCHES_PER_RESULT = 0.62
_COLOURS = LinearSegmentedColormap.from_list("bits", ["#e9eff6", MIDDLE, DARK])


def draw_comparison(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw one row of layers for each result, the darker the wider.

    Args:
        results: Documents in format `amed-result/1`, of the same network; results without a best allocation are
            shown as empty rows.

    Raises:
        InputError: If there is none, or if they are of different networks.
        AllocationError: If an allocation is malformed.
    """
    if not results:
        raise InputError("there is no result to draw; give at least one.")
    allocations = [None if result["best"] is None else allocation_of(result) for result in results]
    names = {(result["network"], tuple(a or ())) for result, a in zip(results, allocations, strict=True)}
    if len({network for network, _ in names}) > 1 or len({layers for _, layers in names if layers}) > 1:
        networks = ", ".join(sorted({str(network) for network, _ in names}))
        raise InputError(f"the results are of different networks or layers ({networks}); draw those of one network.")
    layers = next((list(a) for a in allocations if a is not None), [])
    widths = np.array([_widths(a, len(layers)) for a in allocations], dtype=np.float64)
    figure = new_figure(3.0 + _INCHES_PER_LAYER * max(len(layers), 12), 1.5 + _INCHES_PER_RESULT * len(results))
    axes = figure.subplots()
    scale = Normalize(*_range_of(widths))
    axes.imshow(widths, cmap=_COLOURS, norm=scale, aspect="auto")
    for row, allocation in enumerate(allocations):
        for column, precision in enumerate(allocation.values() if allocation is not None else ()):
            weight, activation = precision
            axes.text(
                column,
                row,
                str(weight) if weight == activation else f"{weight}/{activation}",
                ha="center",
                va="center",
                fontsize=9 if weight == activation else 7,
                color="white" if scale(widths[row, column]) > 0.45 else DARK,
            )
    axes.set_yticks(
        range(len(results)), [_label(result) for result in results], parse_math=False, fontsize=8.5, linespacing=1.3
    )
    axes.set_xticks(
        range(len(layers)), layers, rotation=45, ha="right", rotation_mode="anchor", parse_math=False, fontsize=8
    )
    axes.set_xticks(np.arange(len(layers) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(results) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    figure.suptitle(_title(results), x=0.01, ha="left", fontsize=11)
    return figure


def _widths(allocation: BitAllocation | None, count: int) -> list[float]:
    """The geometric mean of each layer's widths; NaN where there is no allocation."""
    if allocation is None:
        return [np.nan] * count
    return [float(np.sqrt(p.weight_bits * p.activation_bits)) for p in allocation.values()]


def _range_of(widths: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    known = widths[np.isfinite(widths)]
    return (float(known.min()), max(float(known.max()), float(known.min()) + 1)) if known.size else (0.0, 1.0)


def _label(result: Mapping[str, Any]) -> str:
    """Device, score and the budgeted costs relative to uniform 8 bit."""
    best = result["best"]
    if best is None:
        return f"{result['device']}\nnothing found"
    score = score_from_json(result.get("score"))
    parts = [score.described(best["search"].get("score", best["search"].get("accuracy")))]
    for name in result["budgets"]:
        if name in best["relative_costs"]:
            parts.append(f"{name} {best['relative_costs'][name]:.3f}")
        elif BUDGET_METRICS.get(name) in best["costs"]:
            metric = BUDGET_METRICS[name]
            parts.append(f"{name} {best['costs'][metric]:.4g} {metric.rpartition('_')[2]}")
    return f"{result['device']}\n{', '.join(parts)}"


def _title(results: Sequence[Mapping[str, Any]]) -> str:
    """What all results have in common."""
    budgets = set()
    for result in results:
        budgets.add(tuple((name, budget["value"]) for name, budget in result["budgets"].items()))
    agents = {str(result["agent"]) for result in results}
    parts = [f"{results[0]['network']}: bits of every layer, by device"]
    if len(budgets) == 1 and (only := next(iter(budgets))):
        parts.append(", ".join(f"{name}={value:g}" for name, value in only))
    if len(agents) == 1:
        parts.append(next(iter(agents)))
    return "; ".join(parts)
