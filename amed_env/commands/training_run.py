"""A training from its first step to what it ends with: as a document, as tables, and as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amed_env.agents import Agent
from amed_env.commands.costs import costs_of, relative_costs
from amed_env.commands.interrupts import Interrupts
from amed_env.commands.output import Output
from amed_env.commands.progress import TrainingProgress
from amed_env.commands.tables import MISSING, number, percent, relative_table, table_of
from amed_env.commands.training_walk import walk
from amed_env.problem.allocation import BitAllocation
from amed_env.support.files import json_text, write_atomically
from amed_env.tasks.task import Task
from amed_env.training.checkpoint import write_trained
from amed_env.training.curve import CurveLog
from amed_env.training.finetuning import Finetuning
from amed_env.training.in_training import InTrainingEvaluator
from amed_env.training.settings import TrainingSettings

RESULT_FORMAT = "amed-finetuned/1"


@dataclass(frozen=True)
class Walk:
    """That the allocation is searched first, while the network is trained.

    Attributes:
        epochs: First epochs, in which it walks.
        agent: `amed`, with its options.
    """

    epochs: int
    agent: Agent


def run_training(
    output: Output,
    folder: Path,
    task: Task,
    settings: TrainingSettings,
    target: BitAllocation | Walk,
    interrupts: Interrupts,
) -> int:
    """Train, and write what a folder has in the end.

    Args:
        output: Where progress and results are shown.
        folder: The folder.
        task: The task of the network.
        settings: Numbers of the training.
        target: The allocation, or the walk that finds it.
        interrupts: Ends the training in good order.

    Returns:
        The exit code: 0, or 128 + the signal that ended it.
    """
    evaluator = task.evaluator.network_evaluator()
    walked, start = None, None
    if isinstance(target, Walk):
        settings = settings.model_copy(update={"epochs": settings.epochs - target.epochs})
        try:
            target, walked = walk(output, task, target.agent, target.epochs, settings.seed, interrupts)
        except KeyboardInterrupt:
            output.note(f"interrupted during the walk; continue with --resume. What was done is in {folder}.")
            return interrupts.exit_code or 130
        assert isinstance(task.evaluator, InTrainingEvaluator)
        start = task.evaluator.trained
    finetuning = Finetuning(evaluator, evaluator.training_data, target, settings, folder, start)
    trainer = finetuning.trainer
    if trainer.step:
        output.note(f"continuing after step {trainer.step} of {trainer.steps}.")
    try:
        with CurveLog(folder, trainer.step) as curve, TrainingProgress(output, finetuning) as bar:

            def on_change(_: object) -> None:
                curve.update(finetuning)
                bar.update()
                interrupts.check()

            finetuning.run(on_change, interrupts.held)
        with output.status("evaluating on the search and the test split"):
            document = _document(task, finetuning, walked)
    except KeyboardInterrupt:
        output.note(
            f"interrupted after step {trainer.step} of {trainer.steps}; continue with --resume. The checkpoint is in "
            f"{folder}."
        )
        return interrupts.exit_code or 130
    with interrupts.held():
        written = write_trained(folder, evaluator, finetuning.allocation)
        write_atomically(folder / "result.json", json_text(document))
        written.append(folder / "result.json")
    _show(output, task, finetuning, document, written)
    return 0


def _document(task: Task, finetuning: Finetuning, walked: dict[str, int] | None) -> dict[str, Any]:
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
        "walk": walked,
        "history": [epoch.to_json() for epoch in finetuning.history],
    }


def _mean_weight_bits(task: Task, allocation: BitAllocation) -> float:
    """Bits of a weight in the mean over all weights."""
    stored = {layer.name: layer.stored_weights for layer in task.workload}
    total = sum(stored[name] * precision.weight_bits for name, precision in allocation.items())
    return total / max(1, sum(stored.values()))


def _show(output: Output, task: Task, finetuning: Finetuning, document: dict[str, Any], written: list[Path]) -> None:
    table = table_of(f"{task.network}, {number(document['mean_weight_bits'])} bits a weight in the mean")
    table.add_column("")
    splits = task.evaluator.splits
    for split in splits:
        table.add_column(f"{split} accuracy", justify="right")
    names = {"float": "float", "before": "post-training", "after": "fine-tuned"}
    for name, title in names.items():
        qualities = [document[name][split] for split in splits]
        cells = [percent(quality["accuracy"]) if "accuracy" in quality else MISSING for quality in qualities]
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
