"""A Python device in a process of its own, so that one that hangs or dies can be ended and restarted.

Nothing inside one Python process can stop code that hangs in a C library, or survive `os.abort()`. A device that
declares `timeout_s` therefore runs in a child process, which is killed with everything that it started when a call
takes longer, and started again for the next call. For a network of 20 layers a call takes 0.4 ms more than a direct
one, and the start 0.6 s, so devices that cannot hang (the simulators of this package) stay in the caller's process.

The child is a fresh interpreter that imports the device's class: the class must be in a module that can be
imported, not in the script that is run (`__main__`), and the device must be picklable, as `check_hardware` demands.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import IO, Any

from amed_env.errors import AmedError, BackendError, InputError, PluginError
from amed_env.hardware.external.processes import (
    LARGEST_OUTPUT_MIB,
    LOOK_S,
    describe_end,
    kill_group,
    tail,
    written_bytes,
)
from amed_env.hardware.protocol import (
    Capabilities,
    Cost,
    CostTable,
    HardwareBackend,
    changed_copy,
    question_to,
)
from amed_env.hardware.refusals import without_refused
from amed_env.problem.allocation import BitAllocation, Precision
from amed_env.problem.workload import Layer, Workload

START_TIMEOUT_S = 120.0
"""Seconds that the child may take to import the device; the device's own limit begins afterwards."""
_PARENT_CHECK_S = 0.5
_CHILD = "import sys; from amed_env.hardware.external.isolation import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"


class IsolatedBackend(HardwareBackend):
    """A device that runs in a process of its own, with a limit on the time of every call.

    Args:
        inner: The device; must be picklable.
        timeout_s: Seconds that a call may take.
        retries: Further tries after a failure; by default those of the device.

    Raises:
        InputError: If the limit is no positive number.
        PluginError: If the device cannot be sent to another process.
    """

    def __init__(self, inner: HardwareBackend, timeout_s: float, retries: int | None = None) -> None:
        _check_limit(inner, timeout_s)
        self.name, self.metrics, self.bits = inner.name, inner.metrics, inner.bits
        self.description = getattr(inner, "description", None) or (type(inner).__doc__ or "").strip()
        self.timeout_s, self.retries = float(timeout_s), inner.retries if retries is None else retries
        if type(inner).__module__ == "__main__":
            raise PluginError(
                f"device {inner.name!r}: its class {type(inner).__qualname__} is defined in the script that is run, "
                "which a second process cannot import; put it into a module of its own, or leave timeout_s out."
            )
        try:
            self._pickled = pickle.dumps(inner)
        except Exception as error:
            raise PluginError(
                f"device {inner.name!r} cannot be sent to a process of its own: {type(error).__name__}: {error}. "
                "Make it picklable, or leave timeout_s out."
            ) from error
        self._question = question_to(type(inner))
        self._child: _Child | None = None
        self._capabilities: Capabilities | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_child": None}

    def __repr__(self) -> str:
        return f"IsolatedBackend({self.name!r}, timeout_s={self.timeout_s:g})"

    def capabilities(self) -> Capabilities:
        """See `HardwareBackend.capabilities`; asked for once."""
        if self._capabilities is None:
            answer: Capabilities = self._request("capabilities")
            self._capabilities = answer
        return self._capabilities

    def allowed_precisions(
        self, workload: Workload, precisions: Sequence[Precision]
    ) -> Sequence[Collection[Precision]]:
        """See `HardwareBackend.allowed_precisions`; every question has the whole limit of time."""
        if self._question is not None:
            allowed = super().allowed_precisions(workload, precisions)
            return without_refused(self, workload, allowed, self._question)
        answer: Sequence[Collection[Precision]] = self._request("allowed_precisions", workload, tuple(precisions))
        return answer

    def layer_cost(self, layer: Layer, precision: Precision) -> Mapping[str, float]:
        """See `HardwareBackend.layer_cost`."""
        answer: Mapping[str, float] = self._request("layer_cost", layer, precision)
        return answer

    def evaluate(self, workload: Workload, allocation: BitAllocation) -> Cost:
        """See `HardwareBackend.evaluate`.

        Raises:
            BackendError: If it takes too long, or its process dies.
        """
        answer: Cost = self._request("evaluate", workload, allocation)
        return answer

    def table(self, workload: Workload, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> CostTable | None:
        """See `HardwareBackend.table`."""
        answer: CostTable | None = self._request("table", workload, tuple(weight_bits), tuple(activation_bits))
        return answer

    def lower_bound(
        self, workload: Workload, weight_bits: Sequence[int], activation_bits: Sequence[int]
    ) -> CostTable | None:
        """See `HardwareBackend.lower_bound`."""
        answer: CostTable | None = self._request("lower_bound", workload, tuple(weight_bits), tuple(activation_bits))
        return answer

    def sample_workload(self) -> Workload | None:
        """See `HardwareBackend.sample_workload`."""
        answer: Workload | None = self._request("sample_workload")
        return answer

    def close(self) -> None:
        """End the process; the next call starts a new one."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _request(self, method: str, *arguments: Any) -> Any:
        if self._child is None:
            self._child = _start(self.name, self._pickled)
        try:
            answer = self._child.ask((method, arguments), self.timeout_s or START_TIMEOUT_S, f"{method}()")
        except BaseException:  # Ctrl-C too: an answer that comes later must not be taken for that of the next call
            self.close()
            raise
        kind, value = answer
        if kind == "error":
            raise value
        if kind == "failed":
            raise BackendError(f"device {self.name!r}: {method}() failed: {value}.")
        return value


@dataclass
class _Child:
    """The process of a device, as its parent sees it."""

    device: str
    process: subprocess.Popen[bytes]
    connection: Connection
    output: IO[bytes]

    def __post_init__(self) -> None:
        self.end = weakref.finalize(self, _end, self.process, self.connection, self.output)

    def ask(self, request: object, timeout_s: float, what: str) -> Any:
        """Send a request and wait for its answer.

        Raises:
            BackendError: If the process dies, or no answer comes in time.
        """
        try:
            # The file is shared with the child, position and all: what earlier calls wrote is let go.
            self.output.truncate(0)
            self.output.seek(0)
            self.connection.send(request)
            if self._answers_in(timeout_s, what):
                return self.connection.recv()
        except (EOFError, ConnectionError, OSError):
            code = self.process.wait()
            output = tail(self.output)
            raise BackendError(
                f"device {self.device!r}: its process died during {what} ({describe_end(code)})."
                + (f" It wrote: {output}" if output else "")
            ) from None
        raise BackendError(f"device {self.device!r}: {what} took longer than {timeout_s:g} s; its process was ended.")

    def _answers_in(self, timeout_s: float, what: str) -> bool:
        end = time.monotonic() + timeout_s
        while not self.connection.poll(min(LOOK_S, max(0.0, end - time.monotonic()))):
            if written_bytes(self.output) > LARGEST_OUTPUT_MIB * 2**20:
                raise BackendError(
                    f"device {self.device!r}: it printed more than {LARGEST_OUTPUT_MIB} MiB during {what}; its process "
                    "was ended."
                )
            if time.monotonic() >= end:
                return False
        return True


def _end(process: subprocess.Popen[bytes], connection: Connection, output: IO[bytes]) -> None:
    connection.close()
    kill_group(process)
    output.close()


def _start(device: str, pickled: bytes) -> _Child:
    """Start the process of a device and wait until it has imported it."""
    ours, theirs = multiprocessing.Pipe()
    output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
    child = _Child(device, process, ours, output)
    try:
        kind, value = child.ask(pickled, START_TIMEOUT_S, "its import")
    except BaseException:
        child.end()
        raise
    if kind != "ready":
        child.end()
        raise PluginError(f"device {device!r} cannot be loaded in a process of its own: {value}.")
    return child


def serve(descriptor: int, parent: int) -> None:
    """What the child does: answer requests until the parent closes the connection or is gone."""
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    connection = Connection(descriptor)
    try:
        device = pickle.loads(connection.recv())  # from the parent alone, over a pipe that nobody else holds
    except Exception as error:
        connection.send(("failed", f"{type(error).__name__}: {error}"))
        return
    connection.send(("ready", None))
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        connection.send(_answer(device, method, arguments))


def _answer(device: HardwareBackend, method: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        answer: tuple[str, Any] = ("ok", getattr(device, method)(*arguments))
        pickle.dumps(answer)  # here, where the device can be blamed, and not inside the connection
    except AmedError as error:
        answer = ("error", error)
        try:  # an error of a device's own class may pickle and still not be made again by the parent
            pickle.loads(pickle.dumps(answer))
        except Exception:
            return ("failed", str(error))
    except (Exception, SystemExit) as error:
        return ("failed", f"{type(error).__name__}: {error}")
    return answer


def _leave_with(parent: int) -> None:
    """End this process when the parent is gone, even if the device hangs and nobody reads the connection."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    with contextlib.suppress(OSError):
        os.killpg(0, 9)


def isolated(backend: HardwareBackend, timeout_s: float | None = None, retries: int | None = None) -> HardwareBackend:
    """The device in a process of its own if a limit is given or declared; itself otherwise.

    The caller's device is never changed: with another limit or other retries than its own, the answer is a copy.

    Args:
        backend: The device.
        timeout_s: Seconds that a call may take; None takes the device's own `timeout_s`.
        retries: Further tries after a failure; None takes the device's own.

    Raises:
        InputError: If the limit is no positive number, or `retries` is no whole number.
        PluginError: If the device cannot be copied, or not be sent to another process.
    """
    settings: dict[str, Any] = {}
    if retries is not None:
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise InputError(f"device {backend.name!r}: retries is {retries!r}; give a whole number, 0 for none.")
        settings["retries"] = retries
    if backend.limits_itself or isinstance(backend, IsolatedBackend):
        if timeout_s is not None:
            _check_limit(backend, timeout_s)
            settings["timeout_s"] = float(timeout_s)
        return changed_copy(backend, **settings)
    limit = backend.timeout_s if timeout_s is None else timeout_s
    return changed_copy(backend, **settings) if limit is None else IsolatedBackend(backend, limit, retries)


def _check_limit(backend: HardwareBackend, timeout_s: float) -> None:
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < float("inf"):
        raise InputError(f"device {backend.name!r}: timeout_s is {timeout_s!r}; give a positive number of seconds.")
