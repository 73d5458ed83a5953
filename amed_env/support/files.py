"""Files that are whole or not there, and what disks say when they cannot be written."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO}
"""A full disk, a missing permission and the like, which no traceback explains better than their name."""


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
