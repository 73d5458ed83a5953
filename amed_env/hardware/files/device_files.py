"""Which files are devices, and a digest of all that one of them depends on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from amed_env.errors import DeviceError
from amed_env.hardware.files.yaml_lines import YamlDocument
from amed_env.support.files import read_limited

TABLE_SUFFIXES = (".csv", ".npy")
LARGEST_TABLE_MIB = 64
"""Tables of whole networks have kilobytes; as numbers in memory this becomes a few times as much."""
FILE_SUFFIXES = (".yaml", ".yml", *TABLE_SUFFIXES)


def device_file_digest(path: Path) -> str:
    """SHA-256 of a device file and of every file that it names: what it extends, its table, the table's JSON file.

    Raises:
        DeviceError: If one cannot be read.
    """
    # Depth first, each file once: a file that is extended twice changes nothing, a circle ends.
    digest, seen, waiting = hashlib.sha256(), set[Path](), [path]
    while waiting:
        current = waiting.pop()
        if current.resolve() in seen:
            continue
        seen.add(current.resolve())
        try:
            content = read_limited(current, LARGEST_TABLE_MIB)
        except (OSError, ValueError) as error:
            raise DeviceError(f"cannot read the device file {current}: {error}.") from error
        digest.update(hashlib.sha256(content).digest())
        if current.suffix.lower() in (".yaml", ".yml"):
            data = YamlDocument(content.decode("utf-8-sig", errors="replace"), str(current)).data
            for name in (data.get("extends"), data.get("table")):
                if isinstance(name, str) and name.lower().endswith(FILE_SUFFIXES):
                    waiting.append(current.parent / name)
        elif current.suffix.lower() == ".npy" and current.with_suffix(".json").exists():
            waiting.append(current.with_suffix(".json"))
    return digest.hexdigest()
