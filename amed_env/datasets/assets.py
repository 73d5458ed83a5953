"""What every task of this package needs in the data folder, where it comes from, and how it is installed.

A task's files are a row of `ASSETS`: what to download, how to see that it is installed, how to install it.
"""

from __future__ import annotations

import gzip
import logging
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import torch
from safetensors.torch import save

from amed_env.datasets import cifar10, fashion_mnist, keywords
from amed_env.datasets.download import Download
from amed_env.errors import DataError, DownloadError, NetworkError
from amed_env.networks.mlperf_tiny import pretrained_ds_cnn, pretrained_resnet8
from amed_env.networks.resnet_cifar import DIGESTS
from amed_env.networks.weights import read_weights, weights_digest
from amed_env.support.data_files import (
    CIFAR10_FILES,
    CIFAR10_FOLDER,
    CIFAR10_TEST_FILE,
    CIFAR10_TRAIN_FILES,
    DS_CNN_WEIGHTS,
    FASHION_TEST_IMAGES,
    FASHION_TEST_LABELS,
    FASHION_TRAIN_IMAGES,
    FASHION_TRAIN_LABELS,
    KEYWORDS_FILE,
    RESNET8_WEIGHTS,
    RESNET20_WEIGHTS,
    RESNET56_WEIGHTS,
)
from amed_env.support.files import write_atomically

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asset:
    """Something that a task needs in the data folder and that can be downloaded.

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
class Provided:
    """Something that a task needs and that no official home has in a form that can be read.

    Attributes:
        title: For messages.
        path: Where it must lie, relative to the data folder.
        origin: What it is made from, for messages.
        is_installed: Whether it lies in a data folder, complete and valid.
    """

    title: str
    path: str
    origin: str
    is_installed: Callable[[Path], bool]


def _loads(load: Callable[[Path], object], folder: Path) -> bool:
    """Whether something can be loaded from a data folder."""
    try:
        load(folder)
    except (DataError, NetworkError) as error:
        _LOG.debug("it has to be fetched or provided: %s", error)
        return False
    return True


def _open_cifar10(folder: Path) -> None:
    for name in (*CIFAR10_TRAIN_FILES, CIFAR10_TEST_FILE):
        cifar10.open_records(name, folder)


def _install_cifar10(archive: Path, folder: Path) -> None:
    """Unpack the six files of images, and nothing else that an archive may hold.

    Members are copied out as plain bytes under names that are known beforehand, so neither paths nor links
    nor modes of the archive matter. (Python 3.11.0 to 3.11.3 have no extraction filter.)
    """
    missing = set(CIFAR10_FILES)
    (folder / CIFAR10_FOLDER).mkdir(exist_ok=True)
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                name = str(PurePosixPath(member.name))
                stream = tar.extractfile(member) if name in missing and member.isfile() else None
                if stream is not None:
                    write_atomically(folder / name, stream.read())
                    missing.remove(name)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise DownloadError(f"the archive {archive} cannot be unpacked: {error}; delete it and fetch again.") from error
    if missing:
        raise DownloadError(f"the archive {archive} has no {', '.join(sorted(missing))}; delete it and fetch again.")


def _install_gzip(name: str, archive: Path, folder: Path) -> None:
    """Unpack a single file."""
    try:
        with gzip.open(archive) as stream:
            content = stream.read()
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DownloadError(f"{archive} cannot be unpacked: {error}; delete it and fetch again.") from error
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / name, content)


def _load_published(name: str, folder: Path) -> None:
    digest = weights_digest(read_weights(folder / name))
    if digest != DIGESTS[name]:
        raise NetworkError(f"{folder / name} holds other weights than the published ones (digest {digest}).")


def _install_checkpoint(name: str, checkpoint: Path, folder: Path) -> None:
    """Turn a published checkpoint of torch into a safetensors file."""
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        # The networks were saved as trained on several GPUs, which puts 'module.' in front of every name.
        tensors = {
            name.removeprefix("module."): tensor.detach().contiguous()
            for name, tensor in state.items()
            if not name.endswith("num_batches_tracked")
        }
        digest = weights_digest(tensors)
    except Exception as error:  # torch.load raises whatever its unpickler stumbles over
        raise DownloadError(
            f"the checkpoint {checkpoint} cannot be read: {type(error).__name__}: {error}; delete it and fetch again."
        ) from error
    if digest != DIGESTS[name]:
        raise DownloadError(
            f"the checkpoint {checkpoint} holds other weights than the published ones: expected digest "
            f"{DIGESTS[name]}, found {digest}; delete it and fetch again."
        )
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / name, save(tensors))


_CIFAR10 = Asset(
    title="CIFAR-10",
    path=CIFAR10_FOLDER,
    source=Download(
        file="cifar-10-binary.tar.gz",
        home="https://www.cs.toronto.edu/~kriz/",
        checksum="md5:c32a1d4ab5d03f1284b67883e8d87530",
        size=170_052_171,
    ),
    is_installed=partial(_loads, _open_cifar10),
    install=_install_cifar10,
)


def _published_resnet(title: str, weights: str, file: str, checksum: str) -> Asset:
    return Asset(
        title=title,
        path=weights,
        source=Download(
            file=file,
            home="https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/",
            checksum=checksum,
        ),
        is_installed=partial(_loads, partial(_load_published, weights)),
        install=partial(_install_checkpoint, weights),
    )


def _fashion_file(name: str, md5: str) -> Asset:
    read = fashion_mnist.read_images if "images" in name else fashion_mnist.read_labels
    part = "train" if "train" in name else "test"
    return Asset(
        title=f"Fashion-MNIST, {Path(name).name}",
        path=name,
        source=Download(
            file=f"{Path(name).name}.gz",
            home="https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            checksum=f"md5:{md5}",
        ),
        is_installed=partial(_loads, partial(read, part)),
        install=partial(_install_gzip, name),
    )


def _tiny_weights(title: str, weights: str, folder: str, layers: str, load: Callable[[Path], object]) -> Provided:
    # No digest: users make these files, and the last bits depend on how the batch norms were folded.
    return Provided(
        title=title,
        path=weights,
        origin=f"https://github.com/mlcommons/tiny, benchmark/training/{folder}/trained_models, has it for TensorFlow "
        f"only; fold its batch norms and save {layers}, weights and biases in torch's layout, as safetensors",
        is_installed=partial(_loads, load),
    )


ASSETS: dict[str, tuple[Asset | Provided, ...]] = {
    "cifar10-resnet8": (
        _CIFAR10,
        _tiny_weights(
            "the trained ResNet-8",
            RESNET8_WEIGHTS,
            "image_classification",
            "conv0 to conv8 (each block's shortcut after its two convolutions) and fc9",
            pretrained_resnet8,
        ),
    ),
    "cifar10-resnet20": (
        _CIFAR10,
        # The names of the files have the first eight digits of the checksums.
        _published_resnet(
            "pretrained ResNet-20",
            RESNET20_WEIGHTS,
            "resnet20-12fca82f.th",
            "sha256:12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
        ),
    ),
    "cifar10-resnet56": (
        _CIFAR10,
        _published_resnet("pretrained ResNet-56", RESNET56_WEIGHTS, "resnet56-4bfd9763.th", "sha256:4bfd9763"),
    ),
    "fashion-cnn": (
        _fashion_file(FASHION_TRAIN_IMAGES, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        _fashion_file(FASHION_TRAIN_LABELS, "25c81989df183df01b3e8a0aad5dffbe"),
        _fashion_file(FASHION_TEST_IMAGES, "bef4ecab320f06d8554ea6380940ec79"),
        _fashion_file(FASHION_TEST_LABELS, "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    "kws-dscnn": (
        Provided(
            title="the keyword samples",
            path=KEYWORDS_FILE,
            origin="the 1,000 files of https://github.com/eembc/energyrunner, datasets/kws01, in the order of their "
            "y_labels.csv, as arrays x int8 (1000, 490), y uint8 (1000,), and the quantization scale and zero point "
            "of the benchmark's input",
            is_installed=partial(_loads, keywords.keyword_samples),
        ),
        _tiny_weights(
            "the trained DS-CNN", DS_CNN_WEIGHTS, "keyword_spotting", "conv0 to conv8 and fc9", pretrained_ds_cnn
        ),
    ),
}
"""What each task needs."""
