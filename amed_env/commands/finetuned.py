"""What a training ended with: as a document, and as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amed_env.commands.costs import costs_of, relative_costs
from amed_env.commands.output import Output
from amed_env.commands.tables import number, percent, relative_table, table_of
from amed_env.evaluation.quality import SPLITS
from amed_env.problem.allocation import BitAllocation
from amed_env.tasks.task import Task
from amed_env.training.finetuning import Finetuning

RESULT_FORMAT = "amed-finetuned/1"


def finetuned_document(task: Task, finetuning: Finetuning) -> dict[str, Any]:
    """What a training ended with, in format `amed-finetuned/1`."""
    allocation = finetuning.allocation
    costs, _ = costs_of(task.backend, task.workload, allocation)
    relative = relative_costs(task.backend, task.workload, costs)
    best = finetuning.best
    return {
        "format": RESULT_FORMAT,
        "network": task.network,
        "allocation": allocation.to_json(task.network),
        "mean_weight_bits": _mean_weight_bits(task, allocation),
        "settings": finetuning.settings.model_dump(),
        "epochs": finetuning.history[-1].epoch,
        "best_epoch": best.epoch,
        "best_validation": best.validation.to_json(),
        "stopped_early": finetuning.stopped_early,
        "seconds": finetuning.seconds,
        **finetuning.report(),
        "device": task.device,
        "costs": costs or None,
        "relative_costs": relative or None,
        "walk": None if finetuning.walk is None else {"moves": finetuning.walk.moves, "every": finetuning.walk.every},
        "history": [epoch.to_json() for epoch in finetuning.history],
    }


def _mean_weight_bits(task: Task, allocation: BitAllocation) -> float:
    """Bits of a weight in the mean over all weights."""
    elements = {layer.name: layer.weight_elements for layer in task.workload}
    total = sum(elements[name] * precision.weight_bits for name, precision in allocation.items())
    return total / sum(elements.values())


def show_finetuned(
    output: Output, task: Task, finetuning: Finetuning, document: dict[str, Any], written: list[Path]
) -> None:
    """Print what a training ended with.

    Args:
        output: Where it is printed.
        task: The task.
        finetuning: The training.
        document: Its `finetuned_document`.
        written: The files that it left.
    """
    table = table_of(f"{task.network}, {number(document['mean_weight_bits'])} bits a weight in the mean")
    table.add_column("")
    for split in SPLITS:
        table.add_column(f"{split} accuracy", justify="right")
    names = {"float": "float", "before": "post-training", "after": "fine-tuned"}
    for name, title in names.items():
        cells = [percent(document[name][split]["accuracy"]) for split in SPLITS]
        table.add_row(title, *cells, style="bold" if name == "after" else None)
    ended = "; stopped early" if finetuning.stopped_early else ""
    best = finetuning.best
    output.show(table)
    if document["costs"]:
        output.show(relative_table(document["costs"], document["relative_costs"]))
    output.show(
        f"best: epoch {best.epoch} of {document['epochs']}, {percent(best.validation.accuracy)} on the validation "
        f"split ({finetuning.seconds:.0f} s of training{ended}).",
        *(f"wrote {path}" for path in written),
    )
    output.document({**document, "files": [str(path) for path in written]})
