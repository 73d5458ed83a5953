"""What makes two searches the same one: the settings that a run folder records, and that --resume compares."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amed_env.errors import DeviceError
from amed_env.hardware import HardwareBackend
from amed_env.hardware.external.command import CommandBackend
from amed_env.hardware.files.device_files import FILE_SUFFIXES, device_file_digest
from amed_env.hardware.registry import COMMAND_PREFIX
from amed_env.problem.pins import pins_json
from amed_env.tasks.task import Task

if TYPE_CHECKING:
    from amed_env.commands.search import SearchOptions


def search_settings(options: SearchOptions, task: Task, backend: HardwareBackend) -> dict[str, Any]:
    """Everything but the agent that determines a search, resolved; see `RunFolder.start`."""
    # Finalists and tuning are left out: they decide about nothing that the search evaluates, only about its end.
    recipe = getattr(task.evaluator, "recipe", None)
    return {
        "network": options.network or options.task,
        "device": _device_settings(options.device, backend),
        "bits": list(task.free_bits),
        **({"choices": task.space.differing_choices} if task.space.differing_choices else {}),
        # Left out without pins, so that searches of earlier versions can be resumed.
        **({"pins": pins_json(task.pins)} if task.pins else {}),
        "separate": task.separate,
        **({} if task.activation_bits is None else {"activation_bits": task.activation_bits}),
        "budgets": {b.name: {"value": b.value, "relative": b.relative} for b in task.budgets},
        "score": task.score.name,
        "evaluations": options.evaluations,
        "seed": options.seed,
        "recipe": None if recipe is None else asdict(recipe),
        "fingerprint": task.evaluator.fingerprint,
    }


def _device_settings(spec: str, backend: HardwareBackend) -> dict[str, Any]:
    """What the costs depend on: the name, what was given, the content of files, and a program's fingerprint."""
    settings: dict[str, Any] = {"name": backend.name}
    if isinstance(backend, CommandBackend):
        settings["fingerprint"] = backend.fingerprint
    if not spec.lower().endswith(FILE_SUFFIXES) or spec.startswith(COMMAND_PREFIX):
        return {**settings, "given": spec}
    path = Path(spec)
    settings["sha256"] = device_file_digest(path)
    if path.suffix.lower() == ".npy":
        return {**settings, "given": spec}
    try:
        return {**settings, "content": path.read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        raise DeviceError(f"cannot read the device file {spec}: {error}.") from error
