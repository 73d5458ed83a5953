"""The devices that there are, each with a line about it."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

import yaml

from amed_env.errors import AmedError
from amed_env.hardware.names import BUILT_IN, GROUP, device_names, shipped_files


@dataclass(frozen=True)
class DeviceInfo:
    """A device in the listing.

    Attributes:
        name: Its name.
        description: One line, empty if it could not be loaded.
        source: Where it comes from: `file` or `built-in` of this package, `registered` or `plug-in`.
        error: Why it cannot be used, or None.
    """

    name: str
    description: str
    source: str
    error: str | None = None


def list_devices() -> dict[str, DeviceInfo]:
    """All devices by name; one of other people that cannot be loaded is listed with its error."""
    shipped = shipped_files()
    plug_ins = {point.name for point in importlib.metadata.entry_points(group=GROUP)}
    listing = {}
    for name in device_names():
        # The order in which a name is looked up: a plug-in cannot take the name of a shipped device.
        if name in shipped:
            listing[name] = DeviceInfo(name, _description(shipped[name].read_text(encoding="utf-8")), "file")
        elif name in BUILT_IN:
            listing[name] = DeviceInfo(name, BUILT_IN[name].description, "built-in")
        else:
            listing[name] = _loaded(name, "plug-in" if name in plug_ins else "registered")
    return listing


def _description(text: str) -> str:
    """What a shipped file says of its device: in its head, up to the first blank line.

    The rest, with its hundreds of numbers, is neither parsed nor checked here, which would take most of the time of
    `amed devices`; tests load every shipped device.
    """
    head = yaml.safe_load(text.partition("\n\n")[0])
    return str(head["description"])


def _loaded(name: str, source: str) -> DeviceInfo:
    from amed_env.hardware.registry import load_device  # the simulators, which shipped devices are listed without

    try:
        device = load_device(name)
    except AmedError as error:
        return DeviceInfo(name, "", source, str(error))
    except Exception as error:  # one broken plug-in must not hide the others
        return DeviceInfo(name, "", source, f"{type(error).__name__}: {error}")
    description = getattr(device, "description", None) or (type(device).__doc__ or "").strip()
    return DeviceInfo(name, str(description).partition("\n")[0], source)
