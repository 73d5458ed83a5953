"""Processes that share the work of an evaluator; what comes out does not depend on how many they are."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

import torch

from amed_env.errors import AmedError

E = TypeVar("E")
T = TypeVar("T")
R = TypeVar("R")

_held: Any = None  # the object of a worker process


def in_parts(items: Sequence[T], largest: int, workers: int) -> list[list[T]]:
    """Runs of neighbours: at most `largest` in each, and a few for every worker, so that all end together."""
    size = max(1, min(largest, -(-len(items) // (4 * workers)) if workers > 1 else largest))
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


class Workers(Generic[E]):
    """A pool of processes that each hold a copy of an object, with one thread of torch.

    Processes are spawned, not forked: threads of a learner would not survive a fork.

    Args:
        held: The object; it is pickled once for each process.
        count: Number of processes.

    Raises:
        AmedError: If the object cannot be pickled.
    """

    def __init__(self, held: E, count: int) -> None:
        self.count = count
        context = multiprocessing.get_context("spawn")
        # As bytes: multiprocessing would hand every tensor over as a file descriptor, and there can be thousands.
        content = _pickled(held)
        self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_hold, initargs=(content,))

    def map(self, function: Callable[..., R], parts: Sequence[T], *arguments: Any) -> Iterator[tuple[T, R]]:
        """Call `function(held, part, *arguments)` for every part, and yield the parts with their results in order.

        Raises:
            AmedError: If a process dies.
        """
        futures = [self._pool.submit(_call, function, part, arguments) for part in parts]
        try:
            for part, future in zip(parts, futures, strict=True):
                yield part, future.result()
        except BrokenProcessPool as error:
            raise AmedError(
                "a worker process ended unexpectedly, perhaps for want of memory; use fewer workers."
            ) from error
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _pickled(held: Any) -> bytes:
    try:
        return pickle.dumps(held)
    except Exception as error:  # whatever the network's own attributes raise
        raise AmedError(
            f"what is evaluated cannot be sent to other processes: {error}. Define the network's classes and hooks at "
            "the top level of a module, or use one worker."
        ) from error


def _hold(content: bytes) -> None:
    global _held
    torch.set_num_threads(1)
    held = pickle.loads(content)
    if hasattr(held, "threads"):
        held.threads = 1
    _held = held


def _call(function: Callable[..., R], part: Any, arguments: tuple[Any, ...]) -> R:
    return function(_held, part, *arguments)
