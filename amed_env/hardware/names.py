"""Which devices there are: shipped files, classes of this package, registered classes, and plug-ins.

Nothing of a device is read or imported here, so that `amed devices` comes at once.
"""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any

from amed_env.support.registry import Registry

GROUP = "amed_env.hardware"
"""Entry-point group in which a distribution announces its devices."""

DEVICES: Registry[Any] = Registry("device", group=GROUP)
"""Devices registered in this process, and plug-ins; the shipped files are not among them."""


@dataclass(frozen=True)
class BuiltInDevice:
    """A device of this package that is a class and no file, described without importing it.

    Attributes:
        path: Import path of the class.
        description: That of the class; a test compares them.
    """

    path: str
    description: str


BUILT_IN = {
    "bitfusion-chained": BuiltInDevice(
        "amed_env.hardware.simulator.chained:ChainedBackend",
        "bitfusion at 32 bits a cycle that keeps up to 8 KiB on chip from layer to layer; costs do not add up",
    ),
    "onnxruntime-cpu": BuiltInDevice(
        "amed_env.hardware.external.measured:OnnxRuntimeCpu",
        "this machine's CPU, timed layer by layer with ONNX Runtime (one thread, CPU time, minimum)",
    ),
}


def shipped_files() -> dict[str, Traversable]:
    """The device files of this package by their name without suffix."""
    folder = importlib.resources.files("amed_env.hardware") / "devices"
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    return {entry.name.removesuffix(".yaml"): entry for entry in files}


def device_names() -> list[str]:
    """Names of all devices, sorted; nothing is parsed or imported for it."""
    return sorted({*shipped_files(), *BUILT_IN, *DEVICES.names()})
