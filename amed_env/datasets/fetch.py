"""Fetches data sets and pretrained weights from their official homes into the data folder.

A network's files are a row of `ASSETS`: what to download, how to see that it is installed, how to install it.
"""

from __future__ import annotations

import logging
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import filelock
import torch
from safetensors.torch import save_file

from amed_env.datasets import cifar10
from amed_env.datasets.download import Download, Patience, disk_error, download
from amed_env.datasets.location import data_dir
from amed_env.errors import DataError, DownloadError, NetworkError, UnknownNameError
from amed_env.networks.resnet_cifar import RESNET20_WEIGHTS
from amed_env.networks.weights import read_weights, weights_digest

_LOG = logging.getLogger(__name__)
_DOWNLOADS = "downloads"
_LOCK = ".fetch.lock"
_COPY_BYTES = 1 << 20

RESNET20_DIGEST = "dd23b404be3e7a2813b9ac3b09106e7055253826842257381b35302ed256f995"
"""`weights_digest` of the pretrained ResNet-20, whatever file its tensors lie in."""


@dataclass(frozen=True)
class Asset:
    """Something that a task needs in the data folder.

    Attributes:
        title: For messages.
        path: Where it lies, relative to the data folder.
        source: The file that it is made from.
        is_installed: Whether it lies in a data folder, complete and valid.
        install: Makes it from the downloaded file, given that file and the data folder.
    """

    title: str
    path: str
    source: Download
    is_installed: Callable[[Path], bool]
    install: Callable[[Path, Path], None]


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
        DownloadError: If a download fails or brings another file, or the folder cannot be written.
    """
    if task not in ASSETS:
        raise UnknownNameError("download", task, ASSETS, hint="Tasks that are not listed need none.")
    folder = data_dir() if target_dir is None else Path(target_dir).expanduser()
    assets = ASSETS[task]
    missing = [asset for asset in assets if not asset.is_installed(folder)]
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _only_process(folder):
                # The process that was waited for may have brought them.
                missing = [asset for asset in missing if not asset.is_installed(folder)]
                for asset in missing:
                    archive = download(
                        asset.source,
                        folder / _DOWNLOADS,
                        progress=progress,
                        base_url=base_url,
                        patience=patience,
                    )
                    asset.install(archive, folder)
                    if not asset.is_installed(folder):
                        raise DownloadError(
                            f"{asset.title} is not valid after unpacking {archive}: {folder / asset.path} "
                            "does not hold what is expected; please report this."
                        )
                    archive.unlink()
                _remove_if_empty(folder / _DOWNLOADS)
        except OSError as error:
            raise disk_error(error, folder) from error
    fetched = [Fetched(asset.title, folder / asset.path, asset in missing) for asset in assets]
    for entry in fetched:
        _LOG.info("%s: %s in %s", entry.title, "fetched" if entry.downloaded else "already present", entry.path)
    return fetched


def fetch_cifar10_resnet20(
    target_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    *,
    base_url: str | None = None,
    patience: Patience | None = None,
) -> list[Fetched]:
    """Bring CIFAR-10 and the pretrained ResNet-20 into the data folder: see `fetch`."""
    return fetch("cifar10-resnet20", target_dir, progress=progress, base_url=base_url, patience=patience)


def _cifar10_is_installed(folder: Path) -> bool:
    try:
        for name in (*cifar10.TRAIN_FILES, cifar10.TEST_FILE):
            cifar10.open_records(name, folder)
    except DataError as error:
        _LOG.debug("CIFAR-10 has to be fetched: %s", error)
        return False
    return True


def _install_cifar10(archive: Path, folder: Path) -> None:
    """Unpack the six files of images, and nothing else that an archive may hold.

    Members are copied out as plain bytes under names that are known beforehand, so neither paths nor links
    nor modes of the archive matter. (Python 3.11.0 to 3.11.3 have no extraction filter, and pooch uses it
    from 3.12 on only.)
    """
    wanted = {f"{cifar10.FOLDER}/{name}" for name in (*cifar10.TRAIN_FILES, cifar10.TEST_FILE)}
    (folder / cifar10.FOLDER).mkdir(exist_ok=True)
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                name = str(PurePosixPath(member.name))
                stream = tar.extractfile(member) if name in wanted and member.isfile() else None
                if stream is None:
                    continue
                with _whole_or_nothing(folder / name) as temporary, temporary.open("wb") as file:
                    while block := stream.read(_COPY_BYTES):
                        file.write(block)
                wanted.remove(name)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise DownloadError(f"the archive {archive} cannot be unpacked: {error}; delete it and fetch again.") from error
    if wanted:
        raise DownloadError(f"the archive {archive} has no {', '.join(sorted(wanted))}; delete it and fetch again.")


def _resnet20_is_installed(folder: Path) -> bool:
    try:
        return weights_digest(read_weights(folder / RESNET20_WEIGHTS)) == RESNET20_DIGEST
    except NetworkError as error:
        _LOG.debug("the weights of ResNet-20 have to be fetched: %s", error)
        return False


def _install_resnet20(checkpoint: Path, folder: Path) -> None:
    """Turn the published checkpoint into a safetensors file."""
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        # The network was saved as trained on several GPUs, which puts 'module.' in front of every name.
        tensors = {
            name.removeprefix("module."): tensor.detach().contiguous()
            for name, tensor in state.items()
            if not name.endswith("num_batches_tracked")
        }
        found = weights_digest(tensors)
    except Exception as error:  # torch.load raises whatever its unpickler stumbles over
        raise DownloadError(
            f"the checkpoint {checkpoint} cannot be read: {type(error).__name__}: {error}; delete it and fetch again."
        ) from error
    if found != RESNET20_DIGEST:
        raise DownloadError(
            f"the checkpoint {checkpoint} holds other weights than the published ones: expected digest "
            f"{RESNET20_DIGEST}, found {found}; delete it and fetch again."
        )
    target = folder / RESNET20_WEIGHTS
    target.parent.mkdir(parents=True, exist_ok=True)
    with _whole_or_nothing(target) as temporary:
        save_file(tensors, temporary)


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[Path]:
    """A temporary path beside the target, which replaces it at the end; after a fault nothing is left."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


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


def _remove_if_empty(folder: Path) -> None:
    """Remove the download folder unless it holds a part of a file; called by the only process at work."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if not path.stat().st_size:  # left by pooch in a process that was killed
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


ASSETS: dict[str, tuple[Asset, ...]] = {
    "cifar10-resnet20": (
        Asset(
            title="CIFAR-10",
            path=cifar10.FOLDER,
            source=Download(
                file="cifar-10-binary.tar.gz",
                home="https://www.cs.toronto.edu/~kriz/",
                checksum="md5:c32a1d4ab5d03f1284b67883e8d87530",
                size=170_052_171,
            ),
            is_installed=_cifar10_is_installed,
            install=_install_cifar10,
        ),
        Asset(
            title="pretrained ResNet-20",
            path=RESNET20_WEIGHTS,
            source=Download(
                file="resnet20-12fca82f.th",
                home="https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/",
                # The file's name has the first eight digits.
                checksum="sha256:12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
            ),
            is_installed=_resnet20_is_installed,
            install=_install_resnet20,
        ),
    ),
}
"""What each task needs."""
