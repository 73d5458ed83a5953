"""Search one network on several devices and draw the allocations below each other; the picture of the README.

    python benchmarks/compare_devices.py search cifar10-resnet20 --budget latency=0.5
    python benchmarks/compare_devices.py draw --out docs/pictures/devices.png

`search` writes one result document (amed-result/1 without its Pareto front) a device to benchmarks/results/devices, and
skips what is there already. The qualities are kept in one store that all devices share, for quality does not depend on
the device. `draw` also takes result.json of any run folder of `amed search`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import amed_env
from amed_env import Task
from amed_env.hardware import load_device
from amed_env.problem.objective import parse_budgets
from amed_env.report import png
from amed_env.report.comparison_chart import draw_comparison

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "devices"

app = typer.Typer(add_completion=False, help=__doc__)
console = Console(width=120)


@app.command()
def search(
    task: str,
    devices: Annotated[str, typer.Option(help="names, separated by commas")] = (
        "bitfusion,eyeriss-ws,bit-serial,mpic,edge-tpu-like"
    ),
    budget: str = "latency=0.5",
    agent: str = "greedy",
    evaluations: int = 100,
    store: Annotated[Path, typer.Option(help="folder of the shared qualities")] = HERE.parent / "runs" / "compare",
) -> None:
    """Run the searches that are missing."""
    torch.set_num_threads(1)
    store.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    shared = amed_env.make_task(task, threads=1, reuse_mib=2_000)
    for device in devices.split(","):
        path = RESULTS / f"{task}-{device}-{budget}.json"
        if path.exists():
            continue
        problem = Task(task, shared.evaluator, load_device(device), budgets=parse_budgets([budget]))
        trials = amed_env.TrialStore(store / f"{task}.sqlite")
        result = amed_env.make_agent(agent).search(problem, evaluations, 0, store=trials)
        trials.close()
        if result.best is None or result.interrupted:
            console.print(device, "nothing was found")
            continue
        result.add_report()
        document = {key: value for key, value in result.to_json().items() if not key.startswith("pareto")}
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        console.print(device, result.evaluations, result.best.quality.accuracy, result.test["best"].accuracy)


@app.command()
def draw(
    results: Annotated[list[Path] | None, typer.Argument(help="result files; by default those of `search`")] = None,
    task: str = "cifar10-resnet20",
    budget: str = "latency=0.5",
    out: Path = HERE.parent / "docs" / "pictures" / "devices.png",
) -> None:
    """Draw the best allocations of results of one network."""
    paths = results or sorted(RESULTS.glob(f"{task}-*-{budget}.json"))
    if not paths:
        raise typer.BadParameter(f"there is no result of {task} at {budget} in {RESULTS}; run `search` first.")
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    out.write_bytes(png(draw_comparison(documents)))
    console.print(f"wrote {out}")


if __name__ == "__main__":
    app()
