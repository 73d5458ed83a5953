"""Progress of preparations, searches and trainings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from amed_env.commands.output import Output
from amed_env.commands.tables import percent

if TYPE_CHECKING:
    from amed_env.agents.session import SearchSession
    from amed_env.problem.allocation import Precision
    from amed_env.tasks.task import Task
    from amed_env.training.finetuning import Finetuning

_NOTE_SECONDS = 60.0


def progress_bars(console: Console, shown: bool, *more: ProgressColumn) -> Progress:
    """What is done, how much of it, and the time that it took and is left, with more columns before the times.

    Args:
        console: Where it is drawn.
        shown: Whether it is drawn at all.
        more: Columns of one's own.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        *more,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not shown,
        expand=True,
        refresh_per_second=4,
    )


class SearchProgress:
    """Evaluations, time, speed and the best feasible score so far, as a context manager.

    Args:
        console: Where it is drawn.
        shown: Whether it is drawn at all.
        evaluations: Evaluations that the search has.
    """

    def __init__(self, console: Console, shown: bool, evaluations: int) -> None:
        self._bars = progress_bars(
            console, shown, TextColumn("{task.fields[speed]}"), TextColumn("{task.fields[best]}")
        )
        self._task = self._bars.add_task("searching", total=evaluations, speed="", best="")

    def __enter__(self) -> SearchProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, session: SearchSession) -> None:
        """Take over where a session is."""
        best = session.best()
        speed = self._bars.tasks[0].speed
        self._bars.update(
            self._task,
            completed=session.evaluations,
            description=session.note or "searching",
            speed="" if not speed else f"{speed:.1f}/s",
            best="" if best is None else f"best {session.task.score.text(best.quality.score)}",
        )

    def say(self, description: str) -> None:
        """Show another description until the next update."""
        self._bars.update(self._task, description=description)


class TrainingProgress:
    """The progress of a training, as a context manager: a bar on a terminal, and a line for every epoch.

    Args:
        output: Where it is drawn.
        finetuning: The training.
    """

    def __init__(self, output: Output, finetuning: Finetuning) -> None:
        self._output, self._finetuning = output, finetuning
        self._shown = len(finetuning.history)
        self._bars = progress_bars(output.stderr, output.live, TextColumn("{task.fields[figures]}"))
        self._task = self._bars.add_task("training", total=finetuning.trainer.steps, figures="")

    def __enter__(self) -> TrainingProgress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def update(self) -> None:
        """Take over where the training is."""
        finetuning, trainer = self._finetuning, self._finetuning.trainer
        figures = f"loss {trainer.progress.mean_loss:.4f}" if trainer.progress.samples else ""
        if finetuning.history:
            figures += f"  validation {percent(finetuning.history[-1].validation.accuracy)}"
        self._bars.update(
            self._task,
            completed=trainer.step,
            description="training",
            figures=figures,
        )
        for epoch in finetuning.history[self._shown :]:
            trained = "" if epoch.training_loss is None else f"training loss {epoch.training_loss:.4f}, "
            validated = f"validation {percent(epoch.validation.accuracy)} (loss {epoch.validation.loss:.4f})"
            self._output.note(
                f"epoch {epoch.epoch} of {finetuning.settings.epochs}: {trained}{validated}, {epoch.seconds:.0f} s"
            )
        self._shown = len(finetuning.history)


def prepare(
    task: Task,
    output: Output,
    say: Callable[[str], None],
    seconds: float | None,
    precisions: Iterable[Precision] | None = None,
) -> None:
    """Prepare the network by its recipe, or take what was prepared before.

    It may take many minutes, so without a terminal a line every minute says how far it is.

    Args:
        task: The task.
        output: Where that line is written, and whether there was no time for the whole recipe.
        say: Shows a text while it is prepared.
        seconds: Time for learning; None for all steps of the recipe.
        precisions: What will be evaluated; None is what the task chooses from.
    """
    started, first, noted = monotonic(), -1, -_NOTE_SECONDS

    def report(done: int, total: int) -> None:
        nonlocal first, noted
        if first < 0:  # learning that goes on from a checkpoint does not begin at zero
            first = done - 1
        passed = monotonic() - started
        left = passed / (done - first) * (total - done)
        text = f"learning the rounding of {task.network}, once: {100 * done // total} %, {left:.0f} s left"
        say(text)
        if not output.live and not output.as_json and passed - noted >= _NOTE_SECONDS:
            output.note(text)
            noted = passed

    before = getattr(task.evaluator, "recipe", None)
    task.evaluator.prepare(report, seconds, task.precisions if precisions is None else precisions)
    after = getattr(task.evaluator, "recipe", None)
    if before is not None and after is not None and after != before:
        output.note(
            f"rounding learned in {after.steps:,} of {before.steps:,} steps; a longer --prepare-time makes narrow "
            "widths better."
        )
