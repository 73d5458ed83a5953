"""Downloads one file over HTTP: resumed where it was cut off, and kept only if its checksum is right."""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from amed_env.errors import DownloadError

_LOG = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 14  # also what a cut connection may lose
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_WORTH_A_RETRY = (408, 425, 429, 500, 502, 503, 504)  # time-outs, too many requests, passing faults of a server


@dataclass(frozen=True)
class Download:
    """A file on the net.

    Attributes:
        file: Its name, here and at its home.
        home: The official address that the name is appended to; ends with a slash.
        checksum: `algorithm:hex`, such as `sha256:...` or `md5:...`; first digits are enough where no more of it is
            published, as for files that carry them in their name.
        size: Bytes, for progress and messages; the checksum decides.
    """

    file: str
    home: str
    checksum: str
    size: int | None = None

    def digest_of(self, path: Path) -> str:
        """The digest of a file by this file's algorithm, in hexadecimal."""
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, self.checksum.partition(":")[0]).hexdigest()

    def has_digest(self, digest: str) -> bool:
        """Whether a digest is this file's, as far as its digits are known."""
        return digest.startswith(self.checksum.partition(":")[2].lower())

    def url(self, base_url: str | None = None) -> str:
        """The official address, or that on a mirror which has all files in one folder."""
        return self.home + self.file if base_url is None else f"{base_url.rstrip('/')}/{self.file}"


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Attributes:
        attempts: Connections in a row that may bring nothing new.
        pause_s: Seconds before the second attempt; twice as many before each next one.
        connect_timeout_s: Seconds to wait for a connection.
        read_timeout_s: Seconds to wait for the next bytes.
    """

    attempts: int = 5
    pause_s: float = 1.0
    connect_timeout_s: float = 15.0
    read_timeout_s: float = 60.0


def download(
    item: Download,
    folder: Path,
    *,
    progress: bool = True,
    base_url: str | None = None,
    patience: Patience | None = None,
) -> Path:
    """Download a file into a folder, unless it is there already with the right checksum.

    What a cut connection or Ctrl-C left behind is `<file>.part`; the next call goes on from there.

    Args:
        item: What to download.
        folder: Where to put it; made if needed.
        progress: Draw a progress bar on stderr.
        base_url: Mirror to use in place of the official home.
        patience: Retries and timeouts.

    Returns:
        The path of the complete file.

    Raises:
        DownloadError: If the server cannot be reached or refuses, the disk is full, or the checksum is wrong;
            a file with a wrong checksum is deleted.
    """
    target = folder / item.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (target.is_file() and item.has_digest(item.digest_of(target))):
            transfer = _Transfer(item, item.url(base_url), folder / f"{item.file}.part", patience or Patience())
            with _progress_bar(item, progress) as report:
                transfer.run(report)
            transfer.part.replace(target)
    except OSError as error:
        raise disk_error(error, folder) from error
    return target


def disk_error(error: OSError, folder: Path) -> DownloadError:
    """The error of a folder that cannot be written, in words."""
    if error.errno in _FULL_DISK:
        return DownloadError(
            f"the disk of {folder} is full; what was downloaded so far is kept. Free some space, or choose "
            "another folder, and run the same command again to continue."
        )
    return DownloadError(
        f"cannot write to {folder}: {error.strerror or error} ({error.filename or 'no file named'}); "
        "check that the folder may be written, or choose another one."
    )


class _InterruptedError(Exception):
    """The connection ended too early, or a passing fault of the server: worth another attempt."""


_PASSING = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, _InterruptedError)


@dataclass(frozen=True)
class _Transfer:
    """Brings a file from an address, going on with what the `.part` file has."""

    item: Download
    url: str
    part: Path
    patience: Patience

    def run(self, report: Callable[[int, int | None], None]) -> None:
        """Connect until the part file is complete, and check it."""
        self._download(report)
        self._check()

    def _download(self, report: Callable[[int, int | None], None]) -> None:
        furthest, fruitless = self._size(), 0
        while True:
            try:
                return self._connect(report)
            except _PASSING as error:
                # Only new bytes count: a server that starts over and fails each time is not asked for ever.
                fruitless = 0 if self._size() > furthest else fruitless + 1
                furthest = max(furthest, self._size())
                if fruitless >= self.patience.attempts:
                    raise DownloadError(
                        f"cannot download {self.url}: {error} ({fruitless} attempts in a row brought nothing new; "
                        f"{self._size():,} bytes are kept in {self.part}). Check the connection and run the "
                        "same command again to continue."
                    ) from error
                pause = self.patience.pause_s * 2 ** max(0, fruitless - 1)
                _LOG.warning("%s: %s; %s bytes are there; next attempt in %g s", self.url, error, self._size(), pause)
                time.sleep(pause)
            except requests.RequestException as error:
                raise DownloadError(f"cannot download {self.url}: {error}. Check the address.") from error

    def _connect(self, report: Callable[[int, int | None], None]) -> None:
        """One connection, from the end of the part file to the end of the file."""
        have = self._size()
        # Any content encoding would make byte positions meaningless.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        timeout = (self.patience.connect_timeout_s, self.patience.read_timeout_s)
        with requests.get(self.url, headers=headers, stream=True, timeout=timeout) as response:
            total = self._read_status(response, have)
            if have and total == have:
                return
            if response.status_code == requests.codes.ok:
                have = 0  # the server ignores ranges and sends everything
            with self.part.open("ab" if have else "wb") as file:
                report(have, total)
                for chunk in response.iter_content(_CHUNK_BYTES):
                    file.write(chunk)
                    have += len(chunk)
                    report(have, total)
        if total is not None and have < total:
            raise _InterruptedError(f"the connection ended after {have:,} of {total:,} bytes")

    def _read_status(self, response: requests.Response, have: int) -> int | None:
        """Size of the whole file, None if the server does not say; raises if the answer brings no bytes."""
        status = response.status_code
        span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
        if status == requests.codes.partial_content:
            if span is None or span[1] is None or int(span[1]) != have:
                self.part.unlink(missing_ok=True)
                raise _InterruptedError("the server sent another range than asked for; starting over")
            return int(span[2]) if span[2] != "*" else None
        if status == requests.codes.requested_range_not_satisfiable:
            # Nothing lies behind the part file: it is complete, or too long and so of another file.
            if span is not None and span[2] == str(have):
                return have
            self.part.unlink(missing_ok=True)
            raise _InterruptedError("the part file does not belong to this file; starting over")
        if status == requests.codes.ok:
            length = response.headers.get("Content-Length", "")
            return int(length) if length.isdigit() else None
        if status in _WORTH_A_RETRY:
            raise _InterruptedError(f"the server answered {status} {response.reason}")
        raise DownloadError(
            f"cannot download {self.url}: the server answered {status} {response.reason}. If the file has moved, "
            f"download {self.item.file} by hand and put it into {self.part.parent}."
        )

    def _check(self) -> None:
        digest = self.item.digest_of(self.part)
        if self.item.has_digest(digest):
            return
        size = self._size()
        self.part.unlink()
        algorithm, _, expected = self.item.checksum.partition(":")
        of = "" if self.item.size is None else f" of {self.item.size:,}"
        raise DownloadError(
            f"{self.url} brought a damaged or another file: expected {algorithm} {expected}, found {digest} "
            f"({size:,} bytes{of}). It was deleted; run the same command again to download it once more."
        )

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0


@contextmanager
def _progress_bar(item: Download, shown: bool) -> Iterator[Callable[[int, int | None], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bars:
        task = bars.add_task(item.file, total=item.size)

        def report(have: int, total: int | None) -> None:
            bars.update(task, completed=have, total=total if total is not None else item.size)

        yield report
