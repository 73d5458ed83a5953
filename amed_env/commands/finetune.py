"""`amed finetune`: quantization-aware training of a task's network for an allocation, or along AMED's walk."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import TextColumn

from amed_env.commands.interrupts import Interrupts
from amed_env.commands.output import Output, describe_disk_error, is_disk_error
from amed_env.commands.parsing import (
    check_complete,
    chosen_allocation,
    default_threads,
    load_task,
    parse_bits,
    parse_options,
)
from amed_env.commands.preparing import prepare
from amed_env.commands.progress import progress_bars
from amed_env.commands.run_folder import RunFolder
from amed_env.commands.tables import number, percent, relative_table, table_of
from amed_env.datasets.training import TrainingData
from amed_env.errors import AllocationError, AmedError, DataError, InputError, UnsupportedPrecisionError
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.evaluation.quality import SPLITS
from amed_env.hardware import load_device
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.objective import BUDGET_METRICS, REFERENCE_BITS
from amed_env.problem.pins import pins_json
from amed_env.support.files import json_text, write_atomically
from amed_env.support.threads import torch_threads
from amed_env.tasks.catalogue import TASKS, named_network
from amed_env.tasks.task import Task
from amed_env.training.checkpoint import write_trained
from amed_env.training.curve import CurveLog
from amed_env.training.finetuning import Finetuning
from amed_env.training.settings import TrainingSettings
from amed_env.training.walk import TrainingWalk

RESULT_FORMAT = "amed-finetuned/1"
KIND = "training"


@dataclass(frozen=True)
class FinetuneRequest:
    """The arguments of `amed finetune`, as they were given."""

    task: str
    out: Path
    settings: dict[str, Any]
    allocation: Path | None = None
    bits: str | None = None
    activation_bits: int | None = None
    pins: list[str] = field(default_factory=list)
    resume: bool = False
    device: str = "bitfusion"
    recipe: str | None = None
    threads: int | None = None
    compute: str | None = None
    walk: bool = False
    walk_epochs: int = 3
    walk_every: int = 20
    budgets: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)


def finetune(output: Output, request: FinetuneRequest) -> int:
    """Train, and write the folder.

    Returns:
        The exit code: 0, or 128 + the signal that ended it.
    """
    settings = TrainingSettings.of(request.settings)
    _check_choice(request, settings)
    options = parse_options(request.options)
    backend = load_device(request.device)
    training_data = _training_data(request.task)
    try:
        with RunFolder(request.out, resume=request.resume, kind=KIND) as folder, Interrupts() as interrupts:
            with output.status(f"preparing {request.task}") as say:
                task = load_task(
                    request.task,
                    None,
                    device=backend,
                    bits=None if request.bits is None or not request.walk else parse_bits(request.bits),
                    activation_bits=request.activation_bits if request.walk else None,
                    budget=request.budgets,
                    pin=request.pins if request.walk else None,
                    threads=request.threads or default_threads(),
                    recipe=request.recipe,
                    evaluation_device=request.compute or _default_compute(),
                )
                if request.walk:
                    prepare(task, say)
                target = _target(request, task, settings, options)
                prepare(task, say)
                say("reading the training set")
                data = training_data()
            with torch_threads(task.evaluator.threads):  # type: ignore[attr-defined]
                folder.record(_settings(request, task, settings, target, options), sys.argv)
                return _run(output, request, folder.path, task, data, settings, target, interrupts)
    except OSError as error:
        if not is_disk_error(error):
            raise
        raise AmedError(
            f"{describe_disk_error(error)}. What was trained up to the last checkpoint is kept in {request.out}; "
            "continue with --resume."
        ) from error


def _check_choice(request: FinetuneRequest, settings: TrainingSettings) -> None:
    """Check that an allocation or a walk is asked for, and not both.

    Raises:
        InputError: If not.
    """
    if request.walk and request.allocation is not None:
        raise InputError("--walk finds the allocation itself; leave --allocation out.")
    if request.walk and request.walk_epochs >= settings.epochs:
        raise InputError(
            f"a walk of {request.walk_epochs} epochs leaves none of {settings.epochs} for what it chooses; give more "
            "epochs, or fewer with --walk-epochs."
        )
    if not request.walk and (request.budgets or request.options):
        raise InputError("--budget and --option belong to --walk; an allocation costs what it costs.")


def _training_data(task: str) -> Any:
    """What loads the training set of a task.

    Raises:
        UnknownNameError: If there is no such task.
        DataError: If files are missing, or there is no training set.
    """
    entry = named_network(task)
    if entry.table is not None:
        raise DataError(f"task {task!r} is a table of accuracies; fine-tune the task of the network itself.")
    if entry.training is None:
        raise DataError(
            f"task {task!r} has no training set: its samples all serve calibration, search and test. Tasks that have "
            f"one: {', '.join(filter(_can_be_trained, TASKS.names()))}."
        )
    check_complete(task)
    return entry.training


def _can_be_trained(task: str) -> bool:
    try:
        return named_network(task).training is not None
    except AmedError:  # a broken plug-in is no matter here
        return False


def _default_compute() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _target(
    request: FinetuneRequest, task: Task, settings: TrainingSettings, options: dict[str, Any]
) -> BitAllocation | TrainingWalk:
    if request.walk:
        if not task.budgets:
            raise InputError("--walk needs a --budget, for example latency=0.5; without one it would stay at 8 bits.")
        return TrainingWalk(task, request.walk_epochs, request.walk_every, settings.seed, options)
    if request.bits is not None and not request.bits.isdecimal():
        raise AllocationError(f"--bits {request.bits!r}: give one width, for example 3; a list belongs to --walk.")
    bits = None if request.bits is None else int(request.bits)
    return chosen_allocation(task.workload, request.allocation, bits, request.activation_bits, request.pins)


def _settings(
    request: FinetuneRequest,
    task: Task,
    settings: TrainingSettings,
    target: BitAllocation | TrainingWalk,
    options: dict[str, Any],
) -> dict[str, Any]:
    """What determines the training, resolved; see `RunFolder.record`."""
    chosen: dict[str, Any]
    if isinstance(target, BitAllocation):
        chosen = {"allocation": target.key()}
    else:
        chosen = {
            "walk": {"epochs": target.epochs, "every": target.every, "options": options},
            "bits": list(task.free_bits),
            "activation_bits": task.activation_bits,
            "pins": pins_json(target.task.pins),
            "budgets": {b.name: {"value": b.value, "relative": b.relative} for b in task.budgets},
            "device": task.device,
        }
    return {
        "command": "finetune",
        "network": request.task,
        **chosen,
        **settings.model_dump(),
        "fingerprint": task.evaluator.fingerprint,
    }


def _run(
    output: Output,
    request: FinetuneRequest,
    folder: Path,
    task: Task,
    data: TrainingData,
    settings: TrainingSettings,
    target: BitAllocation | TrainingWalk,
    interrupts: Interrupts,
) -> int:
    evaluator = task.evaluator
    assert isinstance(evaluator, PostTrainingEvaluator)
    finetuning = Finetuning(evaluator, data, target, settings, folder)
    trainer = finetuning.trainer
    if trainer.step:
        output.note(f"continuing after step {trainer.step} of {trainer.steps}.")
    try:
        with CurveLog(folder, trainer.step) as curve, _Bar(output, finetuning) as bar:

            def on_change(_: Finetuning) -> None:
                curve.update(finetuning)
                bar.update()
                interrupts.check()

            finetuning.run(on_change, interrupts.held)
        with output.status("evaluating on the search and the test split"):
            document = _document(request, task, finetuning)
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


class _Bar:
    """The progress of a training: a bar on a terminal, a line an epoch elsewhere."""

    def __init__(self, output: Output, finetuning: Finetuning) -> None:
        self._output, self._finetuning = output, finetuning
        self._shown = len(finetuning.history)
        self._bars = progress_bars(output.stderr, output.live, TextColumn("{task.fields[figures]}"))
        self._task = self._bars.add_task("training", total=finetuning.trainer.steps, figures="")

    def __enter__(self) -> _Bar:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def update(self) -> None:
        """Show where training is."""
        finetuning, trainer = self._finetuning, self._finetuning.trainer
        figures = f"loss {trainer.progress.mean_loss:.4f}" if trainer.progress.samples else ""
        if finetuning.history:
            figures += f"  validation {percent(finetuning.history[-1].validation.accuracy)}"
        self._bars.update(
            self._task,
            completed=trainer.step,
            description="walking" if finetuning.walking else "training",
            figures=figures,
        )
        for epoch in finetuning.history[self._shown :]:
            trained = "" if epoch.training_loss is None else f"training loss {epoch.training_loss:.4f}, "
            validated = f"validation {percent(epoch.validation.accuracy)} (loss {epoch.validation.loss:.4f})"
            self._output.note(
                f"epoch {epoch.epoch} of {finetuning.settings.epochs}: {trained}{validated}, {epoch.seconds:.0f} s"
            )
        self._shown = len(finetuning.history)


def _document(request: FinetuneRequest, task: Task, finetuning: Finetuning) -> dict[str, Any]:
    allocation = finetuning.allocation
    costs, relative = _costs(task, allocation)
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


def _costs(task: Task, allocation: BitAllocation) -> tuple[dict[str, float], dict[str, float]]:
    """Costs on the task's device and their factors of uniform 8 bit; nothing where the device lacks a width."""
    try:
        costs = dict(task.cost(allocation).metrics)
        reference = dict(task.cost(task.workload.uniform(REFERENCE_BITS)).metrics)
    except UnsupportedPrecisionError:
        return {}, {}
    names = {name: metric for name, metric in BUDGET_METRICS.items() if metric in costs and reference.get(metric)}
    return costs, {name: costs[metric] / reference[metric] for name, metric in names.items()}


def _show(output: Output, task: Task, finetuning: Finetuning, document: dict[str, Any], written: list[Path]) -> None:
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
