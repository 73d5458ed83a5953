"""What a result depends on in addition to its settings: the machine, and versions of what it is computed with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np

import amed_env._version as version

DISTRIBUTIONS = ("torch", "numpy", "scipy", "gymnasium", "stable-baselines3", "sb3-contrib")
"""Distributions whose versions every run records."""


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


@cache
def cpu_name() -> str:
    """The CPU's name, as the operating system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine_text() -> str:
    """System, processor, its widest vector instructions, and cores: a line of text.

    Sums of floats depend on the instructions, and so does the way that a learner takes.
    """
    extensions = np.show_config(mode="dicts")["SIMD Extensions"]
    # NumPy lists what it uses from the narrowest to the widest: those of every build, then those of this processor.
    used = [*extensions.get("baseline", []), *extensions.get("found", [])]
    parts = [f"{platform.system()} {platform.machine()}", cpu_name(), *used[-1:], f"{os.cpu_count()} cores"]
    return ", ".join(" ".join(part.split()) for part in parts)


def versions(further: Iterable[str] = ()) -> dict[str, str]:
    """Versions of what a result depends on: of this package, Python, `DISTRIBUTIONS` and further distributions."""
    installed = {"amed_env": version.__version__, "python": platform.python_version()}
    for name in dict.fromkeys((*DISTRIBUTIONS, *further)):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed
