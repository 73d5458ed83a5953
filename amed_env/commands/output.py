"""Where a command writes: results to stdout, everything else to stderr, and JSON alone where it is asked for."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.segment import Segment
from rich.text import Text

from amed_env.errors import AmedError
from amed_env.support.files import DISK_ERRORS, json_text
from amed_env.support.text import printable, printable_json

_STDOUT = 1
WIDTH_WITHOUT_TERMINAL = 200
"""Columns of tables that go into a file or a pipe."""


class SafeConsole(Console):
    """A console on which texts of others (names, messages, what programs print) cannot control the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Text of a plain string; escaped here already, so that columns of tables get their width."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Everything that is printed as segments; those that are not Rich's own controls are escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


class Output:
    """The output of one command, as a context manager.

    With `as_json` stdout carries one document and nothing else: what code of a user prints meanwhile goes to stderr,
    and so does what compiled libraries print by themselves, which the HiGHS solver does.

    Args:
        as_json: Whether stdout gets a JSON document in place of tables.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.stderr = SafeConsole(stderr=True)

    def __enter__(self) -> Output:
        self._stdout: TextIO = sys.stdout
        width = None if self._stdout.isatty() else WIDTH_WITHOUT_TERMINAL
        self._console = SafeConsole(file=self._stdout, width=width)
        self._descriptor = _stdout_set_apart(self._stdout) if self.as_json else None
        self._redirection = redirect_stdout(sys.stderr) if self.as_json else nullcontext()
        self._redirection.__enter__()
        self._handler = RichHandler(console=self.stderr, show_time=False, show_path=False, markup=False)
        logging.getLogger("amed_env").addHandler(self._handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("amed_env").removeHandler(self._handler)
        self._redirection.__exit__(kind, error, trace)

    @property
    def live(self) -> bool:
        """Whether progress is drawn: on a terminal, and not beside a JSON document."""
        return self.stderr.is_terminal and not self.as_json

    def show(self, *what: RenderableType) -> None:
        """Print tables and texts on stdout; nothing in JSON mode."""
        if not self.as_json:
            for item in what:
                self._console.print(item, markup=False, soft_wrap=isinstance(item, str))

    def data(self, text: str) -> None:
        """Print the content of a file on stdout, unchanged but on a terminal; nothing in JSON mode."""
        if self._stdout.isatty():
            self.show(text)
        elif not self.as_json:
            self._stdout.write(f"{text}\n")

    def document(self, document: Any) -> None:
        """Print the JSON document; nothing in the other mode."""
        if self.as_json:
            text = printable_json(json_text(document))
            if self._descriptor is None:
                self._stdout.write(text)
                self._stdout.flush()
                return
            rest = text.encode()
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def warn(self, message: str) -> None:
        """Print a warning on stderr."""
        self.stderr.print(Text(printable(f"warning: {message}"), style="yellow"), soft_wrap=True)

    def note(self, message: str) -> None:
        """Print a line on stderr."""
        self.stderr.print(Text(printable(message)), soft_wrap=True)

    @contextmanager
    def status(self, message: str) -> Iterator[Callable[[str], None]]:
        """Show that something is under way, where progress is drawn at all; yields a function that changes the text."""
        if not self.live:
            yield lambda text: None
            return
        with self.stderr.status(message) as status:
            yield status.update


def _stdout_set_apart(stdout: TextIO) -> int | None:
    """A descriptor of the process's stdout, after which descriptor 1 means stderr; None if `stdout` is something else.

    It stays so: libraries keep what they print, and write it when the process ends.
    """
    try:
        if stdout.fileno() != _STDOUT:
            return None
        stdout.flush()
        apart = os.dup(_STDOUT)
        os.dup2(sys.stderr.fileno(), _STDOUT)
    except (OSError, ValueError):  # captured, closed, or no file at all
        return None
    return apart


def show_error(message: str) -> None:
    """Print an error on stderr, as one line however long it is."""
    SafeConsole(stderr=True).print(Text(printable(f"error: {message}"), style="bold red"), soft_wrap=True)


@contextmanager
def keeping_on_disk_errors(kept: str) -> Iterator[None]:
    """A block in which a full disk and the like end the command with what is kept, and how to go on.

    Raises:
        AmedError: In place of the `OSError`.
    """
    try:
        yield
    except OSError as error:
        if not is_disk_error(error):
            raise
        raise AmedError(f"{describe_disk_error(error)}. {kept}; continue with --resume.") from error


def is_disk_error(error: OSError) -> bool:
    """Whether it is a full disk, a missing permission or the like."""
    return error.errno in DISK_ERRORS


def describe_disk_error(error: OSError) -> str:
    """What failed where, in words."""
    where = f" {os.fspath(error.filename)!r}" if isinstance(error.filename, str | bytes | os.PathLike) else ""
    return f"cannot read or write{where}: {error.strerror or error}"


def silence_stdout() -> None:
    """Let what is still buffered for a closed pipe vanish, so that the interpreter ends without a message."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
