"""What each rung of the post-training ladder is worth: accuracy of uniform widths by recipe, for docs/evaluation.md.

    python benchmarks/evaluation_ladder.py run cifar10-resnet20 --recipes nearest,bias-correction,layer,block,network
    python benchmarks/evaluation_ladder.py finalists cifar10-resnet20
    python benchmarks/evaluation_ladder.py table

`run` keeps what it finds in results/evaluation_ladder.json and skips what is there; interrupted learning goes on
where it was. `finalists` asks whether biases that are corrected for each allocation anew would change the order of
allocations.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import torch
import typer
from kept_results import KeptResults
from rich.console import Console
from scipy.stats import spearmanr

from amed_env import BitAllocation, Quality, make_task
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.evaluation.quality import SPLITS
from amed_env.quantization.bias_correction import correct_biases_of
from amed_env.quantization.recipe import RECIPES
from amed_env.support.machine import available_cores

RESULTS = KeptResults(Path(__file__).resolve().parent / "results" / "evaluation_ladder.json")
PRECISIONS = [(8, 8), (4, 4), (3, 3), (2, 2), (4, 32), (3, 32), (2, 32)]
app = typer.Typer(add_completion=False, help=__doc__)
console = Console(width=160)


def evaluator_of(task: str, recipe: str) -> PostTrainingEvaluator:
    """An evaluator without memory: every evaluation here is another one."""
    evaluator = make_task(task, recipe=recipe, threads=available_cores(), reuse_mib=0).evaluator
    assert isinstance(evaluator, PostTrainingEvaluator)
    return evaluator


def on_all_samples(evaluator: PostTrainingEvaluator, allocation: BitAllocation) -> Quality:
    """Quality on search and test split together."""
    search, test = (evaluator.evaluate(allocation, split) for split in SPLITS)
    return search + test


@app.command()
def run(task: str, recipes: Annotated[str, typer.Option(help="names with commas")] = ",".join(RECIPES)) -> None:
    """Measure a task with some recipes."""
    for recipe in recipes.split(","):
        if f"{task} {recipe}" in RESULTS.read():
            continue
        evaluator = evaluator_of(task, recipe)
        start = perf_counter()
        evaluator.prepare(lambda done, total: console.print(done, total) if done % 500 == 0 else None)
        found: dict[str, Any] = {"seconds": round(perf_counter() - start, 1)}
        found["float"] = 100 * on_all_samples(evaluator, evaluator.workload.uniform(32)).accuracy
        for weight_bits, activation_bits in PRECISIONS:
            quality = on_all_samples(evaluator, evaluator.workload.uniform(weight_bits, activation_bits))
            found[f"{weight_bits}/{activation_bits}"] = 100 * quality.accuracy
        RESULTS.keep(f"{task} {recipe}", found)
        console.print(task, recipe, found)


@app.command()
def finalists(task: str, recipe: str = "network", allocations: int = 20, samples: int = 256) -> None:
    """Rank correlation of the search's accuracies with and without biases that are corrected for each allocation."""
    evaluator = evaluator_of(task, recipe)
    evaluator.prepare()
    network, layers = evaluator.network, evaluator.workload.layer_names
    numbers = np.random.default_rng(0)
    calibration = evaluator.samples("calibration").inputs[:samples]
    plain, corrected = [], []
    for _ in range(allocations):
        drawn = numbers.choice((2, 3, 4, 8), len(layers))
        allocation = BitAllocation({name: (int(b), int(b)) for name, b in zip(layers, drawn, strict=True)})
        plain.append(evaluator.evaluate(allocation))
        before = {name: network.layers[name].prepared[allocation[name].weight_bits] for name in layers}
        correct_biases_of(network, allocation, calibration)
        corrected.append(evaluator.evaluate(allocation))
        for name, width in before.items():
            network.use(name, allocation[name].weight_bits, width)
    accuracies = [[100 * quality.accuracy for quality in qualities] for qualities in (plain, corrected)]
    found = {
        "rank_correlation_accuracy": float(spearmanr(*accuracies).statistic),
        "rank_correlation_loss": float(spearmanr([q.loss for q in plain], [q.loss for q in corrected]).statistic),
        "mean_gain": float(np.mean(accuracies[1]) - np.mean(accuracies[0])),
        "allocations": allocations,
    }
    RESULTS.keep(f"{task} {recipe} finalists", found)
    console.print(found)


@app.command()
def table() -> None:
    """Print all results in Markdown."""
    results = RESULTS.read()
    for task in dict.fromkeys(key.split()[0] for key in results):
        rows = [
            (key.split()[1], found) for key, found in results.items() if key.startswith(f"{task} ") and "float" in found
        ]
        rows.sort(key=lambda row: list(RECIPES).index(row[0]))
        console.print(f"\n`{task}`, float {rows[0][1]['float']:.2f} %\n", highlight=False)
        heading = " | ".join(f"{w}/{'float' if a == 32 else a}" for w, a in PRECISIONS)
        console.print(f"| recipe | {heading} | seconds |\n|---|{'---|' * (len(PRECISIONS) + 1)}", highlight=False)
        for recipe, found in rows:
            cells = " | ".join(f"{found[f'{w}/{a}']:.2f}" for w, a in PRECISIONS)
            console.print(f"| `{recipe}` | {cells} | {found['seconds']:.0f} |", highlight=False)


if __name__ == "__main__":
    torch.set_num_threads(available_cores())
    app()
