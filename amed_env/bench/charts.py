"""Pictures of a comparison of agents, as matplotlib figures; `report.style.png` makes files of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from sklearn.isotonic import isotonic_regression

from amed_env.bench.curves import AgentRuns, Comparison
from amed_env.bench.estimates import (
    Curves,
    Profile,
    curves_range,
    final_regret,
    optimum_on_test,
    regret_on_test,
    stacked,
)
from amed_env.bench.marks import GROUPS, REGRET_TICKS, Mark, evaluation_ticks, marks_of, regret_range, spread, unspread
from amed_env.bench.run_statistics import Estimate, interquartile_mean
from amed_env.report.style import ACCENT, DARK, new_figure, tidy

_GRID = "#e6e8eb"
_BAND = 0.16  # opacity
_PANEL = 4.2  # width in inches: three of them are as wide as a page, and their letters as high as its text
_LEAST_WIDTH = 5.0  # inches; the title of a narrower picture would be a column of words
_LINE_POINTS = 9.5  # height of a label in points


def draw_regret(
    comparison: Comparison, curves: Curves, cells: str = "all cells", groups: Sequence[str] = tuple(GROUPS)
) -> Figure:
    """Regret after every number of evaluations, a panel for each kind of agent.

    Args:
        comparison: The agents.
        curves: Their curves.
        cells: Which cells these are, for the titles.
        groups: Kinds of agents, of which those without any agent are left out; `random` is in every panel.
    """
    shown = [group for group in groups if comparison.panel(group)]
    figure = new_figure(_PANEL * len(shown) + 0.6, 4.0)
    row = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, group in zip(row, shown, strict=True):
        _draw_curves(axes, comparison, comparison.panel(group), curves)
        axes.set_title(f"{GROUPS[group]}, {cells}", loc="left", fontsize=10, color=DARK)
        axes.set_xlabel("distinct evaluations")
    row[0].set_ylabel("regret (accuracy points)")
    _head(figure, comparison, "Regret on the search split: interquartile mean, 95 % bootstrap interval")
    return figure


def _draw_curves(axes: Axes, comparison: Comparison, agents: Sequence[AgentRuns], curves: Curves) -> None:
    marks = marks_of(comparison)
    for agent in agents:
        curve, mark = curves[agent.name], marks[agent.name]
        axes.fill_between(*curve.band_outline(), color=mark.colour, alpha=_BAND, linewidth=0)
        axes.step(curve.after, curve.value, where="post", color=mark.colour, linestyle=mark.line, linewidth=1.7)
    axes.set_xscale("log")
    axes.set_xlim(1, comparison.evaluations)
    axes.xaxis.set_major_locator(FixedLocator(evaluation_ticks(comparison.evaluations)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    least, most = curves_range(curves)
    _regret_scale(axes, "y", most, least)
    ends = [float(curves[agent.name].value[-1]) for agent in agents]
    _label_ends(axes, [(agent.name, end, marks[agent.name]) for agent, end in zip(agents, ends, strict=True)])
    axes.grid(color=_GRID, linewidth=0.7)
    tidy(axes)


def _regret_scale(axes: Axes, which: str, top: float, bottom: float = 0.0) -> None:
    """The scale of regrets, so that `bottom` and `top` are seen."""
    bottom, top = regret_range(bottom, top)
    ticks = [tick for tick in REGRET_TICKS if bottom <= tick <= top]
    if which == "y":
        axes.set_yscale("function", functions=(_forward, unspread))
        axes.set_ylim(bottom, top)
        axis: Axis = axes.yaxis
    else:
        axes.set_xscale("function", functions=(_forward, unspread))
        axes.set_xlim(bottom, top)
        axis = axes.xaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _forward(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return spread(np.maximum(np.asarray(values, dtype=np.float64), 0.0))


def _label_ends(axes: Axes, labels: Sequence[tuple[str, float, Mark]]) -> None:
    """Names to the right of curves, moved apart where they would overlap, each joined to the end of its curve."""
    height_points = 3.5 * 72 * 0.78
    low, high = _forward(axes.get_ylim())
    unit = (high - low) / height_points * _LINE_POINTS
    ordered = sorted(labels, key=lambda label: label[1])
    wanted = _forward([end for _, end, _ in ordered])
    for (name, end, mark), position in zip(ordered, apart(wanted, unit, float(low)), strict=True):
        axes.annotate(
            name.removeprefix("control/"),
            (1.0, end),
            xycoords=("axes fraction", "data"),
            xytext=(1.08, float(unspread(position))),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=mark.colour,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": mark.colour,
                "linestyle": mark.line,
                "linewidth": 1.2,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0.0, 0.5),
            },
        )


def apart(positions: npt.ArrayLike, distance: float, lowest: float) -> npt.NDArray[np.float64]:
    """Rising positions moved as little as a single pass can, so that neighbours are `distance` apart.

    Args:
        positions: (N,), rising.
        distance: Least distance of neighbours.
        lowest: No position goes below this.
    """
    steps = distance * np.arange(np.size(positions))
    wanted = np.asarray(positions, dtype=np.float64) - steps
    # With the steps taken off, "at least so far apart" is "rising": least squares under that is isotonic regression.
    rising = isotonic_regression(wanted) if len(wanted) else wanted
    return np.asarray(np.maximum(rising, lowest) + steps)


def draw_profiles(comparison: Comparison, profiles: Mapping[str, Profile]) -> Figure:
    """Which part of the runs has at most a regret, for every regret; a panel for each kind of agent."""
    shown = [group for group in GROUPS if comparison.panel(group)]
    figure = new_figure(_PANEL * len(shown) + 0.6, 4.4)
    grid = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    marks = marks_of(comparison)
    top = max(float(agent.final.max()) for agent in comparison.agents)
    _, edge = regret_range(0.0, top)
    for axes, group in zip(grid, shown, strict=True):
        for agent in comparison.panel(group):
            thresholds, share = profiles[agent.name].up_to(edge)
            mark = marks[agent.name]
            low, high = 100 * share.low, 100 * share.high
            axes.fill_between(thresholds, low, high, step="post", color=mark.colour, alpha=_BAND, linewidth=0)
            axes.step(
                thresholds,
                100 * share.value,
                where="post",
                color=mark.colour,
                linestyle=mark.line,
                linewidth=1.7,
                label=agent.name.removeprefix("control/"),
            )
        _regret_scale(axes, "x", top)
        axes.set_ylim(0, 101)
        axes.set_xlabel("regret τ (accuracy points)")
        axes.set_title(GROUPS[group], loc="left", fontsize=10, color=DARK)
        axes.grid(color=_GRID, linewidth=0.7)
        axes.legend(loc="lower right", fontsize=8, frameon=True, framealpha=0.85, edgecolor="none")
        tidy(axes)
    grid[0].set_ylabel("runs with a regret of at most τ (%)")
    _head(figure, comparison, "Performance profiles at the end, pointwise 95 % interval")
    return figure


def draw_improvement(comparison: Comparison, pairs: Estimate) -> Figure:
    """Probability that the agent of a row has less regret than that of a column, as a matrix."""
    agents = comparison.agents
    count = len(agents)
    figure = new_figure(max(_LEAST_WIDTH, 3.2 + 0.52 * count), 2.6 + 0.46 * count)
    axes = figure.subplots()
    picture = axes.imshow(100 * pairs.value, cmap="RdBu", vmin=0, vmax=100, aspect="auto")
    for row in range(count):
        for column in range(count):
            if row == column:
                continue
            value = float(pairs.value[row, column])
            sure = pairs.low[row, column] > 0.5 or pairs.high[row, column] < 0.5
            axes.text(
                column,
                row,
                f"{100 * value:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                fontweight="bold" if sure else "normal",
                color="white" if abs(value - 0.5) > 0.33 else DARK,
            )
    names = [agent.name for agent in agents]
    axes.set_yticks(range(count), names, parse_math=False, fontsize=8.5)
    axes.set_xticks(range(count), names, rotation=45, ha="left", rotation_mode="anchor", parse_math=False, fontsize=8.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(picture, ax=axes, shrink=0.7, label="row beats column (%)")
    headline(figure, "Probability of improvement; bold: the 95 % interval excludes 50 %")
    return figure


def draw_splits(comparison: Comparison) -> Figure:
    """Final regret of every agent on the search split, and that of the same allocations on the test split."""
    agents = list(comparison.agents)[::-1]
    figure = new_figure(8.4, 1.9 + 0.34 * len(agents))
    axes = figure.subplots()
    rows = np.arange(len(agents))
    on_search = stacked([final_regret(agent) for agent in agents])
    on_test = stacked([regret_on_test(agent) for agent in agents])
    for label, regret, shift, marker, colour in (
        ("search split", on_search, 0.14, "o", DARK),
        ("test split", on_test, -0.14, "D", ACCENT),
    ):
        axes.hlines(rows + shift, regret.low, regret.high, color=colour, linewidth=1.6)
        axes.plot(
            regret.value, rows + shift, linestyle="none", markersize=5.5, label=label, marker=marker, color=colour
        )
    floor = float(interquartile_mean(optimum_on_test(comparison.truths)[None]))
    axes.axvline(
        floor, color=ACCENT, linestyle=(0, (2, 2)), linewidth=1.1, label="optimum of the search split, on test"
    )
    _regret_scale(axes, "x", float(max(on_search.high.max(), on_test.high.max())))
    axes.set_yticks(rows, [agent.name for agent in agents], parse_math=False, fontsize=8.5)
    axes.set_xlabel("regret at the end (accuracy points), to the optimum of the same split")
    axes.grid(axis="x", color=_GRID, linewidth=0.7)
    tidy(axes)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)
    _head(figure, comparison, "Search and test split: interquartile mean, 95 % interval")
    return figure


def _head(figure: Figure, comparison: Comparison, what: str) -> None:
    cells = f"{len(comparison.truths)} {comparison.which} cells of {comparison.suite}, {comparison.seeds} seeds"
    headline(figure, f"{what}; {cells}")


def headline(figure: Figure, text: str) -> None:
    """Write the title of a whole figure, in as many lines as its width asks for."""
    unbroken = text.replace(" %", "\N{NO-BREAK SPACE}%")
    figure.suptitle(unbroken, x=0.01, ha="left", fontsize=11, color=DARK, wrap=True)
