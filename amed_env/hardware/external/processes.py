"""Programs that the package starts: in a process group of their own, so that whatever they start ends with them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import IO

_LONGEST_TAIL = 2000  # bytes of standard error in a message


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads its own group, and all that it started; whatever has ended already is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.poll() is None:
        process.kill()
    process.wait()


def tail(stream: IO[bytes]) -> str:
    """The end of what a program wrote into a file, for messages."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _LONGEST_TAIL))
    text = stream.read().decode(errors="replace").strip()
    return f"…{text}" if size > _LONGEST_TAIL else text


def describe_end(code: int) -> str:
    """How a process ended, in words: its exit code, or the signal that killed it."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"
