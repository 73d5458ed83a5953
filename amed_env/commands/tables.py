"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from amed_env.problem.objective import BUDGET_METRICS
from amed_env.problem.pins import pins_text
from amed_env.problem.workload import weight_kib

if TYPE_CHECKING:
    from amed_env.agents.result import SearchResult
    from amed_env.deploy.export import Export
    from amed_env.evaluation.finalists import Finalists
    from amed_env.evaluation.quality import Quality
    from amed_env.hardware import Cost
    from amed_env.problem.allocation import Precision
    from amed_env.problem.score import Score

MISSING = "–"


def percent(value: float) -> str:
    """A fraction as a percentage with two decimals."""
    return f"{100 * value:.2f} %"


def number(value: float) -> str:
    """A number as a person reads it: whole ones in full, others with four significant digits."""
    return f"{int(value):,}" if float(value).is_integer() else f"{value:,.4g}"


def bits_text(precision: Precision) -> str:
    """`4` where weights and activations are equally wide, otherwise `4 / 8`."""
    weight, activation = precision
    return str(weight) if weight == activation else f"{weight} / {activation}"


def table_of(title: str) -> Table:
    """An empty table in the style of all of them."""
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def cost_table(cost: Cost, network: str) -> Table:
    """Totals and layers of a cost."""
    metrics = list(cost.metrics)
    table = table_of(f"{network} on {cost.device}")
    table.add_column("layer", no_wrap=True)
    table.add_column("bits (w / a)" if any(len(set(i.precision)) > 1 for i in cost.layers) else "bits", justify="right")
    for metric in metrics:
        table.add_column(_heading(metric), justify="right")
    for layer in cost.layers:
        cells = [number(layer.metrics[m]) if m in layer.metrics else MISSING for m in metrics]
        table.add_row(layer.name, bits_text(layer.precision), *cells)
    table.add_section()
    table.add_row("total", "", *(number(cost.metrics[m]) for m in metrics), style="bold")
    return table


def compare_table(costs: Sequence[Cost], network: str) -> Table:
    """Costs of one network on several devices: every total, and the latency of every layer with its bound."""
    table = table_of(f"{network} on {len(costs)} device{'s' if len(costs) > 1 else ''}")
    table.add_column("", no_wrap=True)
    for cost in costs:
        table.add_column(cost.device, justify="right")
    metrics = dict.fromkeys(metric for cost in costs for metric in cost.metrics)
    for metric in metrics:
        cells = [number(cost.metrics[metric]) if metric in cost.metrics else MISSING for cost in costs]
        table.add_row(_heading(metric), *cells, style="bold")
    table.add_section()
    by_device = [{layer.name: layer for layer in cost.layers} for cost in costs]
    metric = "latency_ms" if any("latency_ms" in cost.metrics for cost in costs) else next(iter(metrics))
    for name in dict.fromkeys(layer.name for cost in costs for layer in cost.layers):
        cells = []
        for layers in by_device:
            layer = layers.get(name)
            if layer is None or metric not in layer.metrics:
                cells.append(MISSING)
            else:
                cells.append(f"{number(layer.metrics[metric])}{f' {layer.bound}' if layer.bound else ''}")
        table.add_row(f"{name}, {_heading(metric)}", *cells)
    return table


def _heading(metric: str) -> str:
    from amed_env.hardware import METRIC_UNITS

    unit = METRIC_UNITS.get(metric)
    for suffix in ("_ms", "_uj", "_kib"):
        if metric.endswith(suffix) and unit:
            return f"{metric.removesuffix(suffix)} {unit}"
    return metric.replace("_", " ")


def quality_table(rows: Mapping[str, Quality], metrics: Sequence[Score]) -> Table:
    """Qualities by name: the score, the metrics that were measured, and the loss where there are labels."""
    table = table_of("Quality")
    qualities = list(rows.values())
    scores = [qualities[0].scored_by] if qualities[0].scored_by not in metrics else []
    shown = [metric for metric in metrics if any(metric.name in quality.metrics for quality in qualities)]
    counted = any(quality.correct is not None for quality in qualities)
    with_loss = any(quality.loss is not None for quality in qualities)
    titles = [*(score.title for score in scores), *(metric.title for metric in shown)]
    for column in ("", *titles, *(["correct"] if counted else []), "samples", *(["loss"] if with_loss else [])):
        table.add_column(column, justify="right" if column else "left")
    for name, quality in rows.items():
        cells = [score.text(quality.score) for score in scores]
        cells += [_metric_cell(quality, metric) for metric in shown]
        if counted:
            cells.append(MISSING if quality.correct is None else f"{quality.correct:,}")
        cells.append(f"{quality.samples:,}")
        if with_loss:
            cells.append(MISSING if quality.loss is None else f"{quality.loss:.4f}")
        table.add_row(name, *cells)
    return table


def _metric_cell(quality: Quality | None, metric: Score) -> str:
    """The value of a score or metric; what was not measured is missing."""
    if quality is not None and metric.name in quality.metrics:
        return metric.text(quality.metrics[metric.name])
    if quality is not None and metric.name == quality.scored_by.name:
        return metric.text(quality.score)
    return MISSING


def relative_table(costs: Mapping[str, float], relative: Mapping[str, float]) -> Table:
    """Costs of a network with their factors of uniform 8 bit."""
    table = table_of("Cost")
    for column in ("", "value", "of 8 bit"):
        table.add_column(column, justify="right" if column else "left")
    names = {metric: name for name, metric in BUDGET_METRICS.items()}
    for metric, value in costs.items():
        factor = relative.get(names.get(metric, ""))
        table.add_row(_heading(metric), number(value), MISSING if factor is None else f"{factor:.3f}")
    return table


def allocation_table(result: SearchResult) -> Table | None:
    """The best allocation layer by layer, or None if there is none."""
    if result.best is None:
        return None
    task, allocation = result.task, result.best.allocation
    cost = task.cost(allocation)
    table = table_of(f"Allocation of {task.network} on {task.device} by {result.agent}")
    table.add_column("layer", no_wrap=True)
    table.add_column("kind")
    for column in ("weight bits", "activation bits", "weights KiB", "share of latency"):
        table.add_column(column, justify="right")
    by_layer = {layer.name: layer.metrics for layer in cost.layers}
    total = cost.metrics.get("latency_ms", 0.0)
    for layer in task.workload:
        precision, metrics = allocation[layer.name], by_layer.get(layer.name, {})
        share = percent(metrics["latency_ms"] / total) if total and "latency_ms" in metrics else MISSING
        size = number(weight_kib(layer, precision.weight_bits)) if layer.stored_weights else MISSING
        table.add_row(layer.name, layer.kind, *map(str, precision), size, share)
    return table


def finalists_table(finalists: Finalists) -> Table:
    """What the answer was chosen from: scores in the search and on more samples, and the cost that decides."""
    table = table_of(f"Finalists on {finalists.samples:,} samples")
    score = finalists.best.quality.scored_by
    tuned = [f"after {finalists.tune_steps} steps"] if finalists.tune_steps else []
    table.add_column("")
    for column in (f"search {score.title}", score.title, *tuned, "behind the best", _heading(finalists.metric), ""):
        table.add_column(column, justify="right")
    equal = {finalist.name for finalist in finalists.equal}
    for finalist in finalists.finalists:
        behind = finalist.behind(finalists.best)
        mark = "equal" if finalist.name in equal else ""
        table.add_row(
            finalist.name.replace("uniform-", "uniform "),
            score.text(finalist.trial.quality.score),
            score.text(finalist.untuned.score),
            *([score.text(finalist.quality.score)] if tuned else []),
            MISSING if behind is None else f"{behind.value:.2g} ± {behind.error:.1g}",
            number(finalist.trial.costs[finalists.metric]),
            "chosen" if finalist is finalists.chosen else mark,
            style="bold" if finalist is finalists.chosen else None,
        )
    return table


def comparison_table(result: SearchResult) -> Table:
    """The best allocation against every uniform width and the float network."""
    task = result.task
    pinned = [f"pinned: {pins_text(task.pins)}"] if task.pins else []
    notes = [f"costs relative to {task.device_costs.reference_text}", *pinned]
    table = table_of(f"Comparison ({'; '.join(notes)})")
    table.add_column("")
    scores = list(dict.fromkeys((task.score, *task.evaluator.metrics)))
    for score in scores:
        for split in ("search", "test"):
            table.add_column(f"{split} {score.title}", justify="right")
    reported = {*task.capabilities.metrics, "weight_kib", "bops"}
    metrics = [name for name, metric in BUDGET_METRICS.items() if metric in reported]
    metrics += [budget.name for budget in task.budgets if budget.name not in metrics]
    for name in metrics:
        table.add_column(name, justify="right")
    table.add_column("within budget", justify="center")

    def cells(costs: Mapping[str, float]) -> list[str]:
        factors = result.relative_costs(costs)
        return [f"{factors[name]:.3f}" if name in factors else MISSING for name in metrics]

    def quality_cells(search: Quality | None, test: Quality | None) -> list[str]:
        return [_metric_cell(quality, score) for score in scores for quality in (search, test)]

    trials = {**({} if result.best is None else {"best": result.best}), **result.baselines}
    for name, trial in trials.items():
        table.add_row(
            result.agent if name == "best" else name.replace("uniform-", "uniform "),
            *quality_cells(trial.quality, result.test.get(name)),
            *cells(trial.costs),
            "yes" if task.feasible(trial.costs) else "no",
            style="bold" if name == "best" else None,
            end_section=name == "best",
        )
        tuned = result.test.get(f"{name}-tuned")
        if tuned is not None:  # what the verdict compares with
            # Without steps of tuning its weights were solved for it; see `quantization.allocation_rounding`.
            how = "tuned" if result.finalists is not None and result.finalists.tune_steps else "solved"
            title = f"{name.replace('uniform-', 'uniform ')}, {how}"
            table.add_row(title, *quality_cells(None, tuned), *(MISSING for _ in metrics), MISSING)
    of_float = quality_cells(task.float_quality, result.test.get("float"))
    table.add_row("float", *of_float, *(MISSING for _ in metrics), MISSING)
    return table


def export_table(found: Export) -> Table:
    """Sizes of an artefact, and how it answers."""
    table = table_of(f"Export to {found.format}")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("artefact", f"{found.size:,} bytes ({found.float_bytes / found.size:.1f} times smaller than float)")
    table.add_row("weights", f"{found.weight_bytes:,} bytes ({found.ideal_bytes:,.0f} at the allocation's widths)")
    if found.ram is not None:
        table.add_row("memory", f"{found.ram:,} bytes, without input and output")
    for agreement in found.agreements:
        table.add_section()
        table.add_row(agreement.settings, f"{agreement.samples:,} samples")
        table.add_row("  same answer", percent(agreement.same_answer))
        table.add_row("  equal to the last bit", percent(agreement.bit_equal))
        for name, (evaluated, exported) in agreement.metrics.items():
            table.add_row(f"  {name}", f"{exported:.4f} (evaluated {evaluated:.4f})")
        if agreement.ms_a_sample is not None:
            table.add_row("  time", f"{agreement.ms_a_sample:.2f} ms a sample on this machine")
    return table
