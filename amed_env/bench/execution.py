"""Runs side by side: in this process, or in several; what comes out is the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from amed_env.bench.contender import Contender
from amed_env.bench.result_file import Run
from amed_env.bench.running import failed_run, run_once
from amed_env.bench.suites import Cell
from amed_env.errors import WorkerDiedError
from amed_env.support.processes import ProcessPool

PROCESS_DIED = "the process of this run ended unexpectedly"
"""Note of a run that ended its process."""


@dataclass(frozen=True)
class Job:
    """A run that is to be made; see `run_once`."""

    contender: Contender
    cell: Cell
    seed: int
    evaluations: int


def run_all(jobs: Iterable[Job], workers: int = 1, *, own_process: bool = False) -> Iterator[tuple[Job, Run]]:
    """Make runs, and yield each as soon as it is finished.

    Args:
        jobs: The runs.
        workers: Processes, each of which keeps the tables that it has loaded; with 1 everything runs in this one.
        own_process: Whether a single worker is another process, too, for agents that are known to end theirs.

    Raises:
        KeyboardInterrupt: If a signal ended a run; what was yielded before is whole.
        AmedError: If the task of a cell cannot be made.
    """
    runs = _in_processes(jobs, workers) if workers > 1 or own_process else _in_this_process(jobs)
    for job, run in runs:
        if run is None:
            raise KeyboardInterrupt
        yield job, run


def _in_this_process(jobs: Iterable[Job]) -> Iterator[tuple[Job, Run | None]]:
    for job in jobs:
        yield job, _run(None, job)


def _in_processes(jobs: Iterable[Job], workers: int) -> Iterator[tuple[Job, Run | None]]:
    with ProcessPool(workers, None) as pool:
        for job, future in pool.completed(_run, jobs):
            try:
                yield job, future.result()
            except WorkerDiedError:
                yield job, failed_run(job.cell, job.seed, PROCESS_DIED)


def _run(held: None, job: Job) -> Run | None:
    return run_once(job.contender, job.cell, job.seed, job.evaluations)
