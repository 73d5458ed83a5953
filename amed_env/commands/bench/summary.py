"""What a benchmark ends with on the terminal: every agent with its regret, or its accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from amed_env.bench.curves import CHECKPOINTS, agent_runs
from amed_env.bench.result_file import ResultFile
from amed_env.bench.run_statistics import interquartile_mean
from amed_env.bench.suites import Cell, Suite, is_tabular
from amed_env.bench.truth import cell_truth
from amed_env.commands.output import Output


def show_summary(
    output: Output, suite: Suite, results: Sequence[ResultFile], cells: Sequence[Cell], complete: bool
) -> None:
    """Print what the agents reached.

    Args:
        output: Where it is printed.
        suite: The suite.
        results: Results, a file an agent.
        cells: Cells that they ran in.
        complete: Whether all runs were made; without, there are no means.
    """
    rows = []
    tabular = all(is_tabular(cell.task) for cell in cells)
    last = results[0].header.evaluations
    moments = sorted({k for k in CHECKPOINTS if k < last} | {last})
    if tabular and complete:
        rows.append({"agent": "optimum", "regret": dict.fromkeys(map(str, moments), 0.0), "seconds": 0.0, "errors": 0})
    for result in results:
        row: dict[str, Any] = {"agent": result.header.agent}
        if tabular and complete:
            runs = agent_runs(result, [cell_truth(cell) for cell in cells])
            regrets = map(interquartile_mean, runs.regrets_after(moments))
            row["regret"] = {str(after): float(regret) for after, regret in zip(moments, regrets, strict=True)}
        elif complete:
            best = [run.improvements[-1].accuracy if run.improvements else 0.0 for run in result.runs]
            row["mean_accuracy"] = sum(best) / len(best)
        row["seconds"] = sum(run.seconds for run in result.runs)
        row["errors"] = sum(run.note is not None for run in result.runs)
        rows.append(row)
    output.show(_table(suite, rows, moments if tabular and complete else []))
    output.document({"suite": suite.name, "complete": complete, "agents": rows})


def _table(suite: Suite, rows: list[dict[str, Any]], moments: list[int]) -> Table:
    title = f"{suite.name}: interquartile mean of regret in accuracy points after … evaluations" if moments else None
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    table.add_column("agent", no_wrap=True)
    accuracies = any("mean_accuracy" in row for row in rows)
    for name in [*map(str, moments), *(["accuracy %"] if accuracies else []), "seconds", "errors"]:
        table.add_column(name, justify="right")
    for row in rows:
        values = [f"{row['regret'][str(after)]:.3f}" for after in moments]
        if accuracies:
            values.append(f"{row['mean_accuracy']:.2f}")
        table.add_row(row["agent"], *values, f"{row['seconds']:.1f}", str(row["errors"]))
    return table
