"""The backend that belongs to a device description."""

from __future__ import annotations

from pathlib import Path

from amed_env.errors import DeviceError
from amed_env.hardware.files.config import (
    DeviceConfig,
    ProcessorConfig,
    ProxyConfig,
    SystolicConfig,
    load_device_config,
)
from amed_env.hardware.protocol import HardwareBackend
from amed_env.hardware.simulator.processors import ProcessorBackend, ProxyBackend
from amed_env.hardware.simulator.simulator import SystolicBackend


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


def load_backend(path: str | Path) -> HardwareBackend:
    """The simulator of a device file.

    Raises:
        DeviceError: If the file cannot be read or is malformed.
    """
    return make_backend(load_device_config(path))
