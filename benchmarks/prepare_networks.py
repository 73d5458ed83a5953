"""Prepare the networks of the package's own tasks by the default recipe, and write the files that are shipped with it.

    python benchmarks/prepare_networks.py digits-cnn cifar10-resnet20

Each takes minutes on two cores. Files of the named tasks that do not fit any more are removed.
"""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter

import typer
from rich.console import Console
from rich.progress import Progress
from safetensors import safe_open

from amed_env import make_task
from amed_env.evaluation import preparation
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.support.machine import available_cores

SHIPPED = Path(preparation.__file__).parent.parent / "networks" / "prepared"
console = Console()


def main(tasks: list[str]) -> None:
    """Prepare the tasks."""
    SHIPPED.mkdir(exist_ok=True)
    for name in tasks:
        for path in SHIPPED.glob("*.safetensors"):
            with safe_open(path, "pt") as stream:
                if json.loads(stream.metadata()["made"])["network"] == name:
                    path.unlink()
        evaluator = make_task(name, threads=available_cores()).evaluator
        assert isinstance(evaluator, PostTrainingEvaluator)
        start = perf_counter()
        with Progress(console=console) as bars:
            bar = bars.add_task(name)
            evaluator.prepare(lambda done, total, bars=bars, bar=bar: bars.update(bar, completed=done, total=total))
        kept = preparation.kept_path(preparation.preparation_name(evaluator.recipe, evaluator.made_of))
        (SHIPPED / kept.name).write_bytes(kept.read_bytes())
        console.print(f"{name}: {perf_counter() - start:.0f} s, {kept.stat().st_size / 1024:.0f} KiB, {kept.name}")


if __name__ == "__main__":
    typer.run(main)
