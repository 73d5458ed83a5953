"""Progress lines."""

from __future__ import annotations

from types import TracebackType

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

from amed_env.agents.session import SearchSession, best_trial
from amed_env.evaluation.store import Trial


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
    """Evaluations, time, speed and the best feasible accuracy so far, as a context manager.

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
        self._best: Trial | None = None
        self._seen = 0

    def __enter__(self) -> SearchProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, session: SearchSession) -> None:
        """Take over what is new in a session."""
        new = [trial for trial in session.trials[self._seen :] if session.task.feasible(trial.costs)]
        self._seen = len(session.trials)
        if new:
            self._best = best_trial(new if self._best is None else [self._best, *new])
        speed = self._bars.tasks[0].speed
        self._bars.update(
            self._task,
            completed=session.evaluations,
            description=session.note or "searching",
            speed="" if not speed else f"{speed:.1f}/s",
            best="" if self._best is None else f"best {100 * self._best.quality.accuracy:.2f} %",
        )

    def say(self, description: str) -> None:
        """Show another description until the next update."""
        self._bars.update(self._task, description=description)
