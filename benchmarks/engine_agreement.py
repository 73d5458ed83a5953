"""Whether the integer engine and the fake-quantized float network agree, on real networks and random allocations.

    python benchmarks/engine_agreement.py                      # every task whose data are here
    python benchmarks/engine_agreement.py cifar10-resnet20 --allocations 100 --samples 1000

Prints for each task the share of images with the same class, the largest difference of accuracy, and the share of
images whose class scores are equal to the last bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from amed_env import BitAllocation, make_task
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.support.machine import available_cores
from amed_env.tasks.catalogue import TASKS

console = Console(width=140)


def main(
    tasks: Annotated[list[str] | None, typer.Argument(help="names of tasks")] = None,
    allocations: int = 100,
    samples: int = 1_000,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Compare the engines."""
    torch.set_num_threads(available_cores())
    known = [name for name in TASKS.names() if TASKS.get(name).missing() is None]
    figures: dict[str, Any] = {}
    for name in tasks or known:
        figures[name] = compare(name, allocations, samples)
        console.print(name, figures[name])
        if out is not None:
            out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def compare(name: str, allocations: int, samples: int) -> dict[str, Any]:
    """Figures of one task."""
    engines = [make_task(name, engine=engine, reuse_mib=0).evaluator for engine in ("auto", "float")]
    search = engines[0].samples("search")
    inputs, labels = search.inputs[:samples], search.labels[:samples]
    numbers = np.random.default_rng(0)
    same = equal = total = 0
    largest = 0.0
    for _ in range(allocations):
        layers = engines[0].workload.layer_names
        drawn = numbers.choice((2, 3, 4, 5, 6, 7, 8), (len(layers), 2))
        allocation = BitAllocation({layer: (int(w), int(a)) for layer, (w, a) in zip(layers, drawn, strict=True)})
        scores = [scores_of(engine, allocation, inputs) for engine in engines]
        classes = [found.argmax(dim=1) for found in scores]
        same += int((classes[0] == classes[1]).sum())
        equal += int((scores[0] == scores[1]).all(dim=1).sum())
        total += len(inputs)
        accuracies = [float((found == labels).double().mean()) for found in classes]
        largest = max(largest, abs(accuracies[0] - accuracies[1]))
    return {
        "same_class": same / total,
        "largest_difference_of_accuracy_in_points": 100 * largest,
        "equal_to_the_last_bit": equal / total,
        "allocations": allocations,
        "samples": len(inputs),
        "in_float": engines[0].in_float,
    }


def scores_of(evaluator: PostTrainingEvaluator, allocation: BitAllocation, inputs: torch.Tensor) -> torch.Tensor:
    """Class scores of all inputs."""
    evaluator.prepare()
    evaluator.network.select(allocation)
    return torch.cat([evaluator.network(batch) for batch in inputs.split(evaluator.batch_size)])


if __name__ == "__main__":
    typer.run(main)
