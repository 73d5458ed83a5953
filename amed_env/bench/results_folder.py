"""A folder of results: one file an agent, written run by run, so that nothing finished is lost."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import filelock
from pydantic import ValidationError

from amed_env.bench.contender import Contender
from amed_env.bench.result_file import (
    SUFFIX,
    Header,
    ResultFile,
    Run,
    contents_of,
    line_of,
    problems_of,
    read_result,
    whole_lines,
)
from amed_env.bench.suites import Cell, Cells, Suite, cell_task, task_digest
from amed_env.errors import InputError, RunFolderError
from amed_env.support.files import write_atomically
from amed_env.support.machine import machine_text, versions


def make_header(
    contender: Contender, suite: Suite, which: Cells, cells: Sequence[Cell], evaluations: int, seeds: int
) -> Header:
    """The header of an agent's file.

    Raises:
        AmedError: If the agent or a task cannot be made, or a budget cannot be met.
        InputError: If the agent's name or a number cannot stand in a file of results.
    """
    described = contender.describe()
    digests = {cell.task: task_digest(cell_task(cell)) for cell in cells}
    try:
        return Header(
            suite=suite.name,
            cells=which.value,
            agent=contender.name,
            spec=contender.spec,
            options=dict(contender.options),
            family=described.family,
            description=described.text,
            evaluations=evaluations,
            seeds=seeds,
            saw=described.saw,
            versions=versions(described.libraries),
            tables=digests,
            machine=machine_text(),
            made=datetime.now(UTC).date().isoformat(),
        )
    except ValidationError as error:
        raise InputError(
            f"results of {contender.spec!r} cannot be written: {'; '.join(problems_of(error))}."
        ) from error


class AgentFile:
    """The file of one agent while its runs are made, as a context manager that keeps other processes out.

    Args:
        folder: The folder of results; it is made if it does not exist.
        stem: The file's name without its ending.
        header: Its header.
        cells: Cells in the order that the finished file has.
        resume: Whether runs that it holds are kept and continued.

    Attributes:
        path: The file.
        done: Finished runs by cell and seed.

    Raises:
        RunFolderError: On entering, if another process writes it, it is there and `resume` is false, or it is of
            another benchmark.
        BenchFileError: On entering, if what is there is damaged.
    """

    def __init__(self, folder: Path, stem: str, header: Header, cells: Sequence[Cell], resume: bool) -> None:
        self.path = folder / f"{stem}{SUFFIX}"
        self.header, self.resume = header, resume
        self.done: dict[tuple[Cell, int], Run] = {}
        self._order = {cell: position for position, cell in enumerate(cells)}
        self._lock = filelock.FileLock(folder / f".{stem}.lock", timeout=0)

    def __enter__(self) -> AgentFile:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise RunFolderError(f"{self.path.parent} is no folder; choose another one with --out.") from None
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise RunFolderError(
                f"{self.path} is being written by another process; wait for it, or choose another folder with --out."
            ) from None
        try:
            self._open()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        if self._lock.is_locked:
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def _open(self) -> None:
        if not self.path.exists():
            write_atomically(self.path, line_of(self.header))
            return
        if not self.resume:
            raise RunFolderError(
                f"{self.path} is there already; continue it with --resume, or choose another folder with --out."
            )
        whole = whole_lines(self.path)
        if not whole:
            write_atomically(self.path, line_of(self.header))
            return
        if whole != self.path.read_bytes():  # a run was being written when the process was killed
            write_atomically(self.path, whole)
        before = read_result(self.path)
        self._check_same(before)
        self.done = {run.key: run for run in before.runs}

    def _check_same(self, before: ResultFile) -> None:
        old, new = before.header.model_dump(), self.header.model_dump()
        # Date and machine change nothing; digests of recipes are in older files only.
        compared = [name for name in new if name not in ("made", "machine", "recipe")]
        differing = [name for name in compared if old[name] != new[name]]
        if differing:
            changes = "; ".join(f"{name} (there {old[name]!r}, now {new[name]!r})" for name in differing)
            raise RunFolderError(
                f"{self.path} holds runs of other settings: {changes}. Give the same ones to continue it, or choose "
                "another folder with --out."
            )
        self.header = before.header

    def add(self, run: Run) -> None:
        """Write a finished run.

        Raises:
            OSError: If it cannot be written; the file then ends with the run before.
        """
        with self.path.open("r+b", buffering=0) as stream:  # a buffer would write what failed again when it closes
            end = stream.seek(0, os.SEEK_END)
            line = line_of(run)
            try:
                while line:
                    line = line[stream.write(line) :]
                os.fsync(stream.fileno())
            except BaseException:
                stream.truncate(end)
                raise
        self.done[run.key] = run

    def missing(self, cells: Iterable[Cell], seeds: int) -> list[tuple[Cell, int]]:
        """Cells and seeds that are still to be run."""
        return [(cell, seed) for cell in cells for seed in range(seeds) if (cell, seed) not in self.done]

    def sort(self) -> None:
        """Bring the runs into the order of cells and seeds, whatever order they ended in."""
        runs = sorted(self.done.values(), key=lambda run: (self._order.get(run.cell, len(self._order)), run.seed))
        if runs != list(self.done.values()):
            write_atomically(self.path, contents_of(self.header, runs))
            self.done = {run.key: run for run in runs}
