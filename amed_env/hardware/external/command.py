"""A device behind a program in any language: the request on its standard input, the answer on its standard output.

Every evaluation starts the program once. It gets files, not pipes, so that neither side can wait for the other, and
leads a process group that is killed as a whole when it is over. Answers of a deterministic program are kept, in memory
and in the trial store of a search, by a digest of the program's files and of the request.
"""

from __future__ import annotations

import errno
import hashlib
import math
import subprocess
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cached_property, partial
from typing import IO, Any

from amed_env.errors import BackendError, DeviceError
from amed_env.hardware.external.command_config import CommandConfig
from amed_env.hardware.external.command_format import ANSWER_FORMAT, read_answer, request_text
from amed_env.hardware.external.processes import (
    LARGEST_OUTPUT_MIB,
    OutputTooLargeError,
    describe_end,
    kill_group,
    tail,
    wait_for,
)
from amed_env.hardware.files.layer_choices import LayerwiseBackend
from amed_env.hardware.protocol import AnswerStore, Capabilities, Cost, require_allowed
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.workload import Workload

_START_ADVICE = {
    errno.ENOENT: "; check its path",
    errno.EACCES: "; make it executable (chmod +x)",
    errno.ENOEXEC: "; its first line must name an interpreter (#!/bin/sh)",
}


class CommandBackend(LayerwiseBackend):
    """A device that a program simulates.

    Args:
        config: The program and what it can do.
    """

    limits_itself = True  # it kills its program by itself and needs no process of its own

    def __init__(self, config: CommandConfig) -> None:
        self.config = config
        self.name, self.description = config.name, config.description
        self.metrics: Mapping[str, str] = config.known_units
        self.bits = tuple(sorted({*config.widths[0], *config.widths[1]}))
        self.layer_pairs = config.layers or {}
        self.timeout_s: float | None = config.timeout_s
        self.retries = config.retries
        self._answers: dict[str, str] = {}
        self._store: AnswerStore | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}

    def __repr__(self) -> str:
        return f"CommandBackend({self.name!r}, {' '.join(self.config.command)!r})"

    def capabilities(self) -> Capabilities:
        """What the configuration declares; the program is not asked."""
        config = self.config
        return Capabilities.same_for_kinds(
            config.simulated_kinds,
            *config.widths,
            self.metrics,
            pairs=config.pairs,
            deterministic=config.deterministic,
            additive=config.additive,
        )

    def keep_answers(self, store: AnswerStore | None) -> None:
        """Keep answers in a store from now on, and look for them there; those in memory go into it at once.

        Raises:
            StoreError: If it cannot be written.
        """
        if store is None or not self.config.deterministic:
            return
        self._store = store
        for question, answer in self._answers.items():
            store.add_answer(question, answer)

    def evaluate(self, workload: Workload, allocation: BitAllocation) -> Cost:
        """Cost of a network under an allocation: one run of the program, unless its answer is known.

        Raises:
            UnsupportedPrecisionError: If a width or a kind of layer is not declared, or the program says so.
            BackendError: If the program cannot be started, takes too long, fails, or answers something else; the
                message has the end of its standard error.
        """
        return self.evaluate_many(workload, [allocation])[0]

    def evaluate_many(self, workload: Workload, allocations: Sequence[BitAllocation]) -> list[Cost]:
        """Costs under many allocations, with as many runs side by side as the configuration has workers."""
        ordered = [a.require_layers(workload.layer_names, f"network {workload.name!r}") for a in allocations]
        for allocation in ordered:
            require_allowed(self, workload, allocation)
        requests = [request_text(workload, allocation, self.config.request) for allocation in ordered]
        questions = [self._question(request) for request in requests]
        texts = [self._known(question) for question in questions]
        missing = [i for i, text in enumerate(texts) if text is None]
        costs: list[Cost | None] = [
            None if text is None else self._read(text, workload, allocation)
            for text, allocation in zip(texts, ordered, strict=True)
        ]
        # The first failure ends it: with a program that hangs, each of the others would cost the whole timeout again.
        with closing(self._runs([requests[i] for i in missing])) as answers:
            for i, answer in zip(missing, answers, strict=True):
                text = answer()
                costs[i] = self._read(text, workload, ordered[i])
                self._keep(questions[i], text)
        return [cost for cost in costs if cost is not None]

    def _read(self, text: str, workload: Workload, allocation: BitAllocation) -> Cost:
        return read_answer(text, workload, allocation, self.name, self.config.conversions)

    def _runs(self, requests: Sequence[str]) -> Generator[Callable[[], str]]:
        """For every request in order a function that returns its answer or raises; workers run ahead."""
        workers = min(self.config.workers, len(requests))
        if workers <= 1:
            for request in requests:
                yield partial(self._run, request)
            return
        group = _Running()
        with ThreadPoolExecutor(workers) as pool:
            runs = [pool.submit(self._run, request, group) for request in requests]
            try:
                for run in runs:
                    yield run.result
            except BaseException:  # a failure or Ctrl-C: nobody waits for the others any more
                for run in runs:
                    run.cancel()
                group.stop()
                raise

    def _known(self, question: str) -> str | None:
        if question not in self._answers and self._store is not None:
            stored = self._store.answer(question)
            if stored is not None:
                self._answers[question] = stored
        return self._answers.get(question)

    def _keep(self, question: str, answer: str) -> None:
        if not self.config.deterministic:
            return
        self._answers[question] = answer
        if self._store is not None:
            self._store.add_answer(question, answer)

    def _question(self, request: str) -> str:
        return hashlib.sha256(f"{self.fingerprint}\n{request}".encode()).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the command line and of every file that it names: a changed program gets asked again."""
        digest = hashlib.sha256(repr((self.config.request, ANSWER_FORMAT, self.config.command)).encode())
        for word in self.config.command:
            path = self.config.folder / word
            if path.is_file():
                with path.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def _run(self, request: str, group: _Running | None = None) -> str:
        """What the program writes on standard output; while it runs it belongs to the group."""
        group = _Running() if group is None else group
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            stdin.write(request.encode())
            stdin.seek(0)
            process = self._start(stdin, stdout, stderr)
            group.add(process)
            try:
                code = wait_for(process, math.inf if self.timeout_s is None else self.timeout_s, (stdout, stderr))
            except OutputTooLargeError:
                raise BackendError(
                    f"device {self.name!r}: {self.config.command[0]} wrote more than {LARGEST_OUTPUT_MIB} MiB on "
                    "standard output or standard error and was killed."
                ) from None
            except subprocess.TimeoutExpired:
                kill_group(process)
                raise BackendError(
                    f"device {self.name!r}: {self.config.command[0]} took longer than {self.timeout_s:g} s and was "
                    f"killed{_stderr_text(stderr)}."
                ) from None
            finally:
                kill_group(process)  # what it started and left behind, and all of it after Ctrl-C
                group.processes.discard(process)
            if code != 0:
                failure = f"{self.config.command[0]} failed with {describe_end(code)}"
                raise BackendError(f"device {self.name!r}: {failure}{_stderr_text(stderr)}.")
            stdout.seek(0)
            try:
                return stdout.read().decode()
            except UnicodeDecodeError as error:
                raise BackendError(f"device {self.name!r}: the answer is no UTF-8 text: {error}.") from error

    def _start(self, stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        first = self.config.command[0]
        # A plain name is looked up on the PATH, as a shell does.
        program = str(self.config.folder / first) if "/" in first else first
        try:
            return subprocess.Popen(
                [program, *self.config.command[1:]],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=self.config.folder,
                start_new_session=True,
            )
        except OSError as error:
            advice = _START_ADVICE.get(error.errno or 0, "")
            raise DeviceError(
                f"device {self.name!r}: cannot start {program}: {error.strerror or error}{advice}."
            ) from error


def _stderr_text(stderr: IO[bytes]) -> str:
    text = tail(stderr)
    return f"; it wrote on standard error: {text}" if text else " and wrote nothing on standard error"


class _Running:
    """Runs that go on side by side and can be ended together."""

    def __init__(self) -> None:
        self.processes: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def add(self, process: subprocess.Popen[bytes]) -> None:
        """Take a run in; one that another thread starts while all are ended is ended too."""
        self.processes.add(process)
        if self.stopped:
            kill_group(process)

    def stop(self) -> None:
        """End all runs."""
        self.stopped = True
        for process in list(self.processes):
            kill_group(process)
