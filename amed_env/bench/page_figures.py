"""Interactive pictures of the page, as documents that plotly.js draws.

Colours are tokens, which the page replaces by those of the light or the dark theme: `@0` to `@5` and `@reference` for
agents, `@ink`, `@muted`, `@grid`, `@paper`, `@accent`; `@0|0.2` has an opacity.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amed_env.bench.curves import AgentRuns, Comparison
from amed_env.bench.estimates import (
    Curve,
    Curves,
    Profile,
    curves_range,
    final_regret,
    regret_on_test,
)
from amed_env.bench.fronts import Trade
from amed_env.bench.marks import REFERENCE_COLOUR, REGRET_TICKS, Mark, evaluation_ticks, marks_of, regret_range, spread
from amed_env.bench.truth import FloatArray

Figure = dict[str, Any]


def token(mark: Mark, opacity: float | None = None) -> str:
    """The token of an agent's colour."""
    name = "@reference" if mark.colour == REFERENCE_COLOUR else f"@{mark.colour}"
    return name if opacity is None else f"{name}|{opacity}"


def regret_figure(comparison: Comparison, agents: Sequence[AgentRuns], curves: Curves) -> Figure:
    """Regret after every number of evaluations, with intervals."""
    marks = marks_of(comparison)
    data: list[dict[str, Any]] = []
    for agent in agents:
        curve, mark = curves[agent.name], marks[agent.name]
        corners, low, high = curve.band_outline()
        data += _band(agent.name, mark, corners, spread(low), spread(high), "linear")
        data.append(_line(agent.name, mark, curve.after, spread(curve.value)))
        data[-1]["customdata"] = _with_last_interval(curve)
        data[-1]["hovertemplate"] = (
            "after %{x}: %{customdata[0]:.2f} points<br>"
            "after %{customdata[3]}: %{customdata[1]:.2f} to %{customdata[2]:.2f}<extra>%{fullData.name}</extra>"
        )
    bottom, top = curves_range(curves)
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


def profile_figure(comparison: Comparison, agents: Sequence[AgentRuns], profiles: Mapping[str, Profile]) -> Figure:
    """Which part of the runs has at most a regret."""
    marks = marks_of(comparison)
    top = max(float(agent.final.max()) for agent in comparison.agents)
    _, edge = regret_range(0.0, top)
    data: list[dict[str, Any]] = []
    for agent in agents:
        thresholds, share = profiles[agent.name].up_to(edge)
        mark, positions = marks[agent.name], spread(thresholds)
        data += _band(agent.name, mark, positions, 100 * share.low, 100 * share.high, "hv")
        data.append(_line(agent.name, mark, positions, 100 * share.value))
        data[-1]["customdata"] = _rounded(thresholds[:, None])
        data[-1]["hovertemplate"] = "%{y:.1f} % within %{customdata[0]:.2f} points<extra>%{fullData.name}</extra>"
    layout = {
        "xaxis": {"title": {"text": "regret τ (accuracy points)"}, **_regret_axis(top)},
        "yaxis": {"title": {"text": "runs with regret ≤ τ (%)"}, "range": [0, 101]},
    }
    return {"data": data, "layout": layout}


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


def _band(name: str, mark: Mark, x: Any, low: FloatArray, high: FloatArray, shape: str) -> list[dict[str, Any]]:
    """Traces of an interval; they vanish with the line when the legend is tapped."""
    hidden = {**_trace(name, x), "showlegend": False, "hoverinfo": "skip"}
    edge = {"width": 0, "color": token(mark), "shape": shape}
    return [
        {**hidden, "y": _rounded(low), "line": edge},
        {**hidden, "y": _rounded(high), "line": edge, "fill": "tonexty", "fillcolor": token(mark, 0.16)},
    ]


def _line(name: str, mark: Mark, x: Any, y: FloatArray) -> dict[str, Any]:
    """The trace of a step function."""
    look = {"width": 2, "color": token(mark), "dash": mark.dash, "shape": "hv"}
    return {**_trace(name, x), "y": _rounded(y), "name": html.escape(name), "line": look}


def _trace(name: str, x: Any) -> dict[str, Any]:
    return {"type": "scatter", "mode": "lines", "legendgroup": html.escape(name), "x": _rounded(x)}


def _with_last_interval(curve: Curve) -> list[list[float]]:
    """For each value of a curve: it, the interval at the last point up to there where one was computed, that point."""
    last = np.searchsorted(curve.points, curve.after, side="right") - 1
    columns = [curve.value, curve.band.low[last], curve.band.high[last], curve.points[last]]
    return [[round(float(number), 3) for number in line] for line in zip(*columns, strict=True)]


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
