"""Timing for the benchmarks: processor time of this thread, which other work on the machine disturbs least."""

from __future__ import annotations

from collections.abc import Callable
from time import thread_time


def least(function: Callable[[], object], runs: int) -> float:
    """The least CPU time in seconds of several runs, after one that does not count."""
    function()
    times = []
    for _ in range(runs):
        start = thread_time()
        function()
        times.append(thread_time() - start)
    return min(times)
