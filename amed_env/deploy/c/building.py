"""Compiling what was written, and running it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amed_env.errors import ExportError

# Where code may be moved, constants that hold addresses would count as memory.
OWN_FLAGS = ("-std=c99", "-Os", "-fno-pie", "-ffp-contract=off")
MICROCONTROLLER = "arm-none-eabi-gcc"
MICROCONTROLLER_FLAGS = ("-std=c99", "-Os", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
SECONDS = 120
"""After which a compiler is given up."""


@dataclass(frozen=True)
class Sections:
    """What a compiler made of `model.c`, in bytes.

    Attributes:
        flash: Code and constants.
        ram: Static memory.
        compiler: Which one, with what mattered.
    """

    flash: int
    ram: int
    compiler: str


def compiler() -> str | None:
    """The C compiler of this machine, if there is one."""
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def build(folder: Path, into: Path) -> Path:
    """Compile the program that reads samples and writes results, as the `Makefile` beside it does.

    Args:
        folder: With what was written.
        into: Folder for the program.

    Raises:
        ExportError: If there is no compiler, or it fails.
    """
    found = compiler()
    if found is None:
        raise ExportError(
            "there is no C compiler (cc, gcc or clang) to verify the export with; install one, or export with "
            "--no-verify."
        )
    target = into / "model"
    flags = ("-std=c99", "-O3", "-Wall", "-Wextra", "-ffp-contract=off")
    _call([found, *flags, "-o", str(target), str(folder / "main.c"), str(folder / "model.c"), "-lm"])
    return target


def run(program: Path, inputs: npt.NDArray[np.float32], outputs: int) -> npt.NDArray[np.float32]:
    """What the compiled network returns.

    Args:
        program: See `build`.
        inputs: (N, …).
        outputs: Values of one result.

    Returns:
        float32 (N, outputs).

    Raises:
        ExportError: If it fails, or returns something else.
    """
    found = np.frombuffer(run_raw(program, inputs), dtype="<f4")
    if found.size != len(inputs) * outputs:
        raise ExportError(
            f"the compiled network returned {found.size:,} values for {len(inputs):,} samples, expected "
            f"{len(inputs) * outputs:,}."
        )
    return found.reshape(len(inputs), outputs)


def run_raw(program: Path, inputs: npt.NDArray[np.float32]) -> bytes:
    """What the compiled network writes.

    Raises:
        ExportError: If it fails.
    """
    given = np.ascontiguousarray(inputs, dtype="<f4").tobytes()
    try:
        return subprocess.run([str(program)], input=given, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ExportError(f"the compiled network cannot be run: {error}.") from error


def sections(folder: Path) -> list[Sections]:
    """Sizes of `model.c` as the compilers of this machine make it: its own, and that of a microcontroller if it has."""
    found = []
    own = compiler()
    if own is not None:
        found.append(_sections(folder, own, OWN_FLAGS, "size", f"{Path(own).name} -Os"))
    cross = shutil.which(MICROCONTROLLER)
    if cross is not None:
        found.append(
            _sections(folder, cross, MICROCONTROLLER_FLAGS, "arm-none-eabi-size", f"{MICROCONTROLLER} -Os, Cortex-M4")
        )
    return [one for one in found if one is not None]


def _sections(folder: Path, path: str, flags: tuple[str, ...], size: str, name: str) -> Sections | None:
    target = folder / "model.size.o"
    tool = shutil.which(size)
    if tool is None:
        return None
    try:
        _call([path, *flags, "-c", "-o", str(target), str(folder / "model.c")])
        text = _call([tool, "-A", str(target)])
    finally:
        target.unlink(missing_ok=True)
    parts: dict[str, int] = {}
    for line in text.splitlines():
        match = re.match(r"\.(text|rodata|data|bss)\S*\s+(\d+)", line)
        if match:
            parts[match[1]] = parts.get(match[1], 0) + int(match[2])
    flash, ram = _sums(parts)
    return Sections(flash, ram, name)


def _sums(parts: Mapping[str, int]) -> tuple[int, int]:
    """Flash and memory: initialised data take both."""
    data = parts.get("data", 0)
    return parts.get("text", 0) + parts.get("rodata", 0) + data, parts.get("bss", 0) + data


def _call(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except subprocess.CalledProcessError as error:
        first = (error.stderr or "").strip().splitlines()[:1]
        raise ExportError(f"{command[0]} failed: {first[0] if first else error}.") from error
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"{command[0]} took more than {SECONDS} s and was ended.") from error
    return done.stdout
