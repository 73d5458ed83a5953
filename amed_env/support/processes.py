"""A pool of processes that each hold a copy of one object.

Processes are spawned and not forked: the threads of torch and of a learner would not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from amed_env.errors import AmedError, WorkerDiedError
from amed_env.support.threads import use_one_thread

E = TypeVar("E")
T = TypeVar("T")
R = TypeVar("R")

_held: Any = None
"""The object, in a worker process."""


class ProcessPool(Generic[E]):
    """Processes with one thread of torch each, and a copy of an object, which is sent to each of them once.

    They are started when there is something to do, and end with `close`, with the process that started them, and at
    once where results are abandoned in the middle (Ctrl-C). As a context manager it closes itself.

    Args:
        count: Number of processes.
        held: The object.

    Raises:
        AmedError: If the object cannot be pickled.
    """

    def __init__(self, count: int, held: E) -> None:
        self.count = count
        # As bytes: multiprocessing would hand every tensor over as a file descriptor, and there can be thousands.
        self._content = _pickled(held)
        self._processes: _Processes | None = None

    def __enter__(self) -> ProcessPool[E]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def completed(
        self, function: Callable[..., R], parts: Iterable[T], *arguments: Any
    ) -> Iterator[tuple[T, Future[R]]]:
        """Call `function(held, part, *arguments)` for every part, and yield parts with their futures as they finish.

        A process that dies takes the whole executor along, so what was running then is done again, part by part in a
        process of its own: only the part that kills that one as well has a `WorkerDiedError` for an exception.

        Args:
            function: A function of a module's top level.
            parts: Taken one by one, as processes become free.
            *arguments: What every call is given besides.
        """
        waiting = iter(parts)
        running: dict[Future[R], T] = {}
        try:
            while True:
                suspects = yield from self._until_one_dies(function, waiting, running, arguments)
                if not suspects:
                    return
                self.close()
                for part in suspects:
                    yield part, self._alone(function, part, arguments)
        finally:
            if running:
                self.close()

    def close(self) -> None:
        """End the processes, also in the middle of what they do."""
        if self._processes is not None:
            self._processes.end()
            self._processes = None

    def _until_one_dies(
        self, function: Callable[..., R], waiting: Iterator[T], running: dict[Future[R], T], arguments: tuple[Any, ...]
    ) -> Generator[tuple[T, Future[R]], None, list[T]]:
        """Keep every process busy until nothing waits, or one dies; returns the parts of which one has killed it."""
        if self._processes is None:
            self._processes = _Processes(self.count, self._content)
        suspects: list[T] = []
        while True:
            while not suspects and len(running) < self.count:
                try:
                    part = next(waiting)
                except StopIteration:
                    break
                try:
                    running[self._processes.submit(function, part, arguments)] = part
                except BrokenProcessPool:
                    suspects.append(part)
            if not running:
                return suspects
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                part = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    suspects.append(part)
                else:
                    yield part, future

    def _alone(self, function: Callable[..., R], part: T, arguments: tuple[Any, ...]) -> Future[R]:
        processes = _Processes(1, self._content)
        try:
            future = processes.submit(function, part, arguments)
            wait([future])
        finally:
            processes.end()
        if isinstance(future.exception(), BrokenProcessPool):
            future = Future()
            future.set_exception(
                WorkerDiedError("a worker process ended unexpectedly, perhaps for want of memory; use fewer workers.")
            )
        return future


class _Processes:
    """An executor whose processes end as soon as nobody holds the other end of a pipe any more.

    Nobody holds it after `end`, and after this process has died, however it died.
    """

    def __init__(self, count: int, content: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self._watched, self._lifeline = context.Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(
            count, mp_context=context, initializer=_start_worker, initargs=(content, self._watched)
        )

    def submit(self, function: Callable[..., R], part: Any, arguments: tuple[Any, ...]) -> Future[R]:
        return self._executor.submit(_call, function, part, arguments)

    def end(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._lifeline.close()
        self._watched.close()


def _pickled(held: Any) -> bytes:
    try:
        return pickle.dumps(held)
    except Exception as error:  # whatever the network's own attributes raise
        raise AmedError(
            f"what is evaluated cannot be sent to other processes: {error}. Define the network's classes and hooks at "
            "the top level of a module, or use one worker."
        ) from error


def _start_worker(content: bytes, lifeline: Connection) -> None:
    global _held
    use_one_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    _held = pickle.loads(content)


def _end_with(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()  # nothing is ever sent
    os._exit(1)


def _call(function: Callable[..., R], part: Any, arguments: tuple[Any, ...]) -> R:
    return function(_held, part, *arguments)
