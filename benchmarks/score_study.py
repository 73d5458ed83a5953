"""Which score ranks allocations as fresh images do? And whose pick is best on them?

For each task allocations within a budget are taken from an exact solver's trials (the best by its proxy), from local
search, and at random. Each is scored on the search split by accuracy, cross-entropy and divergence, and by the
divergence on unlabelled training images; none of these chose by the test split, whose accuracy is then the truth.
Spearman's rank correlation with it, over the solver's, the random, and all allocations; and for each score the test
accuracy of the allocation that it would pick, with the paired difference from the pick of the divergence.

    AMED_DATA_DIR=data python benchmarks/score_study.py cifar10-resnet20 --budget latency=0.35 --out scores.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from amed_env import Task, make_task
from amed_env.agents import make_agent
from amed_env.datasets import Samples, Splits
from amed_env.datasets.samples import drawn_order
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.problem.allocation import BitAllocation
from amed_env.tasks.catalogue import named_network

TAKEN = (("milp", 30), ("local", 10), ("random", 20))
UNLABELLED = (500, 5_000)


def allocations_of(task: Task, seed: int) -> dict[str, list[BitAllocation]]:
    """Different allocations within the budget, by who proposed them."""
    known: set[BitAllocation] = set()
    taken = {}
    for agent, count in TAKEN:
        trials = make_agent(agent).search(task, evaluations=2 * count, seed=seed).trials
        fresh = [t.allocation for t in trials if task.feasible(t.costs) and t.allocation not in known]
        chosen = list(dict.fromkeys(fresh))[:count]
        known.update(chosen)
        taken[agent] = chosen
    return taken


def unlabelled_images(name: str, count: int) -> Samples:
    """Images of the training set, as the network takes them."""
    entry = named_network(name)
    assert entry.training is not None
    data = entry.training()
    chosen = torch.as_tensor(drawn_order(len(data), "score-study")[:count])
    shape = (-1, *[1] * (data.images.dim() - 2))
    inputs = data.images[chosen].float() * data.scale.view(shape) + data.offset.view(shape)
    return Samples(inputs, None, "training images")


def scores_of(task: Task, allocation: BitAllocation, others: dict[int, PostTrainingEvaluator]) -> dict[str, Any]:
    """Every score of an allocation; values of single test samples are kept for paired comparisons."""
    evaluator = task.evaluator.network_evaluator()
    quality, test = evaluator.evaluate(allocation), evaluator.evaluate(allocation, "test")
    row: dict[str, Any] = {
        "allocation": allocation.key(),
        "accuracy": quality.accuracy,
        "loss": quality.loss,
        "divergence": quality.score,
        "test": test.accuracy,
        "per_sample": np.packbits(test.per_sample["top-1"] > 0.5).tobytes().hex(),
    }
    for count, other in others.items():
        row[f"divergence on {count} unlabelled"] = other.evaluate(allocation).score
    return row


def report(rows: list[dict[str, Any]], samples: int) -> str:
    """Tables of Markdown: rank correlations, and what each score picks."""
    names = [key for key in rows[0] if key not in ("allocation", "test", "per_sample", "group")]
    hits = {row["allocation"]: _bits(row["per_sample"], samples) for row in rows}
    picks = {name: _pick(rows, name) for name in names}
    heads = ("score", "solver's", "random", "all", "its pick on test %", "pick of the divergence minus that, points")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name in names:
        sign = 1 if name == "accuracy" else -1
        cells = []
        for group in ("milp", "random", None):
            some = [row for row in rows if group in (None, row["group"])]
            rank = spearmanr([sign * row[name] for row in some], [row["test"] for row in some]).statistic
            cells.append(f"{rank:.2f}")
        difference = 100 * (hits[picks["divergence"]["allocation"]] - hits[picks[name]["allocation"]])
        error = difference.std(ddof=1) / np.sqrt(samples)
        cells += [f"{100 * picks[name]['test']:.2f}", f"{difference.mean():+.2f} ± {error:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _pick(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return max(rows, key=lambda row: row[name] if name == "accuracy" else -row[name])


def _bits(text: str, samples: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:samples].astype(float)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", help="a task with a training set")
    parser.add_argument("--budget", required=True, help="latency=0.35, for example")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; allocations that it has are not run again")
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = make_task(given.task, budget=[given.budget], threads=1)
    evaluator = task.evaluator.network_evaluator()
    evaluator.prepare()
    others = {}
    for count in UNLABELLED:
        images = unlabelled_images(given.task, count)
        splits = Splits(evaluator.samples("calibration"), images, None, allow_duplicates=True)
        others[count] = PostTrainingEvaluator(evaluator.traced, splits, evaluator.recipe, threads=1, of_package=True)
        others[count].prepare()
    rows: list[dict[str, Any]] = json.loads(given.out.read_text()) if given.out.exists() else []
    done = {row["allocation"] for row in rows}
    for group, allocations in allocations_of(task, given.seed).items():
        for allocation in sorted(allocations, key=lambda a: tuple(a.values())):
            if allocation.key() in done:
                continue
            rows.append({**scores_of(task, allocation, others), "group": group})
            given.out.write_text(json.dumps(rows) + "\n")
    print(f"{given.task}, {given.budget}, {len(rows)} allocations, {len(evaluator.samples('test'))} test samples")
    print(report(rows, len(evaluator.samples("test"))))


if __name__ == "__main__":
    main()
