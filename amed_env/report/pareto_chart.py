"""Score against cost: every trial, the front, the uniform widths, the answer and the budget; and the test beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from amed_env.agents.result import SearchResult
from amed_env.evaluation.store import Trial
from amed_env.hardware.metrics import METRIC_UNITS
from amed_env.report.score_axis import ScoreAxis
from amed_env.report.style import ACCENT, DARK, DOTS, MIDDLE, metric_title, new_figure, tidy
from amed_env.report.unseen_chart import draw_unseen, unseen_values

_REACH_FOR_UNIFORM = 5.0  # points below the top within which a uniform width is worth a taller picture
_NEAR = np.asarray([0.05, 0.04])  # shares of width and height within which two points get one label


@dataclass(frozen=True)
class _Scale:
    """Turns trials into positions: cost, relative to uniform 8 bit where the device has it, and height of the score."""

    metric: str
    reference: float | None
    score: ScoreAxis

    def cost(self, value: float) -> float:
        return value if self.reference is None else value / self.reference

    def positions(self, trials: list[Trial]) -> npt.NDArray[np.float64]:
        """float64 of shape (trials, 2): cost, height of the score."""
        points = [(self.cost(t.costs[self.metric]), self.score.height(t.quality)) for t in trials]
        return np.asarray(points, dtype=np.float64).reshape(-1, 2)

    def bars(self, trials: list[Trial]) -> npt.NDArray[np.float64]:
        """Lengths of one standard error below and above each trial: float64 (2, trials), 0 where it is not known."""
        lengths = [self.score.error_lengths(trial.quality) for trial in trials]
        return np.asarray(lengths, dtype=np.float64).reshape(-1, 2).T

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
    unseen = unseen_values(result)
    figure = new_figure(11.0 if unseen else 8.5, 5.6)
    if unseen:
        axes, beside = figure.subplots(1, 2, width_ratios=(8.5, 2.5))
        draw_unseen(beside, result, unseen)
    else:
        axes = figure.add_subplot()
    task, metric = result.task, result.pareto_metric
    uniform = task.device_costs.uniform_reference
    reference = None if uniform is None else uniform.metrics.get(metric)
    float_quality = None if task.score.against_float else task.float_quality  # perfect by definition
    some = [*(trial.quality for trial in result.trials), *([] if float_quality is None else [float_quality])]
    best = None if result.best is None else result.best.quality.score
    score = ScoreAxis(task.score, some[-1].score if some else 1.0, best)
    scale = _Scale(metric, reference or None, score)
    trials, front = scale.positions(result.trials), scale.positions(result.pareto)
    float_height = None if float_quality is None else score.height(float_quality)
    low, high = _range(result, trials, float_height, score)
    axes.set_ylim(low, high)
    axes.margins(x=0.09)
    below = f"below {low:.1f} %" if task.score.unit == "%" else "lower"
    _draw_trials(axes, trials, front, scale.bars(result.pareto), low, below)
    if float_height is not None:
        axes.axhline(float_height, color=DARK, linewidth=0.9, linestyle=(0, (1, 2)), label="float network")
    _draw_budgets(axes, result, scale)
    _draw_best(axes, result, scale)
    _draw_uniform(axes, result, scale, low, high)
    _finish(figure, axes, result, scale)
    return figure


def _range(
    result: SearchResult, trials: npt.NDArray[np.float64], float_height: float | None, score: ScoreAxis
) -> tuple[float, float]:
    """The heights to show; collapsed networks become arrows at the lower edge."""
    floats = [] if float_height is None else [float_height]
    heights = trials[:, 1].tolist() or floats or [0.0]
    uniform = {name: score.height(trial.quality) for name, trial in result.baselines.items()}
    everything = [*heights, *floats, *uniform.values()]
    top = max(everything)
    worth_seeing = [float(np.quantile(heights, 0.1)), *floats]
    best = None if result.best is None else score.height(result.best.quality)
    if best is not None:
        worth_seeing.append(best)
    worth_seeing += [height for height in uniform.values() if height > top - _REACH_FOR_UNIFORM * score.point]
    best_uniform = result.best_uniform()
    if best_uniform is not None:
        worth_seeing.append(uniform[best_uniform])
    return score.limits(everything, worth_seeing, best)


def _draw_trials(
    axes: Axes,
    trials: npt.NDArray[np.float64],
    front: npt.NDArray[np.float64],
    bars: npt.NDArray[np.float64],
    low: float,
    below_text: str,
) -> None:
    shown = trials[trials[:, 1] >= low]
    below = trials[trials[:, 1] < low]
    axes.scatter(shown[:, 0], shown[:, 1], s=16, color=DOTS, linewidths=0, label="evaluated allocations", zorder=2)
    if len(below):
        edge = np.full(len(below), low)
        label = f"{len(below)} of {len(trials)} lie {below_text}"
        axes.scatter(below[:, 0], edge, s=26, marker="v", color=DOTS, clip_on=False, label=label, zorder=2)
    if len(front):
        axes.step(*front.T, where="post", color=MIDDLE, linewidth=1.8, label="Pareto front", zorder=3)
        seen = front[:, 1] >= low
        axes.scatter(front[seen, 0], front[seen, 1], s=20, color=MIDDLE, zorder=3)
        if bars.any():
            _draw_bars(axes, front[seen], bars[:, seen], MIDDLE, "± one standard error")


def _draw_bars(
    axes: Axes, points: npt.NDArray[np.float64], bars: npt.NDArray[np.float64], color: str, label: str | None = None
) -> None:
    axes.errorbar(
        points[:, 0],
        points[:, 1],
        yerr=bars,
        fmt="none",
        ecolor=color,
        elinewidth=0.9,
        capsize=2,
        zorder=3,
        label=label,
    )


def _draw_budgets(axes: Axes, result: SearchResult, scale: _Scale) -> None:
    limit = result.task.limits.get(scale.metric)
    if limit is not None:
        position = scale.cost(limit)
        axes.axvline(position, color=ACCENT, linewidth=1.2, linestyle="--", label=f"budget, {position:.3g}")


def _draw_uniform(axes: Axes, result: SearchResult, scale: _Scale, low: float, high: float) -> None:
    """Squares for uniform widths; triangles for those that lie below or above what is shown, with their scores."""
    if not result.baselines:
        return
    points = scale.positions(list(result.baselines.values()))
    widths = [name.removeprefix("uniform-") for name in result.baselines]
    hidden = points[:, 1] < low
    above = np.asarray([scale.score.above(trial.quality) for trial in result.baselines.values()])
    shown = ~(hidden | above)
    marks: dict[str, Any] = {
        "markerfacecolor": "white",
        "markeredgecolor": DARK,
        "markeredgewidth": 1.4,
        "linestyle": "none",
    }
    axes.plot(*points[shown].T, marker="s", markersize=8, zorder=4, label="uniform widths", **marks)
    _draw_bars(axes, points[shown], scale.bars(list(result.baselines.values()))[:, shown], DARK)
    if above.any():
        axes.plot(*points[above].T, marker="^", markersize=8, zorder=4, **marks)
    if hidden.any():  # an empty series would have its place at the corner of the figure, and squeeze the axes
        edge = np.full(int(hidden.sum()), low)
        axes.plot(points[hidden, 0], edge, marker="v", markersize=8, zorder=4, clip_on=False, **marks)
    texts = []
    for width, trial, is_square in zip(widths, result.baselines.values(), shown, strict=True):
        texts.append(f"{width} bit" if is_square else f"{width} bit ({result.task.score.text(trial.quality.score)})")
    left, right = axes.get_xlim()
    shares = np.column_stack([points[:, 0] / (right - left), np.maximum(points[:, 1], low) / (high - low)])
    for group in _groups(shares):
        cost, height = points[group[0]]
        on_the_right = cost < left + 0.8 * (right - left)
        axes.annotate(
            ", ".join(texts[member] for member in group),
            (cost, max(height, low)),
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
    points = scale.positions([result.best])
    cost, height = points[0]
    _draw_bars(axes, points, scale.bars([result.best]), ACCENT)
    # What was chosen on more samples, and perhaps tuned, stands here with the score that the search saw.
    title = "best within budget" if result.finalists is None else "chosen"
    before = "" if result.tuned_weights is None else " before tuning"
    axes.plot(
        cost,
        height,
        marker="*",
        markersize=17,
        color=ACCENT,
        markeredgecolor="white",
        linestyle="none",
        zorder=5,
        label=f"{title}, {result.task.score.text(result.best.quality.score)}{before}",
    )


def _finish(figure: Figure, axes: Axes, result: SearchResult, scale: _Scale) -> None:
    task = result.task
    axes.set_xlabel(scale.label)
    scale.score.label(axes)
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
