"""The best allocation: widths of every layer, and where the latency goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from amed_env.agents.result import SearchResult
from amed_env.hardware.protocol import Cost
from amed_env.problem.allocation import BitAllocation
from amed_env.report.style import ACCENT, DARK, LIGHT, MIDDLE, layer_axis, legend_above, metric_title, new_figure, tidy

_INCHES_PER_LAYER = 0.26
_LONGEST_NAME = 32  # characters


def draw_allocation(result: SearchResult) -> Figure:
    """Draw the best allocation of a search, layers from top to bottom in network order.

    Args:
        result: The result; without a best allocation the picture says so.
    """
    task = result.task
    if result.best is None:
        return _say(f"{task.network} on {task.device}: no allocation within the budget was found")
    allocation = result.best.allocation
    names = [_short(name) for name in allocation]
    figure = new_figure(10.5, 1.6 + _INCHES_PER_LAYER * max(len(names), 6))
    metric = "latency_ms" if "latency_ms" in task.capabilities.metrics else result.pareto_metric
    cost = task.cost(allocation)
    has_layers = bool(cost.layers) and all(metric in layer.metrics for layer in cost.layers)
    left, *others = figure.subplots(1, 2 if has_layers else 1, sharey=True, squeeze=False)[0]
    _draw_widths(left, allocation, names)
    if others:
        _draw_shares(others[0], names, metric, cost, task.device_costs.uniform_reference)
    reached = task.score.described(result.best.quality.score)
    budgets = ", ".join(map(str, task.budgets)) or "no budget"
    figure.suptitle(
        f"{task.network} on {task.device}, {result.agent}, {budgets}: {reached} on the search split",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    return figure


def _say(message: str) -> Figure:
    figure = new_figure(8.0, 2.0)
    figure.text(0.5, 0.5, message, ha="center", va="center", color=DARK)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _draw_widths(axes: Axes, allocation: BitAllocation, names: Sequence[str]) -> None:
    rows = np.arange(len(names))
    weights = [precision.weight_bits for precision in allocation.values()]
    activations = [precision.activation_bits for precision in allocation.values()]
    apart = weights != activations
    bars = {"weights": (weights, DARK, -0.2 if apart else 0.0)}
    if apart:
        bars["activations"] = (activations, MIDDLE, 0.2)
    height = 0.38 if apart else 0.7
    for label, (widths, colour, shift) in bars.items():
        axes.barh(rows + shift, widths, height, color=colour, label=label)
        for row, width in zip(rows, widths, strict=True):
            axes.annotate(
                str(width),
                (width, row + shift),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7 if apart else 8.5,
                color=DARK,
            )
    axes.set_yticks(rows, names, parse_math=False, fontsize=8.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, max(*weights, *activations) * 1.1)
    axes.set_xlabel("bits" if apart else "bits of weights and activations")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes)
    if apart:
        legend_above(axes)


def _draw_shares(axes: Axes, names: Sequence[str], metric: str, cost: Cost, reference: Cost | None) -> None:
    """Each layer's cost as a percentage of the whole network at 8 bit, so that what was saved is seen as well."""
    whole = cost[metric] if reference is None else reference[metric]
    if not whole:
        return
    rows = np.arange(len(cost.layers))
    title = metric_title(metric)
    series = [("this allocation", cost, ACCENT)]
    if reference is not None:
        series.insert(0, ("uniform 8 bit", reference, LIGHT))
    height = 0.76 / len(series)
    for number, (label, of, colour) in enumerate(series):
        shares = [100 * layer.metrics[metric] / whole for layer in of.layers]
        shift = (number - (len(series) - 1) / 2) * height
        axes.barh(rows + shift, shares, height, color=colour, label=f"{label}, sum {sum(shares):.1f} %")
    of_what = "of this network" if reference is None else "of the whole network at uniform 8 bit"
    layer_axis(axes, names, f"{title} of the layer, % {of_what}")
    legend_above(axes)
