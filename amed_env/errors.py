"""Every error that the package raises on purpose: one root, one class per kind of failure.

A message says what was wrong, where, and what to do about it. `exit_code` is what the command line ends with.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known names, or all of them."""
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if nearest:
        return f"did you mean {' or '.join(map(repr, nearest))}?"
    return f"known: {', '.join(known) or 'none'}."


class AmedError(Exception):
    """Root of all errors raised on purpose by `amed_env`."""

    exit_code = 1


class InputError(AmedError):
    """The caller gave something that cannot be used: a bad name, file, number or combination."""

    exit_code = 2


class UnknownNameError(InputError):
    """A name that no registry knows.

    Args:
        kind: What was looked up, in the singular (`"device"`).
        name: The name that was not found.
        known: The names that exist.
        hint: An extra sentence about where to find or add one.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name, self.known, self.hint = kind, name, sorted(known), hint
        advice = did_you_mean(name, self.known)
        super().__init__(f"unknown {kind} {name!r}; {advice} {hint}".rstrip())

    def __reduce__(self) -> tuple[object, ...]:
        return UnknownNameError, (self.kind, self.name, self.known, self.hint)


class AllocationError(InputError):
    """A bit allocation that is malformed or does not fit the network."""


class WorkloadError(InputError):
    """A layer list that is malformed or impossible."""


class NetworkError(InputError):
    """A network that cannot be traced or quantized."""


class DataError(InputError):
    """Samples or labels that are missing, empty, malformed or inconsistent."""


class ExportError(InputError):
    """A network that a format of export cannot hold, or tools that it needs and that are missing."""


class DisagreementError(AmedError):
    """An export that answers otherwise than the network that was evaluated."""


class NonFiniteError(AmedError):
    """A network produced NaN or infinity.

    Args:
        message: What happened, and where.
        layer: Name of the layer that met it, if it is known.
    """

    def __init__(self, message: str, layer: str | None = None) -> None:
        super().__init__(message)
        self.layer = layer


class DeviceError(InputError):
    """A device description that is malformed."""


class UnsupportedPrecisionError(DeviceError):
    """A device cannot run this kind of layer at this precision."""


class UnsupportedLayerError(UnsupportedPrecisionError):
    """A device, for example a table, that does not know this layer."""


class BackendError(AmedError):
    """A hardware backend failed, or answered something that is no cost."""


class BudgetError(InputError):
    """A budget that is malformed, or that no allocation can meet."""


class AgentError(InputError):
    """An agent that is malformed or cannot work on this task."""


class TableError(AmedError):
    """A quality table that is missing, damaged, too large, or does not have what it is asked for."""


class StoreError(AmedError):
    """The trial store cannot be read, written or locked."""


class RunFolderError(InputError):
    """A run folder that is in use, belongs to another search, or cannot be written."""


class BenchFileError(InputError):
    """A file of benchmark results that is missing, cut off, malformed, or of another benchmark."""


class DownloadError(AmedError):
    """A download failed or did not match its checksum."""


class PluginError(AmedError):
    """A plug-in could not be imported, or is not what its entry point promises."""


class WorkerDiedError(AmedError):
    """A worker process died twice over the same part of the work, the second time with nothing else to do."""


class RenderModeError(InputError, TypeError):
    """An environment cannot be drawn in a way; a `TypeError` too, after which stable-baselines3 goes on without it."""


class SearchEnded(AmedError):  # noqa: N818 - it is no fault, it ends a search
    """The evaluations of a search are used up; raised by `SearchSession.evaluate`, and caught by `Agent.search`."""
