"""What agents gain on images that nothing was chosen by: several agents and seeds at equal numbers of evaluations.

    python benchmarks/compare_agents.py run cifar10-resnet20 --budgets latency=0.35,latency=0.27,energy=0.35
    python benchmarks/compare_agents.py table

A search is that of the command line: the divergence from the float network on the search split steers it, its finalists
are scored on more samples, and one is chosen. The test split then tells by how much the choice, and the best trial
without that choice, are above the proxy's optimum (the first allocation of `milp`, one evaluation) and above the best
uniform width within the budget, paired over images.

`run` writes one line a search to benchmarks/results/<task>-<device>-<budget>.jsonl and skips what is there already, so
it can be stopped and started at will. The qualities of a task are kept in one store that all searches share (quality
depends on neither agent nor seed); what counts for an agent is the number of different allocations that it asked for,
whether the store knew them or not.
"""

from __future__ import annotations

import json
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer

import amed_env
from amed_env import Task
from amed_env.evaluation.quality import Evaluator
from amed_env.evaluation.verdict import Estimate
from amed_env.problem.allocation import BitAllocation

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
REFERENCES = ("proxy", "uniform")

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def run(
    name: str,
    device: str = "bitfusion",
    budgets: str = "latency=0.35,latency=0.27,energy=0.35",
    agents: str = "policy,milp,local,evolution,maskable-ppo",
    seeds: str = "0,1,2",
    evaluations: int = 100,
    reuse_mib: Annotated[int, typer.Option(help="memory for outputs of layers that allocations share")] = 4_000,
    store: Annotated[Path, typer.Option(help="folder of the shared qualities")] = HERE.parent / "runs" / "compare",
) -> None:
    """Run the searches that are missing."""
    torch.set_num_threads(1)
    store.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    of_network = amed_env.make_task(name, device=device, threads=1, reuse_mib=reuse_mib)
    remember_finalists(of_network)
    tasks = {budget: of_network.with_budget([budget]) for budget in budgets.split(",")}
    for seed in (int(text) for text in seeds.split(",")):
        for budget, task in tasks.items():
            path = RESULTS / f"{name}-{device}-{budget}.jsonl"
            for agent in agents.split(","):
                done = {(row["agent"], row["seed"], row["evaluations_allowed"]) for row in read(path)}
                if (agent, seed, evaluations) in done:
                    continue
                with closing(amed_env.TrialStore(store / f"{name}.sqlite")) as trials:
                    row = searched(task, agent, evaluations, seed, trials)
                with path.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(budget, agent, seed, {key: value["value"] for key, value in row["gains"].items()}, flush=True)


def remember_finalists(task: Task) -> None:
    """Score each finalist once, though several searches end with it."""
    judge = task.evaluator.with_more_samples()
    if judge is not None:
        judge.evaluate = cache(judge.evaluate)  # type: ignore[method-assign]
        task.evaluator.with_more_samples = lambda tuned=False: judge  # type: ignore[method-assign, misc]


def searched(task: Task, agent: str, evaluations: int, seed: int, trials: amed_env.TrialStore) -> dict[str, Any]:
    """A search, its choice, and what these are worth on the test split."""
    result = amed_env.make_agent(agent).search(task, evaluations, seed, store=trials)
    if result.interrupted:
        raise typer.Exit(130)
    proxy = amed_env.make_agent("milp").search(task, 1, store=trials).best
    assert result.best is not None and proxy is not None
    best = result.best
    amed_env.choose_finalist(result)
    uniform = result.best_uniform()
    assert uniform is not None
    allocations = {
        "chosen": result.best.allocation,
        "best": best.allocation,
        "proxy": proxy.allocation,
        "uniform": result.baselines[uniform].allocation,
    }
    hits = {key: test_hits(task.evaluator, allocation) for key, allocation in allocations.items()}
    gains = {
        f"{key} over {reference}": Estimate.of(hits[key] - hits[reference]).to_json()
        for key in ("chosen", "best")
        for reference in REFERENCES
    }
    return {
        "agent": agent,
        "seed": seed,
        "evaluations_allowed": evaluations,
        "evaluations": result.evaluations,
        "uniform": uniform,
        "score": best.quality.score,
        "finalists": None if result.finalists is None else result.finalists.sentence(),
        "part_of_8_bit": result.relative_costs(result.best.costs),
        "gains": gains,
        "allocations": {key: allocation.key() for key, allocation in allocations.items()},
        "hits": {key: np.packbits(values > 0.5).tobytes().hex() for key, values in hits.items()},
        "samples": len(hits["best"]),
    }


@cache
def test_hits(evaluator: Evaluator, allocation: BitAllocation) -> npt.NDArray[np.float64]:
    """Whether each test image is classified correctly: (N,)."""
    return evaluator.evaluate(allocation, "test").per_sample["top-1"].astype(np.float64)


@app.command()
def table() -> None:
    """Print the tables of all results, in Markdown; points of test accuracy, means over seeds."""
    for path in sorted(RESULTS.glob("*.jsonl")):
        rows = read(path)
        uniform, proxy = (percent(unpacked(rows[0], reference)) for reference in REFERENCES[::-1])
        allowed, width = rows[0]["evaluations_allowed"], rows[0]["uniform"]
        print(f"\n**{path.stem}**: {allowed} evaluations; on test {width} {uniform}, the proxy's optimum {proxy} %\n")
        heads = (
            "agent",
            "seeds",
            "answer on test %",
            "over the proxy's optimum",
            "over uniform",
            "best trial over the proxy's",
        )
        print(f"| {' | '.join(heads)} |")
        print("|---|---|---|---|---|---|")
        for agent in dict.fromkeys(row["agent"] for row in rows):
            of_agent = [row for row in rows if row["agent"] == agent]
            cells = [percent(mean_of(of_agent, "chosen"))]
            cells += [points(of_agent, "chosen", reference) for reference in REFERENCES]
            cells.append(points(of_agent, "best", "proxy"))
            print(f"| `{agent}` | {len(of_agent)} | {' | '.join(cells)} |")


def points(rows: list[dict[str, Any]], key: str, reference: str) -> str:
    """Mean gain over the seeds with its standard error over images, as text."""
    gain = Estimate.of(100 * (mean_of(rows, key) - mean_of(rows, reference)))
    return f"{gain.value:+.2f} ± {gain.error:.2f}"


def mean_of(rows: list[dict[str, Any]], key: str) -> npt.NDArray[np.float64]:
    """Part of the seeds that classify each image correctly."""
    return np.asarray(np.mean([unpacked(row, key) for row in rows], axis=0))


def unpacked(row: dict[str, Any], key: str) -> npt.NDArray[np.float64]:
    """Whether each test image is classified correctly."""
    packed = np.frombuffer(bytes.fromhex(row["hits"][key]), dtype=np.uint8)
    return np.asarray(np.unpackbits(packed)[: row["samples"]], dtype=np.float64)


def percent(hits: npt.NDArray[np.float64]) -> str:
    """Mean in per cent, as text."""
    return f"{100 * hits.mean():.2f}"


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a result file, none if it does not exist."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


if __name__ == "__main__":
    app()
