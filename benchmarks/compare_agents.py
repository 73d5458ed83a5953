"""Compare agents at equal numbers of evaluations on one task, several seeds; the tables of the README come from here.

    python benchmarks/compare_agents.py run digits-cnn --device bitfusion --budget latency=0.5 --evaluations 300
    python benchmarks/compare_agents.py table

`run` writes one line a search to benchmarks/results/<task>-<device>-<budget>.jsonl and skips what is there already, so
it can be stopped and started at will, also in several processes with different agents. The qualities of a task are kept
in one store that all searches share (quality depends on neither agent nor seed); what counts for an agent is the number
of different allocations that it asked for, whether the store knew them or not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

import amed_env
from amed_env import SearchSession

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
CHECKPOINTS = (1, 2, 5, 10, 20, 50, 100, 200, 300)

app = typer.Typer(add_completion=False, help=__doc__)
console = Console(width=140)


@app.command()
def run(
    task: str,
    device: str = "bitfusion",
    budget: str = "latency=0.5",
    agents: str = "uniform,greedy,random,maskable-ppo,ppo,dqn",
    seeds: str = "0,1,2",
    evaluations: int = 300,
    reuse_mib: Annotated[int, typer.Option(help="memory for outputs of layers that allocations share")] = 6_000,
    store: Annotated[Path, typer.Option(help="folder of the shared qualities")] = HERE.parent / "runs" / "compare",
) -> None:
    """Run the searches that are missing."""
    torch.set_num_threads(1)
    problem = amed_env.make_task(task, device=device, budget=[budget], threads=1, reuse_mib=reuse_mib)
    path = RESULTS / f"{task}-{device}-{budget}.jsonl"
    store.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    for seed in (int(text) for text in seeds.split(",")):
        for agent in agents.split(","):
            done = {(row["agent"], row["seed"], row["evaluations_allowed"]) for row in read(path)}
            if (agent, seed, evaluations) in done:
                continue
            trials = amed_env.TrialStore(store / f"{task}.sqlite")
            result = amed_env.make_agent(agent).search(problem, evaluations, seed, store=trials, on_change=say)
            if result.interrupted:
                raise typer.Exit(130)
            if result.best is not None:
                result.test["best"] = problem.quality(result.best.allocation, "test")
            row = {**summary(result), "anytime": anytime(result)}
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
            console.print(agent, seed, row["anytime"])
            trials.close()


@app.command()
def table() -> None:
    """Print the tables of all results, in Markdown."""
    for path in sorted(RESULTS.glob("*.jsonl")):
        rows = read(path)
        console.print(f"\n**{path.stem}** ({rows[0]['evaluations_allowed']} evaluations)\n", highlight=False)
        console.print(
            "| agent | seeds | evaluations | search accuracy % | test accuracy % | part of 8 bit |", highlight=False
        )
        console.print("|---|---|---|---|---|---|", highlight=False)
        for name in agents_of(rows):
            found = [row for row in rows if row["agent"] == name and row["best"]]
            columns = [[100 * row["best"][split]["accuracy"] for row in found] for split in ("search", "test")]
            costs = [row["best"]["relative_costs"][metric] for row in found for metric in row["budgets"]]
            counts = sorted({row["evaluations"] for row in found})
            console.print(
                f"| `{name}` | {len(found)} | {'–'.join(map(str, {counts[0], counts[-1]}))} | {spread(columns[0])} "
                f"| {spread(columns[1])} | {min(costs):.3f}–{max(costs):.3f} |",
                highlight=False,
            )
    points = Table("task", "agent", *map(str, CHECKPOINTS), title="mean best search accuracy (%) after … evaluations")
    for path in sorted(RESULTS.glob("*.jsonl")):
        rows = read(path)
        for name in agents_of(rows):
            curves = [row["anytime"] for row in rows if row["agent"] == name]
            means = [np.mean([curve.get(str(n), np.nan) or np.nan for curve in curves]) for n in CHECKPOINTS]
            points.add_row(path.stem, name, *(f"{100 * mean:.2f}" for mean in means))
    console.print(points)


def spread(values: list[float]) -> str:
    """Mean, and the range of the seeds where they differ."""
    text = f"{np.mean(values):.2f}"
    return text if max(values) - min(values) < 0.005 else f"{text} ({min(values):.2f}–{max(values):.2f})"


def agents_of(rows: list[dict[str, Any]]) -> list[str]:
    """Names of the agents in the rows, those without learning first."""
    order = ("uniform", "random", "greedy")
    names = {row["agent"] for row in rows}
    return [*(name for name in order if name in names), *sorted(names - set(order))]


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a result file, none if it does not exist."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def summary(result: amed_env.SearchResult) -> dict[str, Any]:
    """The result without its Pareto front and baselines, which are the same for all agents or too long here."""
    document = result.to_json()
    return {key: value for key, value in document.items() if key not in ("pareto", "pareto_metric", "baselines")}


def anytime(result: amed_env.SearchResult) -> dict[str, float | None]:
    """Best feasible search accuracy after 1, 2, 5 … evaluations."""
    curve: dict[str, float | None] = {}
    for count in CHECKPOINTS:
        feasible = [t.quality.accuracy for t in result.trials[:count] if result.task.feasible(t.costs)]
        curve[str(count)] = max(feasible, default=None)
    return curve


def say(session: SearchSession) -> None:
    """A line now and then."""
    if session.evaluations and session.evaluations % 50 == 0:
        best = session.best()
        console.print(session.evaluations, f"{session.seconds:.0f} s", best.quality.accuracy if best else None)


if __name__ == "__main__":
    app()
