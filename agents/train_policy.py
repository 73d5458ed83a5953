"""Train a goal-conditioned policy on tables of every allocation, and write it with its card.

    python agents/train_policy.py --out runs/policy                 # about eleven minutes on one core
    python agents/train_policy.py --out runs/without --no-conditioned --steps 2000

The policy that the package ships was made by the first line. Devices and budgets of the held-out cells of the suite
`tiny` are never trained on; the card has the regret on them, without any evaluation and after twenty.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console

from amed_env import make_task, optimum
from amed_env.agents.policy.agent import PolicyAgent
from amed_env.agents.policy.network import PolicyNetwork
from amed_env.agents.policy.saved import Card, Configuration, load_policy, save_policy
from amed_env.agents.policy.sources import TableSource
from amed_env.agents.policy.training import TrainingOptions, train
from amed_env.bench.suites import SUITES, Cells

DEVICES = ("bops", "memory", "mpic", "eyeriss", "edge-tpu-like", "systolic-32")
METRICS = ("latency", "energy")
EVALUATIONS = 20
console = Console()


def main(
    out: Annotated[Path, typer.Option(help="folder of the policy")],
    tasks: Annotated[str, typer.Option(help="names with commas")] = ",".join(SUITES["tiny"].tasks),
    devices: Annotated[str, typer.Option(help="names with commas")] = ",".join(DEVICES),
    steps: int = 16_000,
    imitation_steps: int = 400,
    imitation: float = TrainingOptions.imitation,
    random_devices: float = 0.5,
    imagined: float = TrainingOptions.imagined,
    conditioned: bool = True,
    sensitivities: bool = True,
    seed: int = 0,
) -> None:
    """Train a policy."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    options = TrainingOptions(
        imitation_steps=imitation_steps,
        steps=steps,
        imitation=imitation,
        imagined=imagined,
        conditioned=conditioned,
        sensitivities=sensitivities,
        seed=seed,
    )
    names, chosen = tasks.split(","), devices.split(",")
    sources = [TableSource(name, chosen, METRICS, random_devices) for name in names]
    network = PolicyNetwork()

    def say(phase: str, step: int, figures: dict[str, float]) -> None:
        if step % 250 == 0:
            console.print(f"{phase}, step {step}: {', '.join(f'{k} {v:.3f}' for k, v in figures.items())}")

    train(network, sources, options, say)
    card = Card(
        configuration=Configuration(**network.configuration),
        tasks=tuple(names),
        devices=tuple(chosen),
        random_devices=random_devices > 0,
        training=asdict(options),
        made=datetime.now(UTC).date().isoformat(),
    )
    save_policy(out, network, card)
    save_policy(out, load_policy(out)[0], card.model_copy(update={"regret": regrets(out, names)}))
    console.print_json((out / "policy.json").read_text(encoding="utf-8"))


def regrets(folder: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """Mean regret in accuracy points on the cells of `tiny`, by task."""
    found: dict[str, dict[str, float]] = {}
    for name in names:
        of_task: dict[str, float] = {}
        for cells in Cells:
            zero_shot, after = [], []
            for cell in SUITES["tiny"].cells(cells, [name]):
                task = make_task(cell.task, device=cell.device, budget=dict(cell.budget), score="metric")
                best = optimum(task).quality.accuracy
                result = PolicyAgent(folder).search(task, EVALUATIONS, 0)
                zero_shot.append(100 * (best - result.trials[0].quality.accuracy))
                assert result.best is not None
                after.append(100 * (best - result.best.quality.accuracy))
            of_task[f"{cells} zero-shot"] = round(float(np.mean(zero_shot)), 3)
            of_task[f"{cells} after {EVALUATIONS}"] = round(float(np.mean(after)), 3)
        found[name] = of_task
    return found


if __name__ == "__main__":
    typer.run(main)
