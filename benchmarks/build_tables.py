"""Evaluate every allocation of a network once, and write the quality table that the package ships.

    python benchmarks/build_tables.py digits-cnn --repeat         # about five minutes on one core
    python benchmarks/build_tables.py kws-dscnn --rows 500        # only measure how long it would take

A table and its divergences from the float network are two files. With `--repeat` only the second is written, for the
table that is there already: committed results name it. A build can be stopped at any time and started again. Results
depend on neither the number of workers nor interruptions.
"""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter, thread_time
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from amed_env import make_task
from amed_env.datasets.samples import Splits
from amed_env.evaluation import table
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.evaluation.stored_divergences import StoredDivergences
from amed_env.evaluation.table_building import TableBuilder
from amed_env.evaluation.table_file import QualityTable
from amed_env.tasks.catalogue import TABULAR

SHIPPED = Path(table.__file__).parent / "tables"
console = Console()


def main(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(TABULAR)}")],
    workers: Annotated[int, typer.Option(help="processes, each with one thread")] = 1,
    rows: Annotated[int | None, typer.Option(help="stop after so many rows")] = None,
    work: Annotated[Path, typer.Option(help="where finished chunks are kept")] = Path("runs/tables"),
    out: Annotated[Path, typer.Option(help="folder of the finished table")] = SHIPPED,
    repeat: Annotated[bool, typer.Option("--repeat", help="keep the table in OUT, write its divergences only")] = False,
    test_samples: Annotated[int | None, typer.Option(help="with --repeat, so many test samples only")] = None,
) -> None:
    """Build a table."""
    if test_samples is not None and not repeat:
        raise typer.BadParameter("a table has all test samples; give --repeat for its divergences alone.")
    torch.set_num_threads(1)
    plan = TABULAR[name]
    evaluator = make_task(name, threads=1).evaluator
    assert isinstance(evaluator, PostTrainingEvaluator)
    parts = [name, *([f"{test_samples}-test"] if test_samples else []), *([f"{rows}-rows"] if rows else [])]
    if test_samples is not None:
        splits = Splits(
            evaluator.samples("calibration"),
            evaluator.samples("search"),
            evaluator.samples("test").subset(range(test_samples)),
        )
        evaluator = PostTrainingEvaluator(
            evaluator.traced, splits, evaluator.recipe, batch_size=500, threads=1, of_package=True
        )
    folder = work / "-".join(parts)
    builder = TableBuilder(evaluator, plan.bits, plan.ties, folder, workers)
    start, processor_start = perf_counter(), thread_time()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(name, total=builder.rows if rows is None else rows)
        done = builder.build(lambda count, _: progress.update(bar, completed=count), rows)
    seconds, processor = perf_counter() - start, thread_time() - processor_start
    console.print(f"{seconds:.0f} s in this run, {processor:.0f} s of this process's thread")
    if done is None:
        console.print(f"{1e3 * processor / (rows or builder.rows):.2f} ms of processor time a row on both splits")
        return
    path = out / f"{name}.npz"
    if not repeat:
        done.save(path)
        console.print(f"{path}: {path.stat().st_size:,} bytes, SHA-256 of its contents {done.digest}")
    if done.divergence is not None:
        divergences = StoredDivergences.of(done, QualityTable.load(path))
        path = out / f"{name}.divergences.npz"
        divergences.save(path)
        console.print(f"{path}: {path.stat().st_size:,} bytes")
        console.print_json(json.dumps(dict(divergences.provenance)))


if __name__ == "__main__":
    typer.run(main)
