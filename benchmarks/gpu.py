"""What a GPU is worth: the same work on the processor and on a GPU, in one process, in at most eight minutes.

    AMED_DATA_DIR=data python benchmarks/gpu.py cifar10-resnet20 cifar10-resnet56 --out gpu.json

For each network: forwards of the float network, evaluations of random allocations (one after the other, and sixteen in
a pass), sensitivities, and steps of learning the rounding. On the processor evaluations run on integers where they can,
as they do in a search. Wall-clock seconds, the least of some runs after one that is not counted. The agreement of both
devices is printed beside: divergences are floats, so they differ in the last digits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from amed_env import BitAllocation, Task, make_task
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.quantization.learned_rounding import RoundingLearner
from amed_env.quantization.recipe import RECIPES
from amed_env.support.machine import cpu_name

console = Console(width=140)
ALLOCATIONS = 16
STEPS = 5


def main(
    tasks: Annotated[list[str], typer.Argument(help="names of tasks")],
    devices: Annotated[str, typer.Option(help="with commas")] = "cpu,cuda",
    runs: int = 3,
    limit_seconds: Annotated[float, typer.Option(help="no network is begun after it")] = 360.0,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Measure tasks on devices."""
    started = perf_counter()
    found: dict[str, Any] = {"processor": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    for name in tasks:
        if perf_counter() - started > limit_seconds:
            console.print(f"{name}: left out, the time is over")
            continue
        figures = {device: measured(name, device, runs) for device in devices.split(",")}
        show(name, figures)
        found[name] = {device: {**seconds, "scores": scores} for device, (seconds, scores) in figures.items()}
        if out is not None:
            out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def measured(name: str, device: str, runs: int) -> tuple[dict[str, float], list[float]]:
    """Seconds of each kind of work, and the scores of the allocations."""
    task, evaluator = prepared(name, device)
    chosen = allocations(task)
    float_network, layers = evaluator.workload.uniform(32), len(evaluator.workload)
    scores: list[float] = []

    def evaluate() -> None:
        scores[:] = [evaluator.evaluate(allocation).score for allocation in chosen]

    def evaluate_float() -> None:
        evaluator.network.select(float_network)
        for batch in evaluator.samples("search").inputs.split(evaluator.batch_size):
            evaluator.network(batch)

    recipe = RECIPES["network"].with_changes(steps=STEPS)
    learner = RoundingLearner(evaluator.network, recipe, evaluator.samples("calibration").inputs)
    fresh_task, fresh = prepared(name, device)  # what was measured is kept, so another evaluator measures sensitivities
    seconds = {
        "float forward of the search samples": least(evaluate_float, device, runs),
        "evaluation": least(evaluate, device, runs) / ALLOCATIONS,
        "evaluation, many at once": least(lambda: evaluator.evaluate_many(chosen), device, runs) / ALLOCATIONS,
        f"sensitivities of {layers} layers": seconds_of(lambda: fresh.predicted_loss(fresh_task.precisions), device),
        "step of learning": learner.seconds_of_a_step(STEPS),
    }
    return seconds, scores


def prepared(name: str, device: str) -> tuple[Task, PostTrainingEvaluator]:
    """A task on a device, with its evaluator."""
    task = make_task(name, evaluation_device=device, reuse_mib=0)
    assert isinstance(task.evaluator, PostTrainingEvaluator)
    task.evaluator.prepare()
    return task, task.evaluator


def allocations(task: Task) -> list[BitAllocation]:
    """The same random allocations every time."""
    numbers = np.random.default_rng(0)
    return [
        task.allocation(numbers.integers(len(task.precisions), size=len(task.workload))) for _ in range(ALLOCATIONS)
    ]


def least(work: Callable[[], object], device: str, runs: int) -> float:
    """Seconds of the quickest run, after one that is not counted (kernels are chosen and compiled in it)."""
    return min([seconds_of(work, device) for _ in range(runs + 1)][1:])


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Seconds until the device is done."""
    started = perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return perf_counter() - started


def show(name: str, figures: dict[str, tuple[dict[str, float], list[float]]]) -> None:
    """A table of one network, and how far the scores agree."""
    table = Table("seconds", *figures, title=name)
    for work in next(iter(figures.values()))[0]:
        table.add_row(work, *(f"{seconds[work]:.4f}" for seconds, _ in figures.values()))
    console.print(table)
    first, *others = (np.asarray(scores) for _, scores in figures.values())
    for scores in others:
        console.print(
            f"largest difference of a score: {np.abs(scores - first).max():.2e}, of {first.mean():.3f} in the mean"
        )


if __name__ == "__main__":
    typer.run(main)
