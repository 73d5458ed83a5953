"""Four ways to spend the same steps of training on a network within a budget, compared on test samples.

    python benchmarks/training_ways.py digits-cnn --budget memory=0.3 --out ways.json      # continues it

1. `uniform`: the best uniform width within the budget, tuned.
2. `searched`: the allocation that the search found by the network as it is, tuned.
3. `finalists`: its best three and the uniform width, each tuned for a quarter of the steps; the best is taken.
4. `in-training`: AMED's walk for half of the steps, then its choice is tuned for the other half.

All tune towards the float network, which is what they are scored by. Test samples are read once for every way; the
differences to the first way are paired over samples. A seed is that of order, augmentation and moves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from amed_env import BitAllocation, InTraining, SearchResult, Task, choose_finalist, make_agent, make_task
from amed_env.evaluation.quality import Evaluator, Quality
from amed_env.training.settings import settings_for_score
from amed_env.training.tuning import tune

WAYS = ("uniform", "searched", "finalists", "in-training")
EVALUATIONS = 20
AT_ONCE = 3
"""Finalists of a search; with the uniform width four are tuned."""


def main(
    name: Annotated[str, typer.Argument(help="name of a task")] = "digits-cnn",
    budget: Annotated[str, typer.Option(help="a limit")] = "memory=0.3",
    steps: Annotated[int, typer.Option(help="steps of training of every way")] = 400,
    every: Annotated[int, typer.Option(help="steps of an evaluation in training")] = 10,
    seeds: int = 3,
    out: Annotated[Path, typer.Option(help="file that is continued")] = Path("training_ways.json"),
) -> None:
    """Run what is missing, and print the table."""
    limit = dict([budget.split("=")])
    rows: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
    for seed in range(seeds):
        for way in WAYS:
            if any((row["seed"], row["way"]) == (seed, way) for row in rows):
                continue
            rows.append({"seed": seed, "way": way, **run(way, name, limit, steps, every, seed)})
            out.write_text(json.dumps(rows), encoding="utf-8")
            print(way, seed, rows[-1]["allocation"], np.mean(rows[-1]["per_sample"]), flush=True)
    show(rows)


def run(way: str, name: str, limit: dict[str, str], steps: int, every: int, seed: int) -> dict[str, Any]:
    """One way with one seed: its allocation, and whether each test sample is right."""
    if way == "in-training":
        task = make_task(name, budget=limit, threads=1)
        training = settings_for_score(task.score, seed)
        task = make_task(name, budget=limit, threads=1, evaluation=InTraining(every, training))
        result = make_agent("amed").search(task, steps // 2 // every, seed)
        choose_finalist(result)
        return tuned(task.evaluator, best_of(result), steps // 2, seed)
    task = make_task(name, budget=limit, threads=1)
    result = make_agent("milp").search(task, EVALUATIONS, seed)
    if way == "searched":
        return tuned(task.evaluator, best_of(result), steps, seed)
    if way == "uniform":
        return tuned(task.evaluator, best_uniform(result, task), steps, seed)
    choose_finalist(result, AT_ONCE, steps // (AT_ONCE + 1))
    result.add_report()
    return row_of(best_of(result), result.test["best"])


def best_of(result: SearchResult) -> BitAllocation:
    """The answer of a search."""
    assert result.best is not None
    return result.best.allocation


def best_uniform(result: SearchResult, task: Task) -> BitAllocation:
    """The best uniform width within the budget."""
    result.add_baselines()
    uniform = result.best_uniform()
    assert uniform is not None
    return task.uniform(int(uniform.removeprefix("uniform-")))


def tuned(evaluator: Evaluator, allocation: BitAllocation, steps: int, seed: int) -> dict[str, Any]:
    """An allocation after so many steps, on test."""
    of_network = evaluator.network_evaluator()
    with of_network.restored():
        tune(evaluator, allocation, steps, seed)
        return row_of(allocation, of_network.evaluate(allocation, "test"))


def row_of(allocation: BitAllocation, quality: Quality) -> dict[str, Any]:
    """What is kept."""
    return {"allocation": allocation.key(), "per_sample": quality.per_sample["top-1"].astype(int).tolist()}


def show(rows: list[dict[str, Any]]) -> None:
    """Mean over seeds, and the difference to the first way, paired over samples and seeds."""
    values = {way: np.array([row["per_sample"] for row in rows if row["way"] == way], dtype=float) for way in WAYS}
    print("| way | test % by seed | mean % | minus uniform, points |\n|---|---|---|---|")
    for way, right in values.items():
        difference = (right - values["uniform"]).mean(axis=0)  # of a sample, over seeds: seeds share the samples
        error = difference.std(ddof=1) / np.sqrt(len(difference))
        each = ", ".join(f"{100 * seed.mean():.2f}" for seed in right)
        print(f"| {way} | {each} | {100 * right.mean():.2f} | {100 * difference.mean():+.2f} ± {100 * error:.2f} |")


if __name__ == "__main__":
    typer.run(main)
