"""What can be said of a claimed run without making it again: the tables know accuracy, cost and feasibility."""

from __future__ import annotations

from collections.abc import Iterator
from math import isclose

import numpy as np

from amed_env.bench.result_file import Improvement, Run
from amed_env.bench.running import relative_costs
from amed_env.bench.suites import cell_task
from amed_env.errors import AllocationError, AmedError
from amed_env.problem.allocation import BitAllocation
from amed_env.tasks.task import Task

_TOLERANCE = 1e-9  # relative, of costs: sums of floats depend on their order


def run_problems(run: Run, evaluations: int) -> Iterator[str]:
    """What does not hold of a run.

    Args:
        run: A run in a cell that there is.
        evaluations: Distinct evaluations that it had.
    """
    if run.evaluations > evaluations:
        yield f"it took {run.evaluations} evaluations, {evaluations} are allowed."
    task = cell_task(run.cell)
    before: Improvement | None = None
    for position, claim in enumerate(run.improvements, 1):
        try:
            for problem in _claim_problems(task, claim, before, run.evaluations):
                yield f"improvement {position}: {problem}"
        except AmedError as error:
            yield f"improvement {position}: it cannot be measured: {error}"
        before = claim


def _claim_problems(task: Task, claim: Improvement, before: Improvement | None, evaluations: int) -> Iterator[str]:
    if claim.evaluation > evaluations:
        yield f"evaluation {claim.evaluation} is after the last one, {evaluations}."
    if before is not None and claim.evaluation <= before.evaluation:
        yield f"evaluation {claim.evaluation} does not come after {before.evaluation}."
    if before is not None and (claim.correct, -claim.loss) <= (before.correct, -before.loss):
        yield "it is no better than the one before."
    allocation = _allocation(task, claim.choices)
    if claim.allocation is not None and claim.allocation != allocation.to_json()["layers"]:
        yield "its allocation is not that of its choices."
    quality = task.quality(allocation)
    true = {"correct": quality.correct, "loss": quality.loss, "accuracy": 100.0 * quality.accuracy}
    for name, measured in true.items():
        claimed = getattr(claim, name)
        if claimed != measured:
            yield f"{name} is claimed to be {claimed}, measured {measured}."
    costs = task.total_costs(allocation)
    relative = relative_costs(task, costs)
    if set(claim.relative_costs) != set(relative):
        yield f"costs are given for {', '.join(claim.relative_costs)}, expected {', '.join(relative)}."
    for name, value in relative.items():
        if name in claim.relative_costs and not isclose(claim.relative_costs[name], value, rel_tol=_TOLERANCE):
            yield f"{name} is claimed to be {claim.relative_costs[name]} of 8 bit, measured {value}."
    if not task.feasible(costs):
        used = ", ".join(f"{name}={value:.6g}" for name, value in relative.items())
        yield f"it is not feasible: {used} exceeds {', '.join(map(str, task.budgets))}."


def _allocation(task: Task, choices: str) -> BitAllocation:
    """The allocation of choices.

    Raises:
        AllocationError: If they are none of the task's.
    """
    layers, precisions = len(task.workload), len(task.precisions)
    if len(choices) != layers:
        raise AllocationError(f"{len(choices)} choices are given for {layers} layers.")
    numbers = [int(choice) for choice in choices]
    if max(numbers) >= precisions:
        raise AllocationError(f"choice {max(numbers)} is none of the {precisions} precisions.")
    barred = np.flatnonzero(~task.choosable[np.arange(layers), numbers])
    if barred.size:
        layer = int(barred[0])
        raise AllocationError(f"layer {task.workload.layer_names[layer]!r} may not have choice {numbers[layer]}.")
    return task.allocation(numbers)
