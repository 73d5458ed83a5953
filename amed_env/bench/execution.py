"""Runs side by side: in this process, or in several; what comes out is the same.

Processes are spawned, use one thread of torch each, and keep the tables that they have loaded. One that dies costs the
run that killed it and no other.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice

import torch

from amed_env.bench.contender import Contender
from amed_env.bench.result_file import Run
from amed_env.bench.running import failed_run, run_once
from amed_env.bench.suites import Cell

_DIED = "the process of this run ended unexpectedly"


@dataclass(frozen=True)
class Job:
    """A run that is to be made; see `run_once`."""

    contender: Contender
    cell: Cell
    seed: int
    evaluations: int


def run_all(jobs: Iterable[Job], workers: int = 1, *, isolated: bool = False) -> Iterator[tuple[Job, Run]]:
    """Make runs, and yield each as soon as it is finished.

    Args:
        jobs: The runs.
        workers: Processes; with 1 everything runs in this one.
        isolated: Whether a single worker is another process too, so that no agent can change or end this one.

    Raises:
        KeyboardInterrupt: If a signal ended a run; what was yielded before is whole.
        AmedError: If the task of a cell cannot be made, or a recipe was changed meanwhile.
    """
    if workers > 1 or isolated:
        yield from _Processes(workers).run(iter(jobs))
        return
    for job in jobs:
        run = _run(job)
        if run is None:
            raise KeyboardInterrupt
        yield job, run


def _run(job: Job) -> Run | None:
    return run_once(job.contender, job.cell, job.seed, job.evaluations)


class _Processes:
    """Keeps every process busy, and starts new ones after one has died."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._before = set(multiprocessing.active_children())

    def run(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Run]]:
        suspects: list[Job] = []
        try:
            while True:
                suspects = yield from self._until_broken(jobs)
                if not suspects:
                    return
                for job in suspects:
                    yield job, self._alone(job)
        finally:
            for process in set(multiprocessing.active_children()) - self._before:
                process.terminate()

    def _until_broken(self, jobs: Iterator[Job]) -> Generator[tuple[Job, Run], None, list[Job]]:
        """Run jobs until none is left, or a process dies; returns the jobs that may have killed it."""
        pool = _pool(self._count)
        running: dict[Future[Run | None], Job] = {pool.submit(_run, job): job for job in islice(jobs, self._count)}
        suspects: list[Job] = []
        try:
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    job = running.pop(future)
                    try:
                        run = future.result()
                    except BrokenProcessPool:
                        suspects.append(job)
                        continue
                    if run is None:
                        raise KeyboardInterrupt
                    yield job, run
                    following = None if suspects else next(jobs, None)
                    if following is not None:
                        try:
                            running[pool.submit(_run, following)] = following
                        except BrokenProcessPool:
                            suspects.append(following)
            return suspects
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _alone(self, job: Job) -> Run:
        """Run a job in a process of its own; if that dies too, the job did it."""
        pool = _pool(1)
        try:
            run = pool.submit(_run, job).result()
        except BrokenProcessPool:
            return failed_run(job.cell, job.seed, _DIED)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if run is None:
            raise KeyboardInterrupt
        return run


def _pool(count: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
