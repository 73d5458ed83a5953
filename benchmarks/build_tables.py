"""Evaluate every allocation of a network once, and write the quality table that the package ships.

    python benchmarks/build_tables.py digits-cnn                  # about five minutes on one core
    python benchmarks/build_tables.py kws-dscnn --rows 500        # only measure how long it would take

It can be stopped at any time and started again. Results depend on neither the number of workers nor interruptions.
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
from amed_env.evaluation import table
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.evaluation.table_building import TableBuilder
from amed_env.tasks.catalogue import TABULAR

SHIPPED = Path(table.__file__).parent / "tables"
console = Console()


def main(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(TABULAR)}")],
    workers: Annotated[int, typer.Option(help="processes, each with one thread")] = 1,
    rows: Annotated[int | None, typer.Option(help="stop after so many rows")] = None,
    work: Annotated[Path, typer.Option(help="where finished chunks are kept")] = Path("runs/tables"),
    out: Annotated[Path, typer.Option(help="folder of the finished table")] = SHIPPED,
) -> None:
    """Build a table."""
    torch.set_num_threads(1)
    plan = TABULAR[name]
    evaluator = make_task(name, threads=1).evaluator
    assert isinstance(evaluator, PostTrainingEvaluator)
    folder = work / name if rows is None else work / f"{name}-{rows}-rows"
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
    done.save(path)
    console.print(f"{path}: {path.stat().st_size:,} bytes, SHA-256 of its contents {done.digest}")
    console.print_json(json.dumps(dict(done.provenance)))


if __name__ == "__main__":
    typer.run(main)
