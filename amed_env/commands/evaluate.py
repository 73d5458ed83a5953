"""`amed evaluate`: accuracy of a network under an allocation, and its cost."""

from __future__ import annotations

from pathlib import Path

from amed_env.commands.output import Output
from amed_env.commands.parsing import ChosenAllocation, chosen_allocation, default_threads, load_task
from amed_env.commands.preparing import prepare
from amed_env.commands.tables import quality_table, relative_table
from amed_env.errors import InputError, UnsupportedPrecisionError
from amed_env.evaluation.quality import SPLITS, Quality
from amed_env.hardware import HardwareBackend, evaluate_cost, load_device
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.objective import BUDGET_METRICS, REFERENCE_BITS
from amed_env.problem.workload import Workload
from amed_env.tasks.task import Task


def evaluate(
    output: Output,
    name: str | None,
    network: str | None,
    device: str,
    given: ChosenAllocation,
    split: str,
    threads: int | None,
    recipe: str | None = None,
    finetuned: Path | None = None,
) -> None:
    """Print quality and cost of a network; see `amed evaluate --help`."""
    if split not in (*SPLITS, "all"):
        raise InputError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}, all.")
    backend = load_device(device)
    with output.status(f"preparing {name or network}") as say:
        # The task's own device does not matter here: the one that was asked for may lack widths of the task.
        task = load_task(name, network, threads=threads or default_threads(), recipe=recipe)
        if finetuned is None:
            chosen = chosen_allocation(task.workload, *given)
        prepare(task, say)
        if finetuned is not None:
            chosen = _trained(task, finetuned, given)
    with output.status(f"evaluating {task.network} on the {split} split"):
        quality = _quality(task, chosen, split)
    costs, missing = _costs(backend, task.workload, chosen)
    relative = _relative(backend, task.workload, costs)
    output.show(quality_table({f"{task.network}, {split}": quality}))
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


def _trained(task: Task, folder: Path, given: ChosenAllocation) -> BitAllocation:
    """The allocation of a folder of `amed finetune`, whose weights the task's evaluator uses from now on.

    Raises:
        InputError: If another allocation is given, or the folder does not fit the task.
    """
    from amed_env.evaluation.post_training import PostTrainingEvaluator
    from amed_env.training.checkpoint import use_trained

    if any(given):
        raise InputError("--finetuned brings its own allocation; leave --allocation, --bits and --pin out.")
    if not isinstance(task.evaluator, PostTrainingEvaluator):
        raise InputError(f"task {task.network!r} is a table; --finetuned needs the task of the network itself.")
    return use_trained(folder, task.evaluator)


def _quality(task: Task, allocation: BitAllocation, split: str) -> Quality:
    wanted = [known for known in SPLITS if split in (known, "all")]
    first, *others = (task.quality(allocation, known) for known in wanted)
    for other in others:
        first = first + other
    return first


def _costs(
    backend: HardwareBackend, workload: Workload, allocation: BitAllocation
) -> tuple[dict[str, float], str | None]:
    """Costs by metric, or why the device has none."""
    try:
        return dict(evaluate_cost(backend, workload, allocation).metrics), None
    except UnsupportedPrecisionError as error:
        return {}, str(error)


def _relative(backend: HardwareBackend, workload: Workload, costs: dict[str, float]) -> dict[str, float]:
    reference, _ = _costs(backend, workload, workload.uniform(REFERENCE_BITS)) if costs else ({}, None)
    return {
        name: costs[metric] / reference[metric]
        for name, metric in BUDGET_METRICS.items()
        if metric in costs and reference.get(metric)
    }
