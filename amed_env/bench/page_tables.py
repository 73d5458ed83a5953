"""Tables of the page, as plain documents for its template."""

from __future__ import annotations

from typing import Any

import numpy as np

from amed_env.bench.curves import AgentRuns, Comparison
from amed_env.bench.estimates import (
    beats_all,
    change_on_test,
    control_verdict,
    final_regret,
    optimum_on_test,
    regret_at,
    regret_on_test,
)
from amed_env.bench.marks import marks_of
from amed_env.bench.run_statistics import Estimate, interquartile_mean

Table = dict[str, Any]
NOT_KNOWN = "–"
_EXACT = "exact optimum"


def regret_table(comparison: Comparison) -> Table:
    """Regret of every agent after the numbers of evaluations that tables show."""
    checkpoints = comparison.checkpoints()
    rows = [_row(agent, [_estimate(found) for found in regret_at(agent, checkpoints)]) for agent in comparison.agents]
    zero = _named(_EXACT, [_plain("0")] * len(checkpoints))
    return {"heads": ["agent", *map(str, checkpoints)], "rows": [zero, *rows]}


def task_table(comparison: Comparison) -> Table | None:
    """Final regret of every agent on each task; None if there is a single task."""
    if len(comparison.tasks) < 2:
        return None
    by_task = [comparison.of_task(task).agents for task in comparison.tasks]
    rows = [
        _row(agent, [_estimate(final_regret(agents[number])) for agents in by_task])
        for number, agent in enumerate(comparison.agents)
    ]
    return {"heads": ["agent", *comparison.tasks], "rows": rows}


def split_table(comparison: Comparison) -> Table:
    """Regret on both splits, and how often the optimum was found."""
    rows = []
    for agent in comparison.agents:
        cells = [_estimate(statistic(agent)) for statistic in (final_regret, regret_on_test)]
        cells.append(_estimate(change_on_test(agent), signed=True))
        cells += [
            _plain(f"{100 * (agent.final == 0).mean():.0f} %"),
            _plain(f"{agent.evaluations.mean():.0f}"),
            _plain(f"{np.median(agent.seconds):.2g} s"),
        ]
        rows.append(_row(agent, cells))
    floor = _plain(floor_text(comparison))
    best = _named(
        _EXACT,
        [
            _plain("0"),
            floor,
            _plain(f"+{floor_text(comparison)}"),
            _plain("100 %"),
            _plain(NOT_KNOWN),
            _plain(NOT_KNOWN),
        ],
    )
    heads = ["agent", "search split", "test split", "change", "found the optimum", "evaluations", "time of a run"]
    return {"heads": heads, "rows": [best, *rows]}


def floor_text(comparison: Comparison) -> str:
    """Interquartile mean of the test regret of the optimum of the search split, in points."""
    return f"{float(interquartile_mean(optimum_on_test(comparison.truths)[None])):.2f}"


def control_table(comparison: Comparison) -> Table:
    """Negative controls beside random search."""
    rows = []
    for agent in comparison.group("control"):
        found, verdict = control_verdict(agent, comparison)
        chance = _plain(NOT_KNOWN) if found is None else _percent(found)
        rows.append(_row(agent, [_estimate(final_regret(agent)), chance, _text(verdict)]))
    reference = comparison.find("random")
    if rows and reference is not None:
        rows.append(_row(reference, [_estimate(final_regret(reference)), _plain("50 %"), _plain("")]))
    return {"heads": ["agent", "regret at the end", "beats random", "verdict"], "rows": rows}


def cell_table(comparison: Comparison) -> Table:
    """What is true about each cell."""
    rows = []
    for truth, change in zip(comparison.truths, optimum_on_test(comparison.truths), strict=True):
        correct = truth.correct("search")
        samples = truth.table.float_quality["search"].samples
        numbers = [100 * correct.max() / samples, 100 * correct.min() / samples]
        cells = [_plain(f"{number:.2f}") for number in numbers]
        cells.append(_plain(f"{100 * truth.feasible.mean():.3g} %"))
        cells += [_plain(f"{float(truth.accuracy(truth.optimum, 'test')):.2f}"), _plain(f"{change:.2f}")]
        rows.append(_named(str(truth.cell), cells))
    heads = ["cell", "optimum %", "worst feasible %", "feasible", "optimum on test %", "its regret on test"]
    return {"heads": heads, "rows": rows}


def agent_table(comparison: Comparison) -> Table:
    """What every agent is, and what it saw."""
    rows = []
    for agent in comparison.agents:
        header = agent.header
        options = ", ".join(f"{name}={value}" for name, value in header.options.items()) or NOT_KNOWN
        saw = "; ".join(header.saw) or "nothing"
        texts = (header.description or NOT_KNOWN, saw, options, f"{header.machine}, {header.made}")
        cells = [_plain(agent.group), *map(_text, texts), _plain(str(agent.notes))]
        rows.append(_row(agent, cells))
    heads = ["agent", "kind", "description", "tuned on", "options", "machine, date", "runs ended early"]
    return {"heads": heads, "rows": rows}


def matrix(comparison: Comparison, pairs: Estimate | None = None) -> list[dict[str, Any]]:
    """Rows of the matrix of probabilities of improvement."""
    agents = comparison.agents
    pairs = beats_all(agents) if pairs is None else pairs
    rows = []
    for number, agent in enumerate(agents):
        cells: list[dict[str, Any] | None] = []
        for other in range(len(agents)):
            if other == number:
                cells.append(None)
                continue
            value, low, high = (float(part[number, other]) for part in (pairs.value, pairs.low, pairs.high))
            cells.append(
                {
                    "value": f"{100 * value:.0f}",
                    "sure": low > 0.5 or high < 0.5,
                    "side": "win" if value > 0.5 else "lose",
                    "strength": round(130 * abs(value - 0.5)),
                    "title": f"{agent.name} beats {agents[other].name}: {100 * value:.1f} % "
                    f"({100 * low:.1f} to {100 * high:.1f})",
                }
            )
        rows.append({"name": agent.name, "cells": cells})
    return rows


_SWATCHES = {
    "circle": '<circle cx="7" cy="7" r="5.5"{style}/>',
    "square": '<rect x="2" y="2" width="10" height="10"{style}/>',
    "x": '<path d="M2 4 4 2 7 5 10 2 12 4 9 7 12 10 10 12 7 9 4 12 2 10 5 7z"{style}/>',
    "diamond": '<path d="M7 1 13 7 7 13 1 7z"{style}/>',
}


def legend(comparison: Comparison) -> list[dict[str, str]]:
    """Names of the agents with their marks, as SVG."""
    items = []
    for name, mark in marks_of(comparison).items():
        variable = "reference" if mark.colour < 0 else f"agent{mark.colour}"
        style = f' fill="var(--{variable})"'
        if mark.dash != "solid":
            style = f' fill="none" stroke-width="2" stroke="var(--{variable})"'
        shape = _SWATCHES[mark.symbol].format(style=style)
        items.append({"name": name, "swatch": f'<svg viewBox="0 0 14 14" aria-hidden="true">{shape}</svg>'})
    line = '<path d="M0 11h5V4h9" fill="none" stroke-width="2" stroke="var(--ink)"/>'
    items.append({"name": "true front", "swatch": f'<svg viewBox="0 0 14 14" aria-hidden="true">{line}</svg>'})
    return items


def _row(agent: AgentRuns, cells: list[dict[str, Any]]) -> dict[str, Any]:
    return _named(agent.name, cells, control=agent.group == "control")


def _named(name: str, cells: list[dict[str, Any]], control: bool = False) -> dict[str, Any]:
    return {"name": name, "control": control, "cells": cells}


def _plain(value: str, interval: str = "", text: bool = False) -> dict[str, Any]:
    return {"value": value, "interval": interval, "text": text}


def _text(value: str) -> dict[str, Any]:
    return _plain(value, text=True)


def _estimate(found: Estimate, signed: bool = False) -> dict[str, Any]:
    value, low, high = (_points(float(part), signed) for part in (found.value, found.low, found.high))
    return _plain(value, f"{low} to {high}")


def _points(number: float, signed: bool = False) -> str:
    """Accuracy points with two decimals, and with their sign if wanted; what is rounded to zero has none."""
    text = f"{number:.2f}"
    if float(text) == 0:
        return "0.00"
    return f"{number:+.2f}" if signed else text


def _percent(found: Estimate) -> dict[str, Any]:
    value, low, high = (f"{100 * float(part):.0f}" for part in (found.value, found.low, found.high))
    return _plain(f"{value} %", f"{low} to {high}")
