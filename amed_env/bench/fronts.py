"""All allocations of a task on a device, the true front among them, and what every agent found: data and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from amed_env.bench.charts import headline
from amed_env.bench.curves import AgentRuns, Comparison
from amed_env.bench.marks import SOLID, marks_of
from amed_env.bench.truth import NOTHING, CellTruth, FloatArray
from amed_env.problem.objective import BUDGET_METRICS
from amed_env.report.style import ACCENT, DARK, metric_title, new_figure, tidy
from amed_env.tasks.ground_truth import all_costs, pareto_front

_FIELDS = (110, 64)  # at most, of cost and of accuracy: each a few pixels wide and high
_ROOM = 0.06  # of the height, above the best and below the worst that is shown
_LEAST_HEIGHT = 2.0  # accuracy points
_DENSITY = LinearSegmentedColormap.from_list("density", ["#eef1f5", "#c3ccd8", "#7f8fa6"])


@dataclass(frozen=True, eq=False)
class Trade:
    """The trade-off between accuracy and one cost of a task on a device.

    Attributes:
        task: Name of the task.
        device: Name of the device.
        metric: The cost, for example `latency_ms`.
        counts: Allocations in each field of the picture: int64 (Y, X).
        cost_edges: Edges of the fields: float64 (X + 1,), relative to uniform 8 bit.
        accuracy_edges: Edges of the fields: float64 (Y + 1,), percent on the search split.
        below: Part of all allocations whose accuracy is below the picture.
        front: The true front: float64 (F, 2) of relative cost and accuracy in percent, cheapest first.
        budgets: Budgets of the cells, relative to uniform 8 bit.
        found: Agent to what its run of the median accuracy found in each cell: float64 (B, 2), NaN where nothing. Of
            an even number of runs it is the worse one of the two in the middle.
    """

    task: str
    device: str
    metric: str
    counts: npt.NDArray[np.int64]
    cost_edges: FloatArray
    accuracy_edges: FloatArray
    below: float
    front: FloatArray
    budgets: tuple[float, ...]
    found: Mapping[str, FloatArray]

    @property
    def cost_title(self) -> str:
        """What is on the axis of the cost."""
        return f"{metric_title(self.metric)}, relative to uniform 8 bit"


def trades_of(comparison: Comparison) -> list[Trade]:
    """The trade-off of every task on every device of the comparison, for each kind of cost that its cells limit.

    Cells that limit several costs at once have no place on one axis, and are not shown.
    """
    cells: dict[tuple[str, str, str], list[int]] = {}
    for number, truth in enumerate(comparison.truths):
        if len(truth.cell.budget) == 1:
            metric = BUDGET_METRICS[truth.cell.budget[0][0]]
            cells.setdefault((truth.cell.task, truth.cell.device, metric), []).append(number)
    return [_trade(comparison, metric, numbers) for (_, _, metric), numbers in cells.items()]


def _trade(comparison: Comparison, metric: str, numbers: Sequence[int]) -> Trade:
    truths = [comparison.truths[number] for number in numbers]
    task = truths[0].task.with_budget(None)
    reference = _reference(truths[0], metric)
    costs = all_costs(task, metric) / reference
    known = np.isfinite(costs)
    costs, accuracies = costs[known], truths[0].accuracy(np.flatnonzero(known))
    points = [(t.costs[metric] / reference, 100 * t.quality.accuracy) for t in pareto_front(task, metric=metric)]
    front = np.asarray(points, dtype=np.float64)
    found = {
        agent.name: np.array([_median_find(agent, comparison, number, metric) for number in numbers])
        for agent in comparison.agents
    }
    low, high = _accuracies_shown(front, min(truth.cell.budget[0][1] for truth in truths), found)
    accuracy_edges = _accuracy_edges(low, high, truths[0].table.float_quality["search"].samples)
    bins = (np.linspace(costs.min(), costs.max(), _FIELDS[0] + 1), accuracy_edges)
    counts, cost_edges, _ = np.histogram2d(costs, accuracies, bins=bins)
    return Trade(
        truths[0].cell.task,
        truths[0].cell.device,
        metric,
        counts.T.astype(np.int64),
        cost_edges,
        accuracy_edges,
        float((accuracies < accuracy_edges[0]).mean()),
        front,
        tuple(truth.cell.budget[0][1] for truth in truths),
        found,
    )


def _reference(truth: CellTruth, metric: str) -> float:
    return float(truth.task.reference_cost[metric])


def _median_find(agent: AgentRuns, comparison: Comparison, number: int, metric: str) -> tuple[float, float]:
    """Relative cost and accuracy (percent) of what the run of the lower median accuracy found in a cell."""
    truth = comparison.truths[number]
    rows = agent.rows[:, number]
    regrets = agent.final[:, number]
    row = int(rows[np.argsort(regrets, kind="stable")[len(rows) // 2]])
    if row == NOTHING:
        return np.nan, np.nan
    return float(all_costs(truth.task, metric)[row] / _reference(truth, metric)), float(truth.accuracy(row))


def _accuracies_shown(front: FloatArray, cheapest: float, found: Mapping[str, FloatArray]) -> tuple[float, float]:
    """From what the front has at the tightest budget, or the worst find, to the top of the front."""
    top = float(front[-1, 1])
    within = front[front[:, 0] <= cheapest * (1 + 1e-9)]
    bottom = float(within[-1, 1]) if len(within) else float(front[0, 1])
    finds = np.concatenate(list(found.values()))[:, 1]
    bottom = min([bottom, *finds[np.isfinite(finds)].tolist()])
    height = max(top - bottom, _LEAST_HEIGHT)
    return max(0.0, top - height * (1 + 2 * _ROOM)), top + height * _ROOM


def _accuracy_edges(low: float, high: float, samples: int) -> FloatArray:
    """Edges between which lie equally many of the accuracies that so many samples can have, in percent."""
    step = 100.0 / samples
    first, last = int(low / step), int(np.ceil(high / step))
    levels = max(1, -(-(last - first) // _FIELDS[1]))
    return np.asarray((np.arange(first, last + levels + 1, levels) - 0.5) * step)


def draw_fronts(comparison: Comparison, trades: Sequence[Trade]) -> Figure:
    """Draw trade-offs side by side: all allocations as density, the true front, and what each agent found."""
    figure = new_figure(5.4 * len(trades), 5.2 + 0.1 * len(comparison.agents))
    grid = figure.subplots(1, len(trades), squeeze=False)[0]
    for axes, trade in zip(grid, trades, strict=True):
        _draw_trade(axes, comparison, trade)
    grid[0].set_ylabel("accuracy on the search split (%)")
    handles, labels = grid[0].get_legend_handles_labels()
    columns = 3 * len(trades)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False)
    headline(
        figure,
        f"{trades[0].task}: every allocation (grey, the darker the more), the true front, and the median run of each "
        "agent at each budget",
    )
    return figure


def _draw_trade(axes: Axes, comparison: Comparison, trade: Trade) -> None:
    counts = np.ma.masked_equal(trade.counts, 0)
    norm = LogNorm(1, max(2, int(trade.counts.max())))
    axes.pcolormesh(trade.cost_edges, trade.accuracy_edges, counts, cmap=_DENSITY, norm=norm, rasterized=True)
    line: dict[str, Any] = {"color": DARK, "linewidth": 1.6, "label": "true front", "zorder": 3}
    end = [[trade.cost_edges[-1], trade.front[-1, 1]]]
    axes.step(*np.concatenate([trade.front, end]).T, where="post", **line)
    for number, budget in enumerate(trade.budgets):
        label = "_" if number else "budget"  # one of them in the legend
        axes.axvline(budget, color=ACCENT, linewidth=0.9, linestyle=(0, (2, 3)), zorder=2, label=label)
    for name, mark in marks_of(comparison).items():
        filled = mark.line == SOLID
        axes.plot(
            *trade.found[name].T,
            linestyle="none",
            marker=mark.marker,
            markersize=6.5,
            markerfacecolor=mark.colour if filled else "white",
            markeredgecolor="white" if filled else mark.colour,
            markeredgewidth=0.7 if filled else 1.4,
            label=name,
            zorder=4,
            clip_on=False,
        )
    axes.set_ylim(trade.accuracy_edges[0], trade.accuracy_edges[-1])
    axes.set_xlim(trade.cost_edges[0], trade.cost_edges[-1])
    axes.set_xlabel(trade.cost_title)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.set_title(f"{trade.device} ({trade.below:.0%} of all below the picture)", loc="left", fontsize=10, color=DARK)
    tidy(axes)
