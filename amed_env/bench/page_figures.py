"""Interactive pictures of the page, as documents that plotly.js draws.

Colours are tokens, which the page replaces by those of the light or the dark theme: `@0` to `@5` and `@reference` for
agents, `@ink`, `@muted`, `@grid`, `@paper`, `@accent`; `@0|0.2` has an opacity.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from amed_env.bench.curves import AgentRuns, Comparison
from amed_env.bench.estimates import THRESHOLDS, final_regret, profile, regret_curve, regret_on_test
from amed_env.bench.fronts import Trade
from amed_env.bench.marks import REFERENCE_COLOUR, REGRET_TICKS, Mark, evaluation_ticks, marks_of, regret_range, spread
from amed_env.bench.truth import FloatArray
from amed_env.run_statistics import Estimate

Figure = dict[str, Any]


def token(mark: Mark, opacity: float | None = None) -> str:
    """The token of an agent's colour."""
    name = "@reference" if mark.colour == REFERENCE_COLOUR else f"@{mark.colour}"
    return name if opacity is None else f"{name}|{opacity}"


def regret_figure(comparison: Comparison, agents: Sequence[AgentRuns], curves: dict[str, Estimate]) -> Figure:
    """Regret after every number of evaluations, with intervals."""
    marks, points = marks_of(comparison), comparison.points
    data: list[dict[str, Any]] = []
    for agent in agents:
        curve = curves[agent.name]
        low, value, high = spread(curve.low), spread(curve.value), spread(curve.high)
        data += _banded(agent.name, marks[agent.name], points, low, value, high, "hv")
        data[-1]["customdata"] = _rounded(np.stack([curve.value, curve.low, curve.high], axis=1))
        data[-1]["hovertemplate"] = (
            "after %{x}: %{customdata[0]:.2f} (%{customdata[1]:.2f} to %{customdata[2]:.2f}) points"
            "<extra>%{fullData.name}</extra>"
        )
    top, bottom = max(float(c.high.max()) for c in curves.values()), min(float(c.low.min()) for c in curves.values())
    ticks = evaluation_ticks(comparison.evaluations)
    layout = {
        "xaxis": {
            "type": "log",
            "title": {"text": "distinct evaluations"},
            "tickvals": ticks,
            "ticktext": [str(tick) for tick in ticks],
            "range": [0, float(np.log10(max(comparison.evaluations, 2)))],
        },
        "yaxis": {"title": {"text": "regret (accuracy points)"}, **_regret_axis(top, bottom)},
    }
    return {"data": data, "layout": layout}


def profile_figure(comparison: Comparison, agents: Sequence[AgentRuns], profiles: dict[str, Estimate]) -> Figure:
    """Which part of the runs has at most a regret."""
    marks, positions = marks_of(comparison), spread(THRESHOLDS)
    data: list[dict[str, Any]] = []
    for agent in agents:
        band = profiles[agent.name]
        low, value, high = 100 * band.low, 100 * band.value, 100 * band.high
        data += _banded(agent.name, marks[agent.name], positions, low, value, high, "hv")
        data[-1]["customdata"] = [[threshold] for threshold in THRESHOLDS]
        data[-1]["hovertemplate"] = "%{y:.0f} % within %{customdata[0]:.2f} points<extra>%{fullData.name}</extra>"
    top = max(float(agent.final.max()) for agent in comparison.agents)
    layout = {
        "xaxis": {"title": {"text": "regret τ (accuracy points)"}, **_regret_axis(top)},
        "yaxis": {"title": {"text": "runs with regret ≤ τ (%)"}, "range": [0, 101]},
    }
    return {"data": data, "layout": layout}


def profiles_of(comparison: Comparison) -> dict[str, Estimate]:
    """The profile of every agent by its name."""
    return {agent.name: profile(agent) for agent in comparison.agents}


def curves_of(comparison: Comparison) -> dict[str, Estimate]:
    """The regret curve of every agent by its name."""
    return {agent.name: regret_curve(agent) for agent in comparison.agents}


def split_figure(comparison: Comparison) -> Figure:
    """Final regret on the search and on the test split."""
    agents = list(comparison.agents)[::-1]
    names = [html.escape(agent.name).replace("/", "/<br>") for agent in agents]
    data = []
    for label, statistic, colour, symbol in (
        ("search split", final_regret, "@ink", "circle"),
        ("test split", regret_on_test, "@accent", "diamond"),
    ):
        estimates = [statistic(agent) for agent in agents]
        value, low, high = (np.array([getattr(e, part) for e in estimates]) for part in ("value", "low", "high"))
        position = spread(value)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label,
                "x": _rounded(position),
                "y": names,
                "marker": {"color": colour, "symbol": symbol, "size": 9},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": _rounded(spread(high) - position),
                    "arrayminus": _rounded(position - spread(low)),
                    "color": colour,
                    "thickness": 1.5,
                    "width": 3,
                },
                "customdata": _rounded(np.stack([value, low, high], axis=1)),
                "hovertemplate": "%{y}: %{customdata[0]:.2f} (%{customdata[1]:.2f} to %{customdata[2]:.2f}) points"
                f"<extra>{label}</extra>",
            }
        )
    top = max(float(np.max([row[2] for row in trace["customdata"]])) for trace in data)
    layout = {
        "xaxis": {"title": {"text": "regret (accuracy points)"}, **_regret_axis(top)},
        "yaxis": {"automargin": True, "ticklabelstandoff": 4},
        "height": 150 + 30 * len(agents),
    }
    return {"data": data, "layout": layout}


def front_figure(comparison: Comparison, trade: Trade) -> Figure:
    """All allocations as density, the true front, and what each agent found."""
    counts = np.where(trade.counts > 0, np.log10(np.maximum(trade.counts, 1)), np.nan)
    field = [[None if np.isnan(value) else round(float(value), 2) for value in line] for line in counts]
    front = np.concatenate([trade.front, [[trade.cost_edges[-1], trade.front[-1, 1]]]])
    data: list[dict[str, Any]] = [
        {
            "type": "heatmap",
            "x": _rounded(trade.cost_edges),
            "y": _rounded(trade.accuracy_edges),
            "z": field,
            "colorscale": [[0, "@muted|0.12"], [1, "@muted|0.85"]],
            "showscale": False,
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "true front",
            "x": _rounded(front[:, 0]),
            "y": _rounded(front[:, 1]),
            "line": {"color": "@ink", "width": 2, "shape": "hv"},
            "hovertemplate": "cost %{x:.3f}, accuracy %{y:.2f} %<extra>true front</extra>",
        },
    ]
    for name, mark in marks_of(comparison).items():
        found = trade.found[name]
        there = np.isfinite(found[:, 0])
        filled = mark.dash == "solid"
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": html.escape(name),
                "x": _rounded(found[there, 0]),
                "y": _rounded(found[there, 1]),
                "cliponaxis": False,
                "marker": {
                    "color": token(mark) if filled else "@paper",
                    "symbol": mark.symbol,
                    "size": 9,
                    "line": {"color": "@paper" if filled else token(mark), "width": 1 if filled else 2},
                },
                "hovertemplate": f"cost %{{x:.3f}}, accuracy %{{y:.2f}} %<extra>{html.escape(name)}</extra>",
            }
        )
    line = {"color": "@accent", "width": 1, "dash": "dot"}
    shapes = [
        {"type": "line", "x0": budget, "x1": budget, "yref": "paper", "y0": 0, "y1": 1, "line": line}
        for budget in trade.budgets
    ]
    layout = {
        "xaxis": {
            "title": {"text": trade.cost_title},
            "range": [float(trade.cost_edges[0]), float(trade.cost_edges[-1])],
        },
        "yaxis": {
            "title": {"text": "accuracy on the search split (%)"},
            "range": [float(trade.accuracy_edges[0]), float(trade.accuracy_edges[-1])],
        },
        "shapes": shapes,
        "showlegend": False,
        "hovermode": "closest",
    }
    return {"data": data, "layout": layout}


def _banded(
    name: str, mark: Mark, x: Any, low: FloatArray, value: FloatArray, high: FloatArray, shape: str
) -> list[dict[str, Any]]:
    """Traces of an interval and of the line within it; they vanish together when the legend is tapped."""
    common = {"type": "scatter", "mode": "lines", "legendgroup": html.escape(name), "x": _rounded(x)}
    hidden = {**common, "showlegend": False, "hoverinfo": "skip"}
    return [
        {**hidden, "y": _rounded(low), "line": {"width": 0, "color": token(mark), "shape": shape}},
        {
            **hidden,
            "y": _rounded(high),
            "line": {"width": 0, "color": token(mark), "shape": shape},
            "fill": "tonexty",
            "fillcolor": token(mark, 0.16),
        },
        {
            **common,
            "y": _rounded(value),
            "name": html.escape(name),
            "line": {"width": 2, "color": token(mark), "dash": mark.dash, "shape": shape},
        },
    ]


def _regret_axis(top: float, bottom: float = 0.0) -> dict[str, Any]:
    bottom, top = regret_range(bottom, top)
    ticks = [tick for tick in REGRET_TICKS if bottom <= tick <= top]
    return {
        "tickvals": _rounded(spread(ticks)),
        "ticktext": [f"{tick:g}" for tick in ticks],
        "range": [float(spread(bottom)), float(spread(top))],
        "zeroline": False,
    }


def _rounded(values: Any) -> Any:
    """A list of numbers with as many digits as a picture needs."""
    return np.asarray(values, dtype=np.float64).round(5).tolist()
