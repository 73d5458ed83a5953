"""`amed finetune`: quantization-aware training of a task's network for an allocation, or along AMED's walk."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from amed_env.commands.interrupts import Interrupts
from amed_env.commands.options import (
    MACHINE,
    OUTPUT,
    PREPARE_SECONDS,
    PROBLEM,
    ActivationBitsOption,
    AllocationOption,
    DeviceOption,
    JsonOption,
    NetworkOption,
    OptionalTaskArgument,
    PinOption,
    PrepareTimeOption,
    ThreadsOption,
    cli_option,
)
from amed_env.commands.output import Output, keeping_on_disk_errors
from amed_env.commands.parsing import (
    check_complete,
    check_task_or_network,
    chosen_allocation,
    default_threads,
    load_task,
    parse_bits,
    parse_options,
)
from amed_env.errors import AllocationError, AmedError, DataError, InputError
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.pins import pins_json
from amed_env.tasks.catalogue import TASKS, named_network
from amed_env.tasks.make import DEFAULT_DEVICE, task_of_parts
from amed_env.tasks.parts import imported_parts

if TYPE_CHECKING:
    from amed_env.commands.training_run import Walk
    from amed_env.tasks.task import Task
    from amed_env.training.in_training import InTraining
    from amed_env.training.settings import TrainingSettings

KIND = "training"
TRAINING, WALK = "Training", "Walk"


class Optimizer(StrEnum):
    """What makes the steps."""

    ADAM = "adam"
    SGD = "sgd"


class BatchNorm(StrEnum):
    """Whether convolutions are followed by a batch norm while they are trained."""

    FOLDED = "folded"
    INSERTED = "inserted"


DEFAULT_RATES = {Optimizer.ADAM: 0.01, Optimizer.SGD: 0.02}


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """What `amed finetune` is asked for; lists and limits are given as on the command line."""

    task: OptionalTaskArgument = None
    network: NetworkOption = None
    allocation: AllocationOption = None
    bits: Annotated[
        str | None,
        cli_option(
            PROBLEM, "The same width everywhere; with --walk the widths to choose from.", "--bits", metavar="N|LIST"
        ),
    ] = None
    activation_bits: ActivationBitsOption = None
    pin: PinOption = field(default_factory=list)
    recipe: Annotated[
        str | None,
        cli_option(PROBLEM, "Where training starts; as in [b]amed evaluate[/b].", "--recipe", metavar="NAME"),
    ] = None
    prepare_time: PrepareTimeOption = PREPARE_SECONDS
    epochs: Annotated[
        int,
        cli_option(TRAINING, "Passes over the training images, the walk among them.", "--epochs", min=1, metavar="N"),
    ] = 10
    batch_size: Annotated[int, cli_option(TRAINING, "Images of a step.", "--batch-size", min=1, metavar="N")] = 128
    learning_rate: Annotated[
        float | None,
        cli_option(
            TRAINING,
            "At the start; it falls along a cosine. With adam a part of a tensor's own size (0.01 by default), "
            "with sgd absolute (0.02).",
            "--learning-rate",
            metavar="RATE",
        ),
    ] = None
    optimizer: Annotated[Optimizer, cli_option(TRAINING, "What makes the steps.", "--optimizer")] = Optimizer.ADAM
    weight_decay: Annotated[float, cli_option(TRAINING, "Of the weights.", "--weight-decay", metavar="RATE")] = 1e-4
    distill: Annotated[
        float,
        cli_option(
            TRAINING,
            "Part of the loss that compares class probabilities with the float network's.",
            "--distill",
            min=0.0,
            max=1.0,
            metavar="PART",
        ),
    ] = 0.0
    temperature: Annotated[
        float, cli_option(TRAINING, "What these probabilities are softened by.", "--temperature", metavar="T")
    ] = 2.0
    per_tensor: Annotated[
        bool,
        cli_option(TRAINING, "One step size for all weights of a layer, not one an output channel.", "--per-tensor"),
    ] = False
    batch_norm: Annotated[
        BatchNorm,
        cli_option(
            TRAINING,
            "Train the weights with batch norms folded, or follow convolutions with a new one meanwhile.",
            "--batch-norm",
        ),
    ] = BatchNorm.FOLDED
    patience: Annotated[
        int | None,
        cli_option(TRAINING, "Stop after N epochs without a better validation.", "--patience", min=1, metavar="N"),
    ] = None
    seed: Annotated[int, cli_option(TRAINING, "Random seed.", "--seed", "-s", min=0, max=2**31 - 1, metavar="S")] = 0
    walk: Annotated[
        bool, cli_option(WALK, "Let AMED's walk choose the allocation while the network is trained.", "--walk")
    ] = False
    budget: Annotated[
        list[str],
        cli_option(WALK, "With --walk: a limit, as in [b]amed search[/b].", "--budget", "-b", metavar="NAME=VALUE"),
    ] = field(default_factory=list)
    option: Annotated[
        list[str],
        cli_option(WALK, "With --walk: an option of the agent amed (pin_ends=true).", "--option", metavar="KEY=VALUE"),
    ] = field(default_factory=list)
    walk_epochs: Annotated[
        int, cli_option(WALK, "First epochs, in which it walks.", "--walk-epochs", min=1, metavar="N")
    ] = 3
    walk_every: Annotated[
        int, cli_option(WALK, "Steps of training before an allocation is scored.", "--walk-every", min=1, metavar="N")
    ] = 20
    device: DeviceOption = DEFAULT_DEVICE
    out: Annotated[Path, cli_option(OUTPUT, "Folder for everything that is trained.", "--out", "-o", metavar="DIR")]
    resume: Annotated[bool, cli_option(OUTPUT, "Continue the training in --out.", "--resume")] = False
    as_json: JsonOption = False
    compute: Annotated[
        str | None,
        cli_option(MACHINE, "Where torch computes: cpu, or cuda where there is one.", "--compute", metavar="DEVICE"),
    ] = None
    threads: ThreadsOption = None


def finetune(options: FinetuneOptions) -> int:
    """Train a network for an allocation (quantization-aware, learned step sizes), from its post-training state on.

    A network of your own brings its training samples: its function also returns training=(inputs, labels).
    It trains on the training set alone, and keeps the epoch that is best on a part of it that is held out.

    Ctrl-C keeps a checkpoint; --resume continues it, whatever stopped the training.

    [b]Examples:[/b]

    amed finetune digits-cnn --allocation runs/digits/allocation.json --epochs 20 --out runs/tuned

    amed finetune cifar10-resnet20 --bits 3 --pin first=8 --pin last=8 --distill 0.5 --out runs/three

    amed finetune --network my_package.nets:make --bits 4 --out runs/mine

    amed finetune digits-cnn --walk --budget latency=0.4 --epochs 30 --walk-epochs 15 --walk-every 3 --out runs/walk
    """
    with Output(options.as_json) as output:
        with output.status("starting"):
            from amed_env.commands.progress import prepare
            from amed_env.commands.run_folder import RunFolder
            from amed_env.commands.training_run import run_training
            from amed_env.hardware import load_device
            from amed_env.support.threads import torch_threads

        settings = _training_settings(options)
        _check_choice(options)
        walk_options = parse_options(options.option)
        walk = _walk(options, walk_options) if options.walk else None
        backend = load_device(options.device)
        check_task_or_network(options.task, options.network)
        named = options.task or options.network or ""
        parts = None if options.network is None else imported_parts(options.network)
        if options.task is not None:
            _check_training(options.task)
        with (
            keeping_on_disk_errors(f"What was trained up to the last checkpoint is kept in {options.out}"),
            RunFolder(options.out, resume=options.resume, kind=KIND) as folder,
            Interrupts() as interrupts,
        ):
            with output.status(f"preparing {named}") as say:
                task = (partial(load_task, options.task, None) if parts is None else partial(task_of_parts, parts))(
                    device=backend,
                    bits=None if options.bits is None or not options.walk else parse_bits(options.bits),
                    activation_bits=options.activation_bits if options.walk else None,
                    budget=options.budget,
                    pin=options.pin if options.walk else None,
                    threads=options.threads or default_threads(),
                    recipe=options.recipe,
                    evaluation_device=options.compute or _default_compute(),
                    evaluation=_in_training(options, settings) if options.walk else "post-training",
                )
                if options.walk and not task.budgets:
                    raise InputError(
                        "--walk needs a --budget, for example latency=0.5; without one it would stay at 8 bits."
                    )
                target = _allocation(options, task) if walk is None else walk
                chosen = target.values() if isinstance(target, BitAllocation) else None
                prepare(task, output, say, options.prepare_time, chosen)
            with torch_threads(task.evaluator.network_evaluator().threads):
                folder.record(_settings(options, task, settings, target, walk_options), sys.argv)
                return run_training(output, folder.path, task, settings, target, interrupts)


def _training_settings(options: FinetuneOptions) -> TrainingSettings:
    from amed_env.training.settings import TrainingSettings

    rate = DEFAULT_RATES[options.optimizer] if options.learning_rate is None else options.learning_rate
    return TrainingSettings.of(
        {
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "learning_rate": rate,
            "optimizer": options.optimizer.value,
            "weight_decay": options.weight_decay,
            "distill": options.distill,
            "temperature": options.temperature,
            "per_channel": not options.per_tensor,
            "batch_norm": options.batch_norm.value,
            "patience": options.patience,
            "seed": options.seed,
        }
    )


def _check_choice(options: FinetuneOptions) -> None:
    """Check that an allocation or a walk is asked for, and not both.

    Raises:
        InputError: If not.
    """
    if options.walk and options.allocation is not None:
        raise InputError("--walk finds the allocation itself; leave --allocation out.")
    if options.walk and options.walk_epochs >= options.epochs:
        raise InputError(
            f"a walk of {options.walk_epochs} epochs leaves none of {options.epochs} for what it chooses; give more "
            "epochs, or fewer with --walk-epochs."
        )
    if not options.walk and (options.budget or options.option):
        raise InputError("--budget and --option belong to --walk; an allocation costs what it costs.")


def _check_training(task: str) -> None:
    """Check that a task has a training set, before anything slow begins.

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


def _can_be_trained(task: str) -> bool:
    try:
        return named_network(task).training is not None
    except AmedError:  # a broken plug-in is no matter here
        return False


def _default_compute() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _in_training(options: FinetuneOptions, settings: TrainingSettings) -> InTraining:
    from amed_env.training.in_training import InTraining

    return InTraining(options.walk_every, settings, options.out)


def _walk(options: FinetuneOptions, walk_options: dict[str, Any]) -> Walk:
    from amed_env.agents import make_agent
    from amed_env.commands.training_run import Walk

    return Walk(options.walk_epochs, make_agent("amed", **walk_options))


def _allocation(options: FinetuneOptions, task: Task) -> BitAllocation:
    if options.bits is not None and not options.bits.isdecimal():
        raise AllocationError(f"--bits {options.bits!r}: give one width, for example 3; a list belongs to --walk.")
    bits = None if options.bits is None else int(options.bits)
    return chosen_allocation(task.workload, options.allocation, bits, options.activation_bits, options.pin)


def _settings(
    options: FinetuneOptions,
    task: Task,
    settings: TrainingSettings,
    target: BitAllocation | Walk,
    walk_options: dict[str, Any],
) -> dict[str, Any]:
    """What determines the training, resolved; see `RunFolder.record`."""
    chosen: dict[str, Any]
    if isinstance(target, BitAllocation):
        chosen = {"allocation": target.key()}
    else:
        chosen = {
            "walk": {"epochs": options.walk_epochs, "every": options.walk_every, "options": walk_options},
            "bits": list(task.free_bits),
            "activation_bits": task.activation_bits,
            "pins": pins_json(task.pins),
            "budgets": {b.name: {"value": b.value, "relative": b.relative} for b in task.budgets},
            "device": task.device,
        }
    return {
        "command": "finetune",
        "network": options.task or options.network,
        **chosen,
        **settings.model_dump(),
        "fingerprint": task.evaluator.fingerprint,
    }
