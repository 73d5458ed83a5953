"""Fetches data sets and pretrained weights from their official homes into the data folder.

`datasets.assets` lists what a task needs and how it is installed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from amed_env.datasets.assets import ASSETS, Asset, Provided
from amed_env.datasets.download import Patience, disk_error, download
from amed_env.errors import DownloadError, UnknownNameError
from amed_env.support.location import data_dir

_LOG = logging.getLogger(__name__)
_DOWNLOADS = "downloads"
_LOCK = ".fetch.lock"


@dataclass(frozen=True)
class Fetched:
    """What became of an asset.

    Attributes:
        title: For messages.
        path: Where it lies.
        downloaded: False if it was there already.
    """

    title: str
    path: Path
    downloaded: bool


def fetch(
    task: str,
    target_dir: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
    base_url: str | None = None,
    patience: Patience | None = None,
) -> list[Fetched]:
    """Bring everything that a task needs into the data folder; what is there and valid is left alone.

    An interrupted download goes on where it stopped. A second process waits for the first one.

    Args:
        task: A name in `ASSETS`.
        target_dir: The data folder; by default `data_dir()`.
        progress: Draw progress bars on stderr.
        base_url: A mirror that has all files in one folder, in place of the official homes.
        patience: Retries and timeouts.

    Returns:
        An entry for each asset, in order.

    Raises:
        UnknownNameError: If nothing is known about the task.
        DownloadError: If a download fails or brings another file, the folder cannot be written, or something has to
            be provided by the user; everything else is fetched by then.
    """
    if task not in ASSETS:
        raise UnknownNameError("download", task, ASSETS, hint="Tasks that are not listed need none.")
    folder = data_dir() if target_dir is None else Path(target_dir).expanduser()
    assets = [asset for asset in ASSETS[task] if isinstance(asset, Asset)]
    missing = [asset for asset in assets if not asset.is_installed(folder)]
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _only_process(folder):
                # The process that was waited for may have brought them.
                missing = [asset for asset in missing if not asset.is_installed(folder)]
                for asset in missing:
                    archive = download(
                        asset.source, folder / _DOWNLOADS, progress=progress, base_url=base_url, patience=patience
                    )
                    asset.install(archive, folder)
                    if not asset.is_installed(folder):
                        raise DownloadError(
                            f"{asset.title} is not valid after unpacking {archive}: {folder / asset.path} "
                            "does not hold what is expected; please report this."
                        )
                    archive.unlink()
                downloads = folder / _DOWNLOADS
                if downloads.is_dir() and not any(downloads.iterdir()):  # a part of another file may be there
                    downloads.rmdir()
        except OSError as error:
            raise disk_error(error, folder) from error
    fetched = [Fetched(asset.title, folder / asset.path, asset in missing) for asset in assets]
    for entry in fetched:
        _LOG.info("%s: %s in %s", entry.title, "fetched" if entry.downloaded else "already present", entry.path)
    return fetched + _find_provided(task, folder)


def _find_provided(task: str, folder: Path) -> list[Fetched]:
    """What the user has to provide, after checking that it is there."""
    provided = [asset for asset in ASSETS[task] if isinstance(asset, Provided)]
    lacking = [asset for asset in provided if not asset.is_installed(folder)]
    if lacking:
        recipes = "; ".join(f"{asset.title} as {folder / asset.path}: {asset.origin}" for asset in lacking)
        raise DownloadError(f"{task} needs what cannot be downloaded in a form that amed reads. Provide {recipes}.")
    return [Fetched(asset.title, folder / asset.path, False) for asset in provided]


@contextmanager
def _only_process(folder: Path) -> Iterator[None]:
    lock = filelock.FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        _LOG.warning("another process is fetching into %s; waiting for it to end", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
