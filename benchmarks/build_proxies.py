"""Measure the proxies that a table cannot tell by itself, and write the file that the package ships beside it.

   python benchmarks/build_proxies.py digits-cnn                 # some seconds on one core

They come from calibration samples alone: no allocation is scored.
"""

from __future__ import annotations

from pathlib import Path
from time import thread_time
from typing import Annotated

import torch
import typer
from rich.console import Console

from amed_env import make_task
from amed_env.evaluation import table
from amed_env.evaluation.stored_proxies import StoredProxies
from amed_env.evaluation.table_file import QualityTable
from amed_env.tasks.catalogue import TABULAR

SHIPPED = Path(table.__file__).parent / "tables"
console = Console()


def main(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(TABULAR)}")],
    folder: Annotated[Path, typer.Option(help="folder of the table, and of the file that is written")] = SHIPPED,
) -> None:
    """Measure the proxies of a table."""
    torch.set_num_threads(1)
    start = thread_time()
    proxies = StoredProxies.measure(make_task(name, threads=1).evaluator, QualityTable.load(folder / f"{name}.npz"))
    path = folder / f"{name}.proxies.npz"
    proxies.save(path)
    console.print(f"{path}: {path.stat().st_size:,} bytes, {thread_time() - start:.0f} s of processor time")


if __name__ == "__main__":
    typer.run(main)
