"""What went wrong with a device during a search: counted, with the first messages kept."""

from __future__ import annotations

from amed_env.errors import BackendError

_KEPT_MESSAGES = 100  # of a device that fails ten thousand times the rest says nothing new


class FaultLog:
    """Counts failing calls of a device; one log serves a task and all its copies.

    Attributes:
        count: Calls that failed for good.
        consecutive: Those that failed one after the other, up to now.
        retried: Calls that failed and were made again.
        messages: Messages of the first hundred calls that failed for good.
    """

    def __init__(self) -> None:
        self.count = 0
        self.consecutive = 0
        self.retried = 0
        self.messages: list[str] = []

    def add(self, error: BackendError) -> None:
        """Count a call that failed for good."""
        self.count += 1
        self.consecutive += 1
        if len(self.messages) < _KEPT_MESSAGES:
            self.messages.append(str(error))

    def add_retry(self, error: BackendError) -> None:
        """Count a call that failed and is made again."""
        self.retried += 1

    def succeeded(self) -> None:
        """A call succeeded: whatever went wrong before is over."""
        self.consecutive = 0

    def summary(self) -> str:
        """One sentence for the end of a search; empty if nothing went wrong."""
        if not self.count and not self.retried:
            return ""
        text = f"{self.count} calls of the device failed for good, {self.retried} were made again"
        return f"{text}; the first failure: {self.messages[0]}" if self.messages else f"{text}."
