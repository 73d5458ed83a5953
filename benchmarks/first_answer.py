"""How long a search takes to its answers from a cold start, and how good each of them is.

    AMED_DATA_DIR=data python benchmarks/first_answer.py cifar10-resnet20 --device memory --activation-bits 32 \
        --recipe nearest --budgets memory=0.5,memory=0.375

Each budget is a process of its own with an empty cache. CPU time of one thread is counted from the start of the process
(imports, samples, capture and calibration are in it), in float forwards of 1,000 images on the same thread. The stages
are those of `amed search`: gradients, divergences where they matter, all divergences (the first evaluation of `milp`),
and the end of the command, with the choice among finalists and the test split. Allocations are scored on all search
and test samples together; others' allocations (`--allocations`) by the same quantizer, paired with the last stage.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import typer


def main(
    name: str,
    budgets: Annotated[str, typer.Option(help="with commas, a process each")] = "latency=0.5",
    device: str = "bitfusion",
    activation_bits: Annotated[int | None, typer.Option()] = None,
    recipe: Annotated[str | None, typer.Option()] = None,
    allocations: Annotated[list[Path] | None, typer.Option(help="allocation files of others to score")] = None,
    inside: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure the stages."""
    if inside:
        measure(name, budgets, device, activation_bits, recipe, allocations or [])
        return
    for budget in budgets.split(","):
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "AMED_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, __file__, *sys.argv[1:], "--inside", "--budgets", budget]
            subprocess.run(command, env=environment, check=True)


def measure(
    name: str, budget: str, device: str, activation_bits: int | None, recipe: str | None, others: list[Path]
) -> None:
    """The stages of one budget, in this process."""
    import numpy as np
    import torch

    import amed_env
    from amed_env.agents.first_answers import first_answers
    from amed_env.evaluation.verdict import Estimate
    from amed_env.problem.allocation import BitAllocation

    torch.set_num_threads(1)
    task = amed_env.make_task(
        name, device=device, activation_bits=activation_bits, recipe=recipe, budget=[budget], threads=1
    )
    evaluator = task.evaluator.network_evaluator()
    stages: list[tuple[str, float, BitAllocation]] = []
    if evaluator.prepares_at_once:
        evaluator.prepare()
    for answer in first_answers(task):
        stages.append((answer.stage, process_time(), answer.allocation))
    result = amed_env.make_agent("milp").search(task, 1)
    assert result.best is not None
    stages.append(("all divergences", process_time(), result.best.allocation))
    amed_env.choose_finalist(result)
    result.add_report()
    assert result.best is not None
    stages.append(("end", process_time(), result.best.allocation))

    unit = seconds_of_a_forward(task)
    hits: dict[str, Any] = {}

    def of(allocation: BitAllocation) -> Any:
        if allocation.key() not in hits:
            parts = [evaluator.evaluate(allocation, split).per_sample["top-1"] for split in ("search", "test")]
            hits[allocation.key()] = np.concatenate(parts).astype(np.float64)
        return hits[allocation.key()]

    print(f"{name} on {device}, {budget}, recipe {evaluator.recipe.rounding}: a forward is {unit:.2f} s of CPU time")
    last = of(result.best.allocation)
    rows = [(stage, f"{seconds / unit:.1f}", allocation) for stage, seconds, allocation in stages]
    for path in others:
        rows.append((path.stem, "", BitAllocation.from_json(json.loads(path.read_text()), str(path))))
    for stage, forwards, allocation in rows:
        values = of(allocation)
        behind = Estimate.of(100 * (values - last))
        print(f"| {stage} | {forwards} | {100 * values.mean():.2f} | {behind.value:+.2f} ± {behind.error:.2f} |")


def seconds_of_a_forward(task: Any) -> float:
    """CPU time of the float network for 1,000 samples, the least of three runs and four batch sizes."""
    import torch

    from amed_env.quantization.layers import channels_last

    evaluator = task.evaluator.network_evaluator()
    network, inputs = evaluator.network.float_module(), evaluator.samples("calibration").inputs[:1000]
    least = float("inf")
    with torch.inference_mode():
        for batch_size in (25, 50, 125, 250):
            batches = [channels_last(batch) for batch in inputs.split(batch_size)]
            for _ in range(3):
                started = process_time()
                for batch in batches:
                    network(batch)
                least = min(least, process_time() - started)
    return least * 1000 / len(inputs)


if __name__ == "__main__":
    typer.run(main)
