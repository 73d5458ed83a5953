"""Tables of the page, as plain documents for its template."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from amed_env.bench.curves import AgentRuns, Comparison
from amed_env.bench.estimates import (
    Curves,
    change_on_test,
    control_verdict,
    final_regret,
    optimum_on_test,
    regret_on_test,
)
from amed_env.bench.fronts import Trade
from amed_env.bench.run_statistics import Estimate, interquartile_mean

Table = dict[str, Any]
NOT_KNOWN = "–"
_EXACT = "exact optimum"


def regret_table(comparison: Comparison, curves: Curves) -> Table:
    """Regret of every agent after the numbers of evaluations that tables show, which are among those of its curve."""
    checkpoints = comparison.checkpoints()
    columns = np.searchsorted(comparison.points, checkpoints)
    rows = []
    for agent in comparison.agents:
        band = curves[agent.name].band
        rows.append(_row(agent, [_cell(band.value[i], band.low[i], band.high[i]) for i in columns]))
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
        probability, verdict = control_verdict(agent, comparison)
        chance = _plain(NOT_KNOWN) if probability is None else _percent(probability)
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


def pair_table(comparison: Comparison, pairs: Estimate) -> Table:
    """Probability in percent that the agent of a row has less regret than that of a column."""
    agents = comparison.agents
    rows = []
    for number, agent in enumerate(agents):
        cells = []
        for other in range(len(agents)):
            value, low, high = (100 * float(part[number, other]) for part in (pairs.value, pairs.low, pairs.high))
            cells.append(_plain("") if other == number else _plain(f"{value:.0f}", f"{low:.1f} to {high:.1f}"))
        rows.append(_row(agent, cells))
    return {"heads": ["row beats column", *(agent.name for agent in agents)], "rows": rows}


def front_table(trade: Trade) -> Table:
    """Accuracy in percent, and relative cost, of what every agent's run of the median accuracy found."""
    rows = []
    for name, finds in trade.found.items():
        cells = [
            _plain(f"{accuracy:.2f}", f"cost {cost:.3f}") if np.isfinite(accuracy) else _plain(NOT_KNOWN)
            for cost, accuracy in finds
        ]
        rows.append(_named(name, cells))
    budgets = [f"budget {budget:g}" for budget in trade.budgets]
    return {"title": f"{trade.task} on {trade.device}", "heads": ["agent", *budgets], "rows": rows}


def _row(agent: AgentRuns, cells: list[dict[str, Any]]) -> dict[str, Any]:
    return _named(agent.name, cells, control=agent.group == "control")


def _named(name: str, cells: list[dict[str, Any]], control: bool = False) -> dict[str, Any]:
    return {"name": name, "control": control, "cells": cells}


def _plain(value: str, interval: str = "", text: bool = False) -> dict[str, Any]:
    return {"value": value, "interval": interval, "text": text}


def _text(value: str) -> dict[str, Any]:
    return _plain(value, text=True)


def _estimate(estimate: Estimate, signed: bool = False) -> dict[str, Any]:
    return _cell(estimate.value, estimate.low, estimate.high, signed)


def _cell(value: npt.ArrayLike, low: npt.ArrayLike, high: npt.ArrayLike, signed: bool = False) -> dict[str, Any]:
    texts = [_points(float(np.asarray(number)), signed) for number in (value, low, high)]
    return _plain(texts[0], f"{texts[1]} to {texts[2]}")


def _points(number: float, signed: bool = False) -> str:
    """Accuracy points with two decimals, and with their sign if wanted; what is rounded to zero has none."""
    text = f"{number:.2f}"
    if float(text) == 0:
        return "0.00"
    return f"{number:+.2f}" if signed else text


def _percent(estimate: Estimate) -> dict[str, Any]:
    value, low, high = (f"{100 * float(part):.0f}" for part in (estimate.value, estimate.low, estimate.high))
    return _plain(f"{value} %", f"{low} to {high}")
