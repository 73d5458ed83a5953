"""The optimum and the true front of every table at every budget of the benchmark: Markdown in `benchmarks/README.md`.

python benchmarks/ground_truth_tables.py            # writes what stands between the markers
python benchmarks/ground_truth_tables.py --check    # ends with 1 if it is not what the tables say
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.stats import spearmanr

from amed_env import make_task, optimum, pareto_front
from amed_env.bench.suites import Cells, cell_task, find_suite, usable_tasks
from amed_env.problem.objective import BUDGET_METRICS
from amed_env.support.files import write_atomically
from amed_env.tasks.ground_truth import regret_of

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- ground truth: begin -->", "<!-- ground truth: end -->"
BEST_SHARE = 0.01
"""Of all allocations, for the rank correlation among the best ones by search accuracy."""


def main(
    check: Annotated[bool, typer.Option(help="compare only")] = False,
    file: Annotated[Path, typer.Option(help="the Markdown file")] = README,
) -> None:
    """Write the block, or compare it."""
    text = file.read_text(encoding="utf-8")
    wanted = with_block(text, block())
    if check and wanted != text:
        typer.echo(f"{file} is not what the tables say; run python benchmarks/ground_truth_tables.py")
        raise typer.Exit(1)
    if wanted != text:
        write_atomically(file, wanted)


def with_block(text: str, block: str) -> str:
    """A text in which `block` stands between the markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{block}{END}{after}"


def block() -> str:
    """What the tables say, as Markdown."""
    tasks, _ = usable_tasks(find_suite("tiny"))
    parts = [correlations(tasks)]
    for which, title in ((Cells.HELD_OUT, "held-out"), (Cells.DEVELOPMENT, "development")):
        parts.append(optima(tasks, which, title))
    parts.append(fronts(tasks))
    return "\n".join(parts)


def correlations(tasks: list[str]) -> str:
    """How well the search split stands for the test split."""
    lines = [
        "Spearman's rank correlation of accuracy on the search split and on the test split, over all allocations and "
        f"over the best {100 * BEST_SHARE:g} % by the search split:",
        "",
        "| table | allocations | samples, search / test | float, search / test % | all | best 1 % |",
        "|---|---|---|---|---|---|",
    ]
    for task in tasks:
        table = make_task(task, device="bops").evaluator.table  # type: ignore[attr-defined]
        search, test = (table.correct[split].astype(np.int64) for split in ("search", "test"))
        # By the search loss where accuracies are equal; so the part has a fixed size.
        best = np.lexsort((table.loss["search"], -search))[: round(BEST_SHARE * len(table))]
        quality = table.float_quality
        lines.append(
            f"| `{task}` | {len(table):,} | {quality['search'].samples:,} / {quality['test'].samples:,} | "
            f"{100 * quality['search'].accuracy:.2f} / {100 * quality['test'].accuracy:.2f} | "
            f"{spearmanr(search, test).statistic:.3f} | {spearmanr(search[best], test[best]).statistic:.3f} |"
        )
    return "\n".join([*lines, ""])


def optima(tasks: list[str], which: Cells, title: str) -> str:
    """The optimum of every cell, and what it is worth on the other split."""
    lines = [
        f"The optimum of every {title} cell by the search split, its accuracy on both splits, how many points it is "
        "below the optimum of the test split, and the number of allocations of the front within the budget:",
        "",
        "| table | device | budget | search % | test % | regret on test | front |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in find_suite("tiny").cells(which, tasks):
        task = cell_task(cell)
        best = optimum(task)
        test = task.evaluator.evaluate(best.allocation, "test")
        ((name, factor),) = cell.budget
        front = pareto_front(task, metric=BUDGET_METRICS[name])
        lines.append(
            f"| `{cell.task}` | `{cell.device}` | {name} {factor:g} | {100 * best.quality.accuracy:.2f} | "
            f"{100 * test.accuracy:.2f} | {regret_of(task, best.allocation, 'test'):.2f} | {len(front)} |"
        )
    return "\n".join([*lines, ""])


def fronts(tasks: list[str]) -> str:
    """The whole front of every table on every device, without a budget."""
    lines = [
        "The whole front without a budget: its size, and its first and last allocation, as factor of the uniform 8-bit "
        "cost and search accuracy:",
        "",
        "| table | device | cost | front | cheapest | most accurate |",
        "|---|---|---|---|---|---|",
    ]
    cells = [cell for which in Cells for cell in find_suite("tiny").cells(which, tasks)]
    for task, device, name in dict.fromkeys((cell.task, cell.device, cell.budget[0][0]) for cell in cells):
        problem, metric = make_task(task, device=device, score="metric"), BUDGET_METRICS[name]
        front, reference = pareto_front(problem, metric=metric), problem.reference_cost
        assert reference is not None
        first, last = (
            f"{trial.costs[metric] / reference[metric]:.3f}: {100 * trial.quality.accuracy:.2f} %"
            for trial in (front[0], front[-1])
        )
        lines.append(f"| `{task}` | `{device}` | {name} | {len(front)} | {first} | {last} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    typer.run(main)
