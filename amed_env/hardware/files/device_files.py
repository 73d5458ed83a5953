"""A device from a file, by what the file is: a simulated accelerator, a program, or a table."""

from __future__ import annotations

import hashlib
from pathlib import Path

from amed_env.errors import DeviceError
from amed_env.hardware.external.command import CommandBackend
from amed_env.hardware.external.command_config import FORMAT as COMMAND_FORMAT
from amed_env.hardware.external.command_config import parse_command_config
from amed_env.hardware.files.config import (
    DeviceConfig,
    ProcessorConfig,
    ProxyConfig,
    SystolicConfig,
    parse_device_config,
)
from amed_env.hardware.files.yaml_faults import validated
from amed_env.hardware.files.yaml_lines import YamlDocument, read_text
from amed_env.hardware.protocol import HardwareBackend
from amed_env.hardware.simulator.processors import ProcessorBackend, ProxyBackend
from amed_env.hardware.simulator.simulator import SystolicBackend
from amed_env.hardware.tables.lookup_files import FORMAT as TABLE_FORMAT
from amed_env.hardware.tables.lookup_files import TableConfig, load_table
from amed_env.hardware.tables.lookup_table import TableBackend

TABLE_SUFFIXES = (".csv", ".npy")
FILE_SUFFIXES = (".yaml", ".yml", *TABLE_SUFFIXES)


def load_device_file(path: Path) -> HardwareBackend:
    """The device of a file.

    Args:
        path: A `.csv` or `.npy` table, or YAML in one of the formats `amed-device/1`, `amed-command/1`, `amed-table/1`.

    Raises:
        DeviceError: If it cannot be read or is malformed; the message has file, line and field.
    """
    if path.suffix.lower() in TABLE_SUFFIXES:
        return TableBackend(load_table(path))
    text = read_text(path)
    document = YamlDocument(text, str(path))
    if document.data.get("format") == COMMAND_FORMAT:
        return CommandBackend(parse_command_config(document, path.parent.resolve()))
    if document.data.get("format") == TABLE_FORMAT:
        config = validated(TableConfig, document)
        table = load_table(path.parent / config.table, config.clock_mhz)
        return TableBackend(table, name=config.name, description=config.description, interpolation=config.interpolation)
    return make_backend(parse_device_config(text, str(path)))


def make_backend(config: DeviceConfig) -> HardwareBackend:
    """The simulator of a described device.

    Raises:
        DeviceError: If no simulator belongs to its kind.
    """
    if isinstance(config, SystolicConfig):
        return SystolicBackend(config)
    if isinstance(config, ProcessorConfig):
        return ProcessorBackend(config)
    if isinstance(config, ProxyConfig):
        return ProxyBackend(config)
    raise DeviceError(f"device {config.name!r}: no simulator belongs to the kind {config.kind!r}.")


def device_file_digest(path: Path) -> str:
    """SHA-256 of a device file and of every file that it names: what it extends, its table, the table's JSON file.

    Raises:
        DeviceError: If one cannot be read.
    """
    digest, seen, waiting = hashlib.sha256(), set[Path](), [path]
    while waiting:
        current = waiting.pop()
        if current.resolve() in seen:
            continue
        seen.add(current.resolve())
        try:
            content = current.read_bytes()
        except OSError as error:
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
