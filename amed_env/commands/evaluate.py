"""`amed evaluate`: quality of a network under an allocation, and its cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from amed_env.commands.options import (
    PREPARE_SECONDS,
    PROBLEM,
    ActivationBitsOption,
    AllocationOption,
    Bias,
    BiasOption,
    BitsOption,
    DeviceOption,
    JsonOption,
    MetricOption,
    NetworkOption,
    OptionalTaskArgument,
    PinOption,
    PrepareTimeOption,
    RecipeOption,
    ScoreOption,
    ThreadsOption,
    cli_option,
)
from amed_env.commands.output import Output
from amed_env.commands.parsing import chosen_allocation, default_threads, load_task
from amed_env.commands.tables import quality_table, relative_table
from amed_env.errors import InputError
from amed_env.tasks.make import DEFAULT_DEVICE

if TYPE_CHECKING:
    from amed_env.evaluation.quality import Quality
    from amed_env.problem.allocation import BitAllocation
    from amed_env.tasks.task import Task


class EvaluatedSplit(StrEnum):
    """Samples that a network is evaluated on."""

    SEARCH = "search"
    TEST = "test"
    ALL = "all"


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What `amed evaluate` is asked for."""

    task: OptionalTaskArgument = None
    network: NetworkOption = None
    allocation: AllocationOption = None
    bits: BitsOption = None
    activation_bits: ActivationBitsOption = None
    pin: PinOption = field(default_factory=list)
    finetuned: Annotated[
        Path | None,
        cli_option(
            PROBLEM, "What [b]amed finetune[/b] trained there, at its allocation.", "--finetuned", metavar="DIR"
        ),
    ] = None
    recipe: RecipeOption = None
    prepare_time: PrepareTimeOption = PREPARE_SECONDS
    bias: BiasOption = Bias.FLOAT
    score: ScoreOption = None
    metric: MetricOption = field(default_factory=list)
    split: Annotated[
        EvaluatedSplit, cli_option(PROBLEM, "Samples to use; [b]all[/b] is search and test together.", "--split")
    ] = EvaluatedSplit.SEARCH
    device: DeviceOption = DEFAULT_DEVICE
    as_json: JsonOption = False
    threads: ThreadsOption = None


def evaluate(options: EvaluateOptions) -> None:
    """Measure score and metrics of a network under an allocation, and its cost where the device has those widths.

    [b]Examples:[/b]

    amed evaluate digits-cnn --allocation runs/digits/allocation.json --split test

    amed evaluate digits-cnn --bits 4 --activation-bits 32 --split all     (weights only)
    """
    with Output(options.as_json) as output:
        with output.status("starting"):
            from amed_env.commands.costs import costs_of, relative_costs
            from amed_env.commands.progress import prepare
            from amed_env.hardware import load_device

        split = options.split.value
        backend = load_device(options.device)
        with output.status(f"preparing {options.task or options.network}") as say:
            # The task's own device does not matter here: the one that was asked for may lack widths of the task.
            threads = options.threads or default_threads()
            task = load_task(
                options.task,
                options.network,
                threads=threads,
                recipe=options.recipe,
                bias=options.bias.value,
                score=options.score,
                metrics=options.metric or None,
            )
            if options.finetuned is None:
                chosen = chosen_allocation(
                    task.workload, options.allocation, options.bits, options.activation_bits, options.pin
                )
            if options.finetuned is not None:
                prepare(task, output, say, options.prepare_time)
                chosen = _trained(task, options)
            else:
                prepare(task, output, say, options.prepare_time, chosen.values())
        with output.status(f"evaluating {task.network} on the {split} split"):
            quality = _quality(task, chosen, split)
        costs, missing = costs_of(backend, task.workload, chosen)
        relative = relative_costs(backend, task.workload, costs)
        output.show(quality_table({f"{task.network}, {split}": quality}, task.evaluator.metrics))
        if missing is None:
            output.show(relative_table(costs, relative))
        else:
            output.note(f"no costs: {missing}")
        output.document(
            {
                "network": task.network,
                "split": split,
                **quality.to_json(),
                "device": backend.name,
                "costs": costs or None,
                "relative_costs": relative or None,
                "costs_missing": missing,
                "allocation": chosen.to_json(task.network),
            }
        )


def _trained(task: Task, options: EvaluateOptions) -> BitAllocation:
    """The allocation of a folder of `amed finetune`, whose weights the task's evaluator uses from now on.

    Raises:
        InputError: If another allocation is given, the task is a table, or the folder does not fit it.
    """
    from amed_env.training.checkpoint import use_trained

    assert options.finetuned is not None
    if any((options.allocation, options.bits, options.activation_bits, options.pin)):
        raise InputError("--finetuned brings its own allocation; leave --allocation, --bits and --pin out.")
    return use_trained(options.finetuned, task.evaluator.network_evaluator())


def _quality(task: Task, allocation: BitAllocation, split: str) -> Quality:
    from amed_env.evaluation.quality import SPLITS

    wanted = [known for known in SPLITS if split in (known, "all")]
    first, *others = (task.quality(allocation, known) for known in wanted)
    for other in others:
        first = first + other
    return first
