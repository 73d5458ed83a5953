"""The folder of one search or training: its lock, its settings, its trials, and the files that it leaves behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import filelock

from amed_env.errors import RunFolderError
from amed_env.evaluation.store import TrialStore
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.score import TOP_1
from amed_env.support.files import DISK_ERRORS, json_text, write_atomically
from amed_env.support.machine import versions

if TYPE_CHECKING:
    from amed_env.agents.result import SearchResult

FORMAT = "amed-run/1"
_LOCK, _CONFIG, _STORE, _RESULT = ".lock", "config.json", "trials.sqlite", "result.json"
ALLOCATION_FILE, WEIGHTS_FILE = "allocation.json", "weights.safetensors"
"""The answer of a search, and its weights if they were tuned."""
_LONGEST_VALUE = 80  # characters of a setting in a message


class RunFolder:
    """An output folder that this process alone uses, as a context manager.

    The lock belongs to the operating system, which frees it however the process ends.

    Args:
        path: The folder; it is made if it does not exist.
        resume: Whether a search that it holds may be continued.
        kind: What it holds, for messages.

    Raises:
        RunFolderError: On entering, if another process uses it, it holds a search and `resume` is false, or it holds
            something else.
    """

    def __init__(self, path: str | Path, *, resume: bool = False, kind: str = "search") -> None:
        self.path, self.resume, self.kind = Path(path), resume, kind
        self.store: TrialStore | None = None
        self._lock = filelock.FileLock(self.path / _LOCK, timeout=0)
        self._made = False

    def __enter__(self) -> RunFolder:
        self._make()
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise RunFolderError(
                f"{self.path} is in use by another process; wait for it, stop it, or choose another folder with --out."
            ) from None
        try:
            self._check_content()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.store is not None:
            self.store.close()
        self._release()

    def _make(self) -> None:
        try:
            self._made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise RunFolderError(f"{self.path} is no folder; choose another one with --out.") from None
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise
            raise RunFolderError(
                f"the folder {self.path} cannot be made: {error.strerror}; choose another one with --out."
            ) from error

    def _release(self) -> None:
        """Free the lock, and leave nothing behind where no search was begun."""
        nothing_begun = not (self.path / _CONFIG).exists()
        if nothing_begun and self._lock.is_locked:
            (self.path / _LOCK).unlink(missing_ok=True)
        self._lock.release()
        if nothing_begun and self._made and not any(self.path.iterdir()):
            self.path.rmdir()

    def _check_content(self) -> None:
        if (self.path / _CONFIG).exists():
            if not self.resume:
                raise RunFolderError(
                    f"{self.path} holds a {self.kind} already; continue it with --resume, or choose another folder "
                    "with --out."
                )
            return
        # Hidden files are our own lock and unfinished writes, or a file manager's.
        found = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
        if self.resume and found == [ALLOCATION_FILE]:  # the first answer of a search that was stopped before it began
            return
        if found:
            raise RunFolderError(
                f"{self.path} holds {', '.join(found[:3])}{' …' if len(found) > 3 else ''} but no search of amed; "
                "choose an empty or a new folder with --out."
            )

    def known_settings(self) -> Mapping[str, Any]:
        """The settings of the search that is to be continued; empty if there is none."""
        known = self._read_config() if self.resume else None
        return {} if known is None else known["settings"]

    def open_known_store(self) -> TrialStore | None:
        """The trials of the search that is to be continued, or None if there are none; `start` opens them too."""
        if self.store is None and self.resume and (self.path / _STORE).exists():
            self.store = TrialStore(self.path / _STORE)
        return self.store

    def start(
        self,
        settings: Mapping[str, Any],
        command: Sequence[str],
        extra: Mapping[str, Any] | None = None,
        libraries: Sequence[str] = (),
    ) -> TrialStore:
        """Record a search, or check that it is the one that the folder holds (see `record`); then open its trials.

        Raises:
            RunFolderError: If the folder holds a search of other settings; what differs is named.
            StoreError: If the trials cannot be opened.
        """
        if self.record(settings, command, extra, libraries):
            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)  # a resumed learner takes the same way again
        if self.store is None:
            self.store = TrialStore(self.path / _STORE)
        return self.store

    def record(
        self,
        settings: Mapping[str, Any],
        command: Sequence[str],
        extra: Mapping[str, Any] | None = None,
        libraries: Sequence[str] = (),
    ) -> bool:
        """Record a run, or check that it is the one that the folder holds.

        Args:
            settings: What determines the search, JSON values only. All must be as before, but `evaluations` may grow.
            command: The command line.
            extra: What is recorded beside it, and may change.
            libraries: Distributions whose versions are recorded beside those that every run records.

        Returns:
            Whether the folder held it already.

        Raises:
            RunFolderError: If the folder holds a run of other settings; what differs is named.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        settings = json.loads(json_text(settings))
        created, commands = now, [list(command)]
        known = self._read_config()
        if known is not None:
            self._check_same(known["settings"], settings)
            created, commands = known.get("created", now), [*known.get("commands", []), list(command)]
        document = {
            "format": FORMAT,
            "created": created,
            "started": now,
            "command": list(command),
            "commands": commands,
            "settings": settings,
            "versions": versions(libraries),
            **(extra or {}),
        }
        write_atomically(self.path / _CONFIG, json_text(document))
        return known is not None

    def _read_config(self) -> dict[str, Any] | None:
        path = self.path / _CONFIG
        if not path.exists():
            return None
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunFolderError(f"{path} is damaged ({error}); choose another folder with --out.") from error
        if (
            not isinstance(document, dict)
            or document.get("format") != FORMAT
            or not isinstance(document.get("settings"), dict)
        ):
            raise RunFolderError(f"{path} is no {FORMAT} file of amed; choose another folder with --out.")
        if self.kind == "search":  # before there was a choice, accuracy was what was optimised
            document["settings"].setdefault("score", TOP_1.name)
        return document

    def _check_same(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        differing = []
        for name in sorted({*before, *now}):
            old, new = before.get(name), now.get(name)
            grown = name == "evaluations" and isinstance(old, int) and isinstance(new, int) and new >= old
            if old != new and not grown:
                differing.append(f"{name} (there {_brief(old)}, now {_brief(new)})")
        if differing:
            may_grow = " (evaluations may grow)" if self.kind == "search" else ""
            raise RunFolderError(
                f"{self.path} holds a {self.kind} with other settings: {'; '.join(differing)}. Give the same ones to "
                f"continue it{may_grow}, or choose another folder with --out."
            )

    def write_result(self, result: SearchResult) -> list[Path]:
        """Write `result.json` and, if there is a best allocation, `allocation.json`; returns what was written."""
        written = [self.path / _RESULT]
        write_atomically(written[0], json_text(result.to_json()))
        if result.best is not None:
            written.append(self.write_allocation(result.best.allocation, result.task.network))
        elif not result.first_answers:
            (self.path / ALLOCATION_FILE).unlink(missing_ok=True)
        return [*written, *self._write_tuned(result)]

    def write_allocation(self, allocation: BitAllocation, network: str) -> Path:
        """Write `allocation.json`, the best answer that there is; returns its path."""
        path = self.path / ALLOCATION_FILE
        write_atomically(path, json_text(allocation.to_json(network)))
        return path

    def _write_tuned(self, result: SearchResult) -> list[Path]:
        """Write the weights of a tuned allocation, as `amed finetune` does; those of an earlier answer go."""
        weights = result.tuned_weights
        if weights is None or result.best is None:
            (self.path / WEIGHTS_FILE).unlink(missing_ok=True)
            return []
        from amed_env.training.checkpoint import write_trained  # torch, which a table's search does without

        evaluator = result.task.evaluator.network_evaluator()
        with evaluator.restored():
            evaluator.adopt(*weights)
            return write_trained(self.path, evaluator, result.best.allocation)[:1]

    def write_pictures(self, result: SearchResult) -> list[Path]:
        """Draw `pareto.png` and `allocation.png`; returns what was written."""
        from amed_env.report import draw_allocation, draw_pareto, png  # matplotlib, which only a search's end needs

        drawings = {"pareto.png": draw_pareto(result), "allocation.png": draw_allocation(result)}
        for name, figure in drawings.items():
            write_atomically(self.path / name, png(figure))
        return [self.path / name for name in drawings]


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
