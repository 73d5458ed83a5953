"""Files that are whole or not there, and what disks say when they cannot be written."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO}
"""A full disk, a missing permission and the like, which no traceback explains better than their name."""


def read_limited(path: str | Path, most_mib: int, *, pipes: bool = False) -> bytes:
    """The content of a file that is not larger than a limit.

    Args:
        path: The file.
        most_mib: The limit in MiB.
        pipes: Whether it may be a pipe, as shells make of `<(program)`; a pipe that nobody writes to blocks for ever.

    Raises:
        OSError: If it cannot be opened or read.
        ValueError: If it is larger, or no regular file although it has to be one.
    """
    with open(path, "rb", opener=None if pipes else _opened_at_once) as stream:
        status = os.fstat(stream.fileno())
        if not (pipes or stat.S_ISREG(status.st_mode)):
            raise ValueError("it is no regular file")
        # A sparse file of any size costs its author nothing: it is not read to learn that it is too large.
        content = b"" if status.st_size > most_mib * 2**20 else stream.read(most_mib * 2**20 + 1)
        size = max(status.st_size, len(content))
    if size > most_mib * 2**20:
        raise ValueError(f"it has more than the {most_mib} MiB that are read")
    return content


def _opened_at_once(path: str, flags: int) -> int:
    """A descriptor; without the flag the opening of a pipe that nobody writes to would wait."""
    return os.open(path, flags | os.O_NONBLOCK)


def json_text(document: Any) -> str:
    """JSON that every parser reads: numbers that are not finite become null."""
    return json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that there is never half of it under its name: a temporary file, then a rename.

    Raises:
        OSError: If it cannot be written; an older file of that name is then left as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as stream:
        temporary = Path(stream.name)
        try:
            stream.write(data)
            stream.flush()
            # On the disk before it is renamed, or a power cut could leave an empty file under the name.
            os.fsync(stream.fileno())
            # Temporary files are private; this one gets the permissions of any other file of the user.
            os.fchmod(stream.fileno(), 0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
