"""How long an evaluation takes, as a ratio to the float network in the same process on one thread.

    python benchmarks/evaluator_speed.py                       # ResNet-20, ResNet-56, ResNet-8, DS-CNN
    python benchmarks/evaluator_speed.py cifar10-resnet20 --profile

CPU time of the thread, the least of several runs. The float network runs in channels-last layout and at its best batch
size. The recipe changes numbers but not the work, so weights simply go to the nearest point of the grid here.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from processor_time import least
from rich.console import Console
from rich.table import Table

from amed_env import BitAllocation, make_task
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.quantization.layers import channels_last
from amed_env.quantization.network import QuantizedNetwork

TASKS = ["cifar10-resnet20", "cifar10-resnet56", "cifar10-resnet8", "kws-dscnn"]
BATCH_SIZES = (25, 50, 100, 125, 250)
WIDTHS = (2, 3, 4)
console = Console(width=150)


def main(
    tasks: Annotated[list[str] | None, typer.Argument(help="names of tasks")] = None,
    samples: int = 1_000,
    runs: int = 5,
    profile: Annotated[bool, typer.Option(help="also show where the time of an evaluation goes")] = False,
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Measure the evaluator."""
    torch.set_num_threads(1)
    table = Table(title=f"{samples} samples, one thread, CPU time; ratios to the float network")
    for heading in ("", "float s", "8 bit", "4 bit", "mixed", "fake quantization", "sweep", "random allocations/s"):
        table.add_column(heading, justify="right" if heading else "left")
    figures: dict[str, Any] = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    for name in tasks or TASKS:
        figures[name] = found = measure(name, samples, runs)
        table.add_row(
            name,
            f"{found['float_seconds']:.3f}",
            *(f"{found[key]:.3f}" for key in ("uniform_8", "uniform_4", "mixed", "fake_quantization", "sweep")),
            f"{found['allocations_per_second']:.1f} (float {1 / found['float_seconds']:.1f})",
        )
        console.print(name, found)
        if profile:
            show_profile(name, samples)
    console.print(table)
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(name: str, samples: int, runs: int) -> dict[str, float]:
    """Figures of one task."""
    evaluator = make_task(name, recipe="nearest", threads=1).evaluator
    assert isinstance(evaluator, PostTrainingEvaluator)
    evaluator.prepare()
    network, inputs = evaluator.network, evaluator.samples("search").inputs[:samples]
    workload, layers = evaluator.workload, evaluator.workload.layer_names

    def allocation(seed: int) -> BitAllocation:
        drawn = np.random.default_rng(seed).choice((*WIDTHS, 8), len(layers))
        return BitAllocation({layer: (int(b), int(b)) for layer, b in zip(layers, drawn, strict=True)})

    float_seconds, batch = best_float(network, inputs, runs)
    mixed = [allocation(seed) for seed in range(5)]
    found = {
        "samples": len(inputs),
        "float_seconds": float_seconds,
        "float_batch_size": batch,
        "uniform_8": seconds(network, workload.uniform(8), inputs, evaluator.batch_size, runs) / float_seconds,
        "uniform_4": seconds(network, workload.uniform(4), inputs, evaluator.batch_size, runs) / float_seconds,
    }
    times = [seconds(network, chosen, inputs, evaluator.batch_size, runs) for chosen in mixed]
    found["mixed"] = float(np.mean(times)) / float_seconds
    found["allocations_per_second"] = 1.0 / float(np.mean(times))
    fake = QuantizedNetwork(evaluator.traced, inputs[:64], engine="float")
    fake_seconds = seconds(fake, workload.uniform(8), inputs, evaluator.batch_size, max(1, runs // 2))
    found["fake_quantization"] = fake_seconds / float_seconds
    base = workload.uniform(8)
    changes = [base.replace({layer: (bits, bits)}) for layer in reversed(layers) for bits in WIDTHS]
    batches = inputs.split(evaluator.batch_size)
    sweep_seconds = least(lambda: sum(1 for _ in network.sweep(changes, batches)), max(1, runs // 2))
    found["sweep"] = sweep_seconds / (len(changes) * float_seconds)
    return found


def best_float(network: QuantizedNetwork, inputs: torch.Tensor, runs: int) -> tuple[float, int]:
    """Seconds of the float network at its best batch size, and that size."""
    module = network.float_module()
    results = []
    for size in BATCH_SIZES:
        batches = [channels_last(batch) for batch in inputs.split(size)]

        @torch.inference_mode()
        def forward(batches: list[torch.Tensor] = batches) -> None:
            for batch in batches:
                module(batch)

        results.append((least(forward, runs), size))
    return min(results)


def seconds(
    network: QuantizedNetwork, allocation: BitAllocation, inputs: torch.Tensor, batch_size: int, runs: int
) -> float:
    """Seconds of an evaluation without any reuse."""
    network.select(allocation)
    batches = inputs.split(batch_size)
    return least(lambda: [network(batch) for batch in batches], runs)


def show_profile(name: str, samples: int) -> None:
    """Where the time of one evaluation goes, by operator."""
    evaluator = make_task(name, recipe="nearest", threads=1).evaluator
    assert isinstance(evaluator, PostTrainingEvaluator)
    network, inputs = evaluator.network, evaluator.samples("search").inputs[:samples]
    evaluator.prepare()
    network.select(evaluator.workload.uniform(4))
    batches = inputs.split(evaluator.batch_size)
    for batch in batches:
        network(batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for batch in batches:
            network(batch)
    averages = profiler.key_averages()
    total = sum(row.self_cpu_time_total for row in averages)
    table = Table("operator", "calls", "share", title=f"{name} at 4 bits")
    for row in sorted(averages, key=lambda row: -row.self_cpu_time_total)[:10]:
        table.add_row(row.key, str(row.count), f"{100 * row.self_cpu_time_total / total:.1f} %")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
