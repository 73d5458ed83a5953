"""Devices by name: registered classes, shipped device files, and plug-ins of other distributions."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from amed_env.errors import DeviceError, InputError, PluginError, UnknownNameError
from amed_env.hardware.external.command import CommandBackend
from amed_env.hardware.external.command_config import FORMAT as COMMAND_FORMAT
from amed_env.hardware.external.command_config import command_of_text, parse_command_config
from amed_env.hardware.external.isolation import isolated
from amed_env.hardware.files.config import (
    DeviceConfig,
    ProcessorConfig,
    ProxyConfig,
    SystolicConfig,
    parse_device_config,
)
from amed_env.hardware.files.device_files import FILE_SUFFIXES, TABLE_SUFFIXES
from amed_env.hardware.files.yaml_faults import validated
from amed_env.hardware.files.yaml_lines import YamlDocument, read_text
from amed_env.hardware.names import BUILT_IN, DEVICES, device_names, shipped_files
from amed_env.hardware.protocol import HardwareBackend, changed_copy
from amed_env.hardware.simulator.processors import ProcessorBackend, ProxyBackend
from amed_env.hardware.simulator.simulator import SystolicBackend
from amed_env.hardware.tables.lookup_files import FORMAT as TABLE_FORMAT
from amed_env.hardware.tables.lookup_files import TableConfig, load_table, with_names
from amed_env.hardware.tables.lookup_table import TableBackend
from amed_env.support.registry import call_into_plugin, import_object

B = TypeVar("B", bound=type[HardwareBackend])
COMMAND_PREFIX = "command:"
_HINT = (
    "A device file ends in .yaml, .yml, .csv or .npy; a class is written package.module:Class, a program "
    "'command: ./program --option'."
)


def register_hardware(name: str) -> Callable[[B], B]:
    """Decorator that registers a device class under a name.

    The class is instantiated without arguments when the device is asked for.

    Args:
        name: The device's name, as in `amed devices`.

    Raises:
        InputError: If the name is taken, or what is decorated is no subclass of `HardwareBackend`.

    Example:
        >>> @register_hardware("my-device")
        ... class MyDevice(HardwareBackend):
        ...     metrics = {"latency_ms": "ms"}
        ...
        ...     def layer_cost(self, layer, precision):
        ...         return {"latency_ms": layer.macs * precision.weight_bits / 8e9}
    """

    def decorator(decorated: B) -> B:
        if not (isinstance(decorated, type) and issubclass(decorated, HardwareBackend)):
            raise InputError(f"device {name!r}: {decorated!r} is no subclass of HardwareBackend.")
        if name in shipped_files() or name in BUILT_IN:
            raise InputError(f"a device named {name!r} is shipped with amed_env; choose another name.")
        DEVICES.register(name, decorated)
        if "name" not in vars(decorated):
            decorated.name = name
        return decorated

    return decorator


def load_device(spec: str | Path | HardwareBackend | type[HardwareBackend]) -> HardwareBackend:
    """The device that a user means.

    Args:
        spec: A backend or its class; the name of a shipped, registered or plug-in device; the path of a
            device file (`.yaml`, `.yml`) or of a table (`.csv`, `.npy`); `package.module:Class`; or a program,
            `command: ./program --option`.

    Raises:
        UnknownNameError: If there is no device of that name; the message has the nearest names.
        DeviceError: If a device file cannot be read or is malformed.
        PluginError: If a plug-in cannot be imported, a class not be instantiated, or a plug-in is no device.
        InputError: If a class cannot be imported or is no device, or `spec` is something else.
    """
    try:
        return isolated(_load(spec))
    except SystemExit as error:  # a module may call sys.exit() while it is imported
        raise PluginError(f"device {spec!r} ended the program while it was loaded: exit({error.code}).") from error


def _load(spec: object) -> HardwareBackend:
    if isinstance(spec, HardwareBackend):
        return spec
    if isinstance(spec, type):
        return _instantiate(spec, f"device class {spec.__qualname__}", None)
    if isinstance(spec, str) and spec.startswith(COMMAND_PREFIX):  # before the suffixes: its last word may be a file
        return CommandBackend(command_of_text(spec.removeprefix(COMMAND_PREFIX)))
    if isinstance(spec, Path) or (isinstance(spec, str) and spec.lower().endswith(FILE_SUFFIXES)):
        return _load_file(Path(spec))
    if not isinstance(spec, str):
        raise InputError(f"{spec!r} is no device; give a name, a device file, or a HardwareBackend. {_HINT}")
    if ":" in spec:
        return _instantiate(import_object(spec, "device class"), f"device {spec!r}", None)
    shipped = shipped_files()
    if spec in shipped:
        text = shipped[spec].read_text(encoding="utf-8")
        return make_backend(parse_device_config(text, where=shipped[spec].name))
    if spec in BUILT_IN:
        module, _, name = BUILT_IN[spec].path.partition(":")
        return getattr(importlib.import_module(module), name)()  # type: ignore[no-any-return]
    if spec in DEVICES:
        return _instantiate(DEVICES.get(spec), f"device {spec!r}", spec)
    raise UnknownNameError("device", spec, device_names(), hint=_HINT)


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


def _instantiate(candidate: object, what: str, name: str | None) -> HardwareBackend:
    """A backend from a class or an instance, named after its registration."""
    device = candidate
    if isinstance(candidate, type) and issubclass(candidate, HardwareBackend):
        device = call_into_plugin(f"creating {what}", candidate)
    if not isinstance(device, HardwareBackend):
        # Without a name it is what the user wrote, otherwise what a plug-in registered.
        kind = InputError if name is None else PluginError
        raise kind(f"{what} is {device!r}; expected a subclass of HardwareBackend, or an instance of one.")
    if name is None:
        name = type(device).__name__ if device.name == HardwareBackend.name else device.name
    if device is candidate:  # an instance belongs to the module that defines it
        return changed_copy(device, name=name)
    device.name = name
    return device


def _load_file(path: Path) -> HardwareBackend:
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
        table = with_names(load_table(path.parent / config.table, config.clock_mhz), config.layers, str(path))
        return TableBackend(table, name=config.name, description=config.description, interpolation=config.interpolation)
    return make_backend(parse_device_config(text, str(path)))
