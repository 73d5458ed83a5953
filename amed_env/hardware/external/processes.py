"""Programs that the package starts: in a process group of their own, so that whatever they start ends with them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import IO

from amed_env.errors import AmedError
from amed_env.support.text import printable

LARGEST_OUTPUT_MIB = 64
"""A program that writes more than this in one call has lost its way."""
LOOK_S = 0.05
"""Seconds between two looks at what it has written."""
_LONGEST_TAIL = 2000  # bytes of standard error in a message


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads its own group, and all that it started; whatever has ended already is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.poll() is None:
        process.kill()
    process.wait()


def wait_for(process: subprocess.Popen[bytes], timeout_s: float, outputs: Sequence[IO[bytes]]) -> int:
    """The exit code of a process, when it has ended.

    Args:
        process: The process.
        timeout_s: Seconds that it may take.
        outputs: Files that it writes into.

    Raises:
        subprocess.TimeoutExpired: If it takes longer.
        OutputTooLargeError: If it has written more than `LARGEST_OUTPUT_MIB` into one of the files.
    """
    end = time.monotonic() + timeout_s
    while True:
        try:
            code = process.wait(min(LOOK_S, max(0.0, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            if time.monotonic() >= end:
                raise
            code = None
        if any(written_bytes(output) > LARGEST_OUTPUT_MIB * 2**20 for output in outputs):
            raise OutputTooLargeError
        if code is not None:
            return code


def written_bytes(output: IO[bytes]) -> int:
    """Size of a file that another process writes into."""
    return os.fstat(output.fileno()).st_size


class OutputTooLargeError(AmedError):
    """A program wrote more than it may."""


def tail(stream: IO[bytes]) -> str:
    """The end of what a program wrote into a file, for messages."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _LONGEST_TAIL))
    text = printable(stream.read().decode(errors="replace").strip())
    return f"…{text}" if size > _LONGEST_TAIL else text


def describe_end(code: int) -> str:
    """How a process ended, in words: its exit code, or the signal that killed it."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"
