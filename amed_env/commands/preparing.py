"""What a network's evaluator does before the first evaluations, and takes its time for: shown while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from amed_env.commands.output import Output
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.tasks.task import Task


def prepare(task: Task, say: Callable[[str], None]) -> None:
    """Prepare the network by its recipe, or take what was prepared before.

    Args:
        task: The task.
        say: Shows a text.
    """
    if not isinstance(task.evaluator, PostTrainingEvaluator):
        return
    started, first = monotonic(), -1

    def report(done: int, total: int) -> None:
        nonlocal first
        if first < 0:  # learning that goes on from a checkpoint does not begin at zero
            first = done - 1
        left = (monotonic() - started) / (done - first) * (total - done)
        say(f"learning the rounding of {task.network}, once: {100 * done // total} %, {left:.0f} s left")

    task.evaluator.prepare(report)


def note_slow_layers(output: Output, task: Task) -> None:
    """Say which layers are computed in float although their widths are integers."""
    if not isinstance(task.evaluator, PostTrainingEvaluator):
        return
    if task.evaluator.network.why_float is not None:
        output.note(f"evaluated in float: {task.evaluator.network.why_float}")
        return
    for name, reason in task.evaluator.in_float.items():
        output.note(f"layer {name} is evaluated in float: {reason}")


@contextmanager
def told_of_sensitivities(task: Task, report: Callable[[int, int], None]) -> Iterator[None]:
    """A block in which an agent may have sensitivities measured.

    Args:
        task: The task.
        report: Called with what is measured and how much there is.
    """
    if not isinstance(task.evaluator, PostTrainingEvaluator):
        yield
        return
    task.evaluator.on_sensitivities = report
    try:
        yield
    finally:
        task.evaluator.on_sensitivities = None
