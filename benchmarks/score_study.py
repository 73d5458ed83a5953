"""Which score ranks allocations as fresh images do? And whose pick is best on them?

For each task allocations within a budget are taken from an exact solver's trials (the best by its proxy), from local
search, and at random. Each is scored on the search split by accuracy, cross-entropy and divergence, and by the
divergence on unlabelled training images; none of these chose by the test split, whose accuracy is then the truth.
Spearman's rank correlation with it, over the solver's, the random, and all allocations; and for each score the test
accuracy of the allocation that it would pick, with the paired difference from the pick of the divergence.

A second table says how many samples a search needs: means over draws of so many of the images, of the rank correlation
and of the test accuracy of the pick, and of the best of the eight best on all images, as at the end of a search.

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
from amed_env.agents.finalists import FINALISTS
from amed_env.datasets import Samples, Splits
from amed_env.datasets.samples import drawn_order
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.problem.allocation import BitAllocation
from amed_env.tasks.catalogue import named_network

TAKEN = (("milp", 30), ("local", 10), ("random", 20))
UNLABELLED = 5_000
"""Training images whose labels are not looked at."""
FEW = 500  # the first of them are a score of their own
COUNTS = (125, 250, 500, 1_000, 2_000, 5_000)
"""Numbers of samples that are drawn of the images."""
DRAWS = 200
"""Times that so many are drawn: their means have an error of a fourteenth of what single draws differ by."""


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


def scores_of(task: Task, allocation: BitAllocation, unlabelled: PostTrainingEvaluator) -> dict[str, Any]:
    """Every score of an allocation; values of single samples are kept for paired comparisons and draws."""
    evaluator = task.evaluator.network_evaluator()
    quality, test = evaluator.evaluate(allocation), evaluator.evaluate(allocation, "test")
    name = quality.scored_by.name
    of_training = unlabelled.evaluate(allocation).per_sample[name]
    return {
        "allocation": allocation.key(),
        "accuracy": quality.accuracy,
        "loss": quality.loss,
        "divergence": quality.score,
        "test": test.accuracy,
        "per_sample": _hex_of_bits(test.per_sample["top-1"]),
        "search_hits": _hex_of_bits(quality.per_sample["top-1"]),
        "search_divergences": quality.per_sample[name].astype(np.float32).tobytes().hex(),
        "training_divergences": of_training.astype(np.float32).tobytes().hex(),
        f"divergence on {FEW} unlabelled": float(of_training[:FEW].mean(dtype=np.float64)),
        f"divergence on {UNLABELLED} unlabelled": float(of_training.mean(dtype=np.float64)),
    }


def report(rows: list[dict[str, Any]], samples: int) -> str:
    """Tables of Markdown: rank correlations, and what each score picks."""
    names = [key for key in rows[0] if key in ("accuracy", "loss") or key.startswith("divergence")]
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


def report_draws(rows: list[dict[str, Any]], samples: int) -> str:
    """A table of Markdown: rank correlation and picks by the number of samples, means over draws of them."""
    test = np.array([row["test"] for row in rows])
    solvers = np.array([row["group"] == "milp" for row in rows])
    search = np.stack([_floats(row["search_divergences"]) for row in rows])
    training = np.stack([_floats(row["training_divergences"]) for row in rows])
    hits = np.stack([_bits(row["search_hits"], search.shape[1]) for row in rows])
    final = np.concatenate([search, training], axis=1).mean(axis=1)
    measured = {
        "accuracy, search images": -hits,
        "divergence, search images": search,
        "divergence, training images": training,
    }
    heads = (
        "score",
        "samples",
        "rank, solver's",
        "rank, all",
        "its pick on test %",
        "best of its eight best on test %",
    )
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    generator = np.random.default_rng(0)
    for name, values in measured.items():
        for count in COUNTS:
            if count > values.shape[1]:
                continue
            drawn = []
            for _ in range(1 if count == values.shape[1] else DRAWS):
                chosen = generator.choice(values.shape[1], count, replace=False)
                drawn.append(_of_a_draw(values[:, chosen].mean(axis=1, dtype=np.float64), test, solvers, final))
            means = np.mean(drawn, axis=0)
            cells = [f"{means[0]:.2f}", f"{means[1]:.2f}", *(f"{100 * mean:.2f}" for mean in means[2:])]
            lines.append(f"| {name} | {count:,} | {' | '.join(cells)} |")
    order = np.argsort(final)
    best, mean = 100 * test.max(), 100 * test[order[:FINALISTS]].mean()
    text = f"The best on test has {best:.2f} %, the eight best by the divergence on all images {mean:.2f} % in the mean"
    error = 100 * np.sqrt(test.max() * (1 - test.max()) / samples)
    return "\n".join([*lines, f"{text}; the error of one is {error:.2f}."])


def _of_a_draw(
    scores: np.ndarray, test: np.ndarray, solvers: np.ndarray, final: np.ndarray
) -> tuple[float, float, float, float]:
    """Rank correlation over the solver's and over all, test accuracy of the pick, and of the best of the eight best."""
    finalists = np.argsort(scores, kind="stable")[:FINALISTS]
    of_solver = spearmanr(-scores[solvers], test[solvers]).statistic
    of_all = spearmanr(-scores, test).statistic
    return of_solver, of_all, test[finalists[0]], test[finalists[np.argmin(final[finalists])]]


def _pick(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return max(rows, key=lambda row: row[name] if name == "accuracy" else -row[name])


def _hex_of_bits(values: np.ndarray) -> str:
    return np.packbits(values > 0.5).tobytes().hex()


def _bits(text: str, samples: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:samples].astype(float)


def _floats(text: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), dtype=np.float32)


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
    splits = Splits(
        evaluator.samples("calibration"), unlabelled_images(given.task, UNLABELLED), None, allow_duplicates=True
    )
    unlabelled = PostTrainingEvaluator(evaluator.traced, splits, evaluator.recipe, threads=1, of_package=True)
    unlabelled.prepare()
    rows: list[dict[str, Any]] = json.loads(given.out.read_text()) if given.out.exists() else []
    done = {row["allocation"] for row in rows}
    for group, allocations in allocations_of(task, given.seed).items():
        for allocation in sorted(allocations, key=lambda a: tuple(a.values())):
            if allocation.key() in done:
                continue
            rows.append({**scores_of(task, allocation, unlabelled), "group": group})
            given.out.write_text(json.dumps(rows) + "\n")
    print(f"{given.task}, {given.budget}, {len(rows)} allocations, {len(evaluator.samples('test'))} test samples")
    print(report(rows, len(evaluator.samples("test"))))
    print(report_draws(rows, len(evaluator.samples("test"))))


if __name__ == "__main__":
    main()
