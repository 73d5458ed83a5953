"""Accuracy against cost: every trial, the front, the uniform widths, the best allocation and the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from amed_env.agents.result import SearchResult
from amed_env.evaluation.store import Trial
from amed_env.hardware.protocol import METRIC_UNITS
from amed_env.report.style import ACCENT, DARK, DOTS, MIDDLE, metric_title, new_figure, tidy

_TALLEST = 20.0  # points of accuracy that the picture shows at most
_FLATTEST = 1.0  # and at least
_REACH_FOR_UNIFORM = 5.0  # points below the top within which a uniform width is worth a taller picture
_NEAR = np.asarray([0.05, 0.04])  # shares of width and height within which two points get one label


@dataclass(frozen=True)
class _Scale:
    """Turns trials into positions: cost relative to uniform 8 bit where the device has it, accuracy in percent."""

    metric: str
    reference: float | None

    def cost(self, value: float) -> float:
        return value if self.reference is None else value / self.reference

    def positions(self, trials: list[Trial]) -> npt.NDArray[np.float64]:
        """float64 of shape (trials, 2): cost, accuracy in percent."""
        points = [(self.cost(t.costs[self.metric]), 100 * t.quality.accuracy) for t in trials]
        return np.asarray(points, dtype=np.float64).reshape(-1, 2)

    @property
    def label(self) -> str:
        if self.reference is None:
            return f"{metric_title(self.metric)} ({METRIC_UNITS.get(self.metric, '?')})"
        return f"{metric_title(self.metric)}, relative to uniform 8 bit"


def draw_pareto(result: SearchResult) -> Figure:
    """Draw the trade-off that a search found.

    Args:
        result: The result, with or without its report.
    """
    figure = new_figure(8.5, 5.6)
    axes = figure.add_subplot()
    task, metric = result.task, result.pareto_metric
    reference = None if task.reference_cost is None else task.reference_cost.metrics.get(metric)
    scale = _Scale(metric, reference or None)
    trials, front = scale.positions(result.trials), scale.positions(result.pareto)
    float_accuracy = 100 * task.float_quality.accuracy
    low, high = _accuracy_range(result, trials, float_accuracy)
    axes.set_ylim(low, high)
    axes.margins(x=0.09)
    _draw_trials(axes, trials, front, low)
    axes.axhline(float_accuracy, color=DARK, linewidth=0.9, linestyle=(0, (1, 2)), label="float network")
    _draw_budgets(axes, result, scale)
    _draw_best(axes, result, scale)
    _draw_uniform(axes, result, scale, low, high)
    _finish(figure, axes, result, scale)
    return figure


def _accuracy_range(
    result: SearchResult, trials: npt.NDArray[np.float64], float_accuracy: float
) -> tuple[float, float]:
    """The accuracies to show: the upper part; collapsed networks become arrows at the lower edge."""
    accuracies = trials[:, 1] if len(trials) else np.asarray([float_accuracy])
    uniform = [100 * trial.quality.accuracy for trial in result.baselines.values()]
    top = max(float(accuracies.max()), float_accuracy, *uniform, 0.0)
    worth_seeing = [float(np.quantile(accuracies, 0.1)), float_accuracy]
    if result.best is not None:
        worth_seeing.append(100 * result.best.quality.accuracy)
    worth_seeing += [accuracy for accuracy in uniform if accuracy > top - _REACH_FOR_UNIFORM]
    best_uniform = result.best_uniform()
    if best_uniform is not None:
        worth_seeing.append(100 * result.baselines[best_uniform].quality.accuracy)
    reach = min(max(top - min(worth_seeing), _FLATTEST), _TALLEST)
    if result.best is not None:  # however bad it is, the result itself is in the picture
        reach = max(reach, top - 100 * result.best.quality.accuracy)
    return max(0.0, top - 1.12 * reach), min(100.0 + 0.04 * reach, top + 0.12 * reach)


def _draw_trials(axes: Axes, trials: npt.NDArray[np.float64], front: npt.NDArray[np.float64], low: float) -> None:
    shown = trials[trials[:, 1] >= low]
    below = trials[trials[:, 1] < low]
    axes.scatter(shown[:, 0], shown[:, 1], s=16, color=DOTS, linewidths=0, label="evaluated allocations", zorder=2)
    if len(below):
        edge = np.full(len(below), low)
        label = f"{len(below)} of {len(trials)} lie below {low:.1f} %"
        axes.scatter(below[:, 0], edge, s=26, marker="v", color=DOTS, clip_on=False, label=label, zorder=2)
    if len(front):
        axes.step(*front.T, where="post", color=MIDDLE, linewidth=1.8, label="Pareto front", zorder=3)
        visible = front[front[:, 1] >= low]
        axes.scatter(visible[:, 0], visible[:, 1], s=20, color=MIDDLE, zorder=3)


def _draw_budgets(axes: Axes, result: SearchResult, scale: _Scale) -> None:
    limit = result.task.limits.get(scale.metric)
    if limit is not None:
        position = scale.cost(limit)
        axes.axvline(position, color=ACCENT, linewidth=1.2, linestyle="--", label=f"budget, {position:.3g}")


def _draw_uniform(axes: Axes, result: SearchResult, scale: _Scale, low: float, high: float) -> None:
    """Squares for uniform widths; triangles at the lower edge for those that lie below it."""
    if not result.baselines:
        return
    points = scale.positions(list(result.baselines.values()))
    widths = [name.removeprefix("uniform-") for name in result.baselines]
    hidden = points[:, 1] < low
    marks: dict[str, Any] = {
        "markerfacecolor": "white",
        "markeredgecolor": DARK,
        "markeredgewidth": 1.4,
        "linestyle": "none",
    }
    axes.plot(*points[~hidden].T, marker="s", markersize=8, zorder=4, label="uniform widths", **marks)
    edge = np.full(int(hidden.sum()), low)
    axes.plot(points[hidden, 0], edge, marker="v", markersize=8, zorder=4, clip_on=False, **marks)
    texts = [
        f"{width} bit ({accuracy:.1f} %)" if is_hidden else f"{width} bit"
        for width, accuracy, is_hidden in zip(widths, points[:, 1], hidden, strict=True)
    ]
    left, right = axes.get_xlim()
    shares = np.column_stack([points[:, 0] / (right - left), np.maximum(points[:, 1], low) / (high - low)])
    for group in _groups(shares):
        cost, accuracy = points[group[0]]
        on_the_right = cost < left + 0.8 * (right - left)
        axes.annotate(
            ", ".join(texts[member] for member in group),
            (cost, max(accuracy, low)),
            xytext=(9 if on_the_right else -9, 8 if hidden[group[0]] else 0),
            textcoords="offset points",
            ha="left" if on_the_right else "right",
            va="center",
            fontsize=9,
            color=DARK,
            path_effects=[withStroke(linewidth=3, foreground="white")],
            zorder=6,
        )


def _groups(shares: npt.NDArray[np.float64]) -> list[list[int]]:
    """Points that are so near to each other that their labels would overlap, as lists of their numbers.

    Args:
        shares: (points, 2) positions as shares of the picture's width and height.
    """
    groups: list[list[int]] = []
    for number, position in enumerate(shares):
        for group in groups:
            if (np.abs(shares[group[0]] - position) < _NEAR).all():
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def _draw_best(axes: Axes, result: SearchResult, scale: _Scale) -> None:
    if result.best is None:
        return
    cost, accuracy = scale.positions([result.best])[0]
    axes.plot(
        cost,
        accuracy,
        marker="*",
        markersize=17,
        color=ACCENT,
        markeredgecolor="white",
        linestyle="none",
        zorder=5,
        label=f"best within budget, {accuracy:.2f} %",
    )


def _finish(figure: Figure, axes: Axes, result: SearchResult, scale: _Scale) -> None:
    task = result.task
    axes.set_xlabel(scale.label)
    axes.set_ylabel("accuracy on the search split (%)")
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(color="#e6e8eb", linewidth=0.7)
    budgets = ", ".join(map(str, task.budgets)) or "no budget"
    axes.set_title(f"{task.network} on {task.device}, {result.agent}, {budgets}", loc="left", fontsize=11)
    message = None
    if not result.trials:
        message = "nothing was evaluated"
    elif result.best is None:
        message = "no evaluated allocation is within the budget"
    if message is not None:
        axes.text(0.5, 0.97, message, transform=axes.transAxes, ha="center", va="top", color=ACCENT)
    tidy(axes)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8.5, frameon=False)
