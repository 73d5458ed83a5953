"""What each part of an agent is worth: the same training without it, on cells that it never saw.

    python benchmarks/ablations.py policies        # trains each variant for 2,500 steps, about four CPU minutes each
    python benchmarks/ablations.py learners        # maskable-ppo and ppo without shaping, masks, practice
    python benchmarks/ablations.py table

What is in results/ablations.json already is left as it is. Regret is in points of accuracy below the exact optimum, as
the mean over the held-out cells of the suite `tiny`.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import thread_time
from typing import Annotated, Any

import numpy as np
import torch
import typer
from kept_results import KeptResults
from rich.console import Console

from amed_env import make_agent, optimum
from amed_env.agents.policy.agent import PolicyAgent
from amed_env.agents.policy.network import PolicyNetwork
from amed_env.agents.policy.saved import Card, Configuration, save_policy
from amed_env.agents.policy.sources import TableSource
from amed_env.agents.policy.training import TrainingOptions, train
from amed_env.bench.suites import SUITES, Cells, cell_task, usable_tasks

RESULTS = KeptResults(Path(__file__).resolve().parent / "results" / "ablations.json")
DEVICES, METRICS = ("bops", "memory", "mpic", "eyeriss", "edge-tpu-like", "systolic-32"), ("latency", "energy")
AFTER = (1, 20, 100)
POLICIES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "without budget and costs": {"conditioned": False},
    "without sensitivities": {"sensitivities": False},
    "without imitation": {"imitation": 0.0, "imitation_steps": 0, "imagined": 0.0},
    "without imagined networks": {"imagined": 0.0},
    "without the true reward": {"steps": 0},
}
LEARNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "maskable-ppo": ("maskable-ppo", {}),
    "maskable-ppo without shaping": ("maskable-ppo", {"reward": "terminal"}),
    "maskable-ppo without practice": ("maskable-ppo", {"warm_start_steps": 0}),
    "ppo with masks": ("ppo", {"masks": True}),
    "ppo without masks": ("ppo", {"masks": False}),
}
app = typer.Typer(add_completion=False, help=__doc__)
console = Console(width=160)


def keep(key: str, found: dict[str, Any]) -> None:
    """Add a result to the file, and say it."""
    RESULTS.keep(key, found)
    console.print(key, found)


def regrets(agent: str, options: dict[str, Any], tasks: list[str], seeds: int, after: tuple[int, ...]) -> list[float]:
    """Mean regret on the held-out cells of some tasks after numbers of evaluations."""
    found = []
    for cell in SUITES["tiny"].cells(Cells.HELD_OUT, tasks):
        task = cell_task(cell)
        best = optimum(task).quality.accuracy
        for seed in range(seeds):
            result = make_agent(agent, **options).search(task, max(after), seed)
            reached = [trial.quality.accuracy if task.feasible(trial.costs) else 0.0 for trial in result.trials]
            so_far = np.maximum.accumulate(reached)
            found.append([100 * (best - so_far[min(number, len(so_far)) - 1]) for number in after])
    return [round(float(value), 3) for value in np.mean(found, axis=0)]


@app.command()
def policies(
    steps: int = 2_500, only: Annotated[str, typer.Option(help="variants, with commas")] = "", leave_out: bool = True
) -> None:
    """Train and measure the variants of the policy, and the policy on each task without that task's table."""
    torch.set_num_threads(1)
    names = usable_tasks(SUITES["tiny"])[0]
    wanted = [name for name in only.split(",") if name] or list(POLICIES)
    for variant in wanted:
        key = f"policy {variant}"
        if key not in RESULTS.read():
            options = TrainingOptions(**{"steps": steps, **POLICIES[variant]})
            keep(key, _trained(names, names, options))
    for name in names if leave_out else []:
        key = f"policy that never saw {name}"
        if key not in RESULTS.read():
            keep(key, _trained([other for other in names if other != name], [name], TrainingOptions(steps=steps)))


def _trained(seen: list[str], asked: list[str], options: TrainingOptions) -> dict[str, Any]:
    """Train on some tasks, and measure on others."""
    start = thread_time()
    torch.manual_seed(options.seed)
    network = PolicyNetwork()
    train(network, [TableSource(name, DEVICES, METRICS) for name in seen], options)
    seconds = thread_time() - start
    card = Card(
        configuration=Configuration(**network.configuration),
        tasks=tuple(seen),
        devices=DEVICES,
        random_devices=True,
        training=asdict(options),
        made=datetime.now(UTC).date().isoformat(),
    )
    with tempfile.TemporaryDirectory() as folder:
        save_policy(Path(folder), network, card)
        found = {name: regrets(PolicyAgent.name, {"policy": folder}, [name], 1, AFTER[:2]) for name in asked}
    return {"after": AFTER[:2], "regret": found, "seconds_of_training": round(seconds)}


@app.command()
def learners(seeds: int = 2) -> None:
    """Measure the variants of the learners."""
    torch.set_num_threads(1)
    names = usable_tasks(SUITES["tiny"])[0]
    for variant, (agent, options) in LEARNERS.items():
        if variant not in RESULTS.read():
            start = thread_time()
            found = {name: regrets(agent, options, [name], seeds, AFTER) for name in names}
            keep(variant, {"after": AFTER, "regret": found, "seeds": seeds, "seconds": round(thread_time() - start)})


@app.command()
def table() -> None:
    """Print the results as a Markdown table."""
    results = RESULTS.read()
    names = sorted({name for found in results.values() for name in found["regret"]})
    print(f"| variant | {' | '.join(f'`{name}`' for name in names)} |")
    print(f"|---|{'---|' * len(names)}")
    for variant, found in results.items():
        cells = [" / ".join(f"{value:.2f}" for value in found["regret"].get(name, [])) or "–" for name in names]
        print(f"| {variant} | {' | '.join(cells)} |")


if __name__ == "__main__":
    app()
