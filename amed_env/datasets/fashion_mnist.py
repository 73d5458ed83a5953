"""Fashion-MNIST in its official IDX layout: 70,000 grey images of clothes, 28 x 28, in ten classes.

An IDX file is a big-endian header (a magic number, then the size of every dimension) and then plain bytes.
Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms, arXiv 1708.07747, 2017; https://github.com/zalandoresearch/fashion-mnist
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch

from amed_env.datasets.samples import Samples, Splits, balanced_order
from amed_env.datasets.training import TrainingData
from amed_env.errors import DataError
from amed_env.support.data_files import (
    FASHION_FOLDER,
    FASHION_TEST_IMAGES,
    FASHION_TEST_LABELS,
    FASHION_TRAIN_IMAGES,
    FASHION_TRAIN_LABELS,
)
from amed_env.support.location import DATA_DIR_VARIABLE, data_path

CLASSES = 10
IMAGE_SHAPE = (1, 28, 28)
RECORDS = {"train": 60_000, "test": 10_000}

# Validation images chose the hyperparameters of the network, so neither search nor test may use them.
VALIDATION_SAMPLES = 6_000
SEARCH_SAMPLES = 2_000
CALIBRATION_SAMPLES = 4_096

# Another text would assign the images to other splits and make all published figures void.
_TRAIN_SALT = "amed/fashion-mnist/train/1"
_TEST_SALT = "amed/fashion-mnist/test/1"
_IMAGE_HEADER, _LABEL_HEADER = struct.Struct(">IIII"), struct.Struct(">II")
_IMAGE_MAGIC, _LABEL_MAGIC = 0x803, 0x801


def fashion_mnist_splits(folder: Path | None = None, calibration_samples: int = CALIBRATION_SAMPLES) -> Splits:
    """The fixed splits: calibration takes training images, the test file is split into search and test images.

    Every prefix of every part is class-balanced to within one image a class.

    Args:
        folder: The data folder that holds `FashionMNIST/raw`; by default `data_dir()`.
        calibration_samples: How many images of the training part to calibrate with.

    Returns:
        Inputs (N, 1, 28, 28) float32 in 0..1, labels 0..9: 2,000 search and 8,000 test images.

    Raises:
        DataError: If a file is missing or damaged, or there are not as many training images.
    """
    images, labels = read_images("test", folder), read_labels("test", folder)
    order = balanced_order(labels, _TEST_SALT)
    return Splits(
        calibration=fashion_mnist_calibration(folder, calibration_samples),
        search=_samples(images, labels, order[:SEARCH_SAMPLES], "fashion-mnist/search"),
        test=_samples(images, labels, order[SEARCH_SAMPLES:], "fashion-mnist/test"),
    )


def fashion_mnist_calibration(folder: Path | None = None, samples: int = CALIBRATION_SAMPLES) -> Samples:
    """The first images of the training part.

    Raises:
        DataError: If a file is missing or damaged, or there are not as many training images.
    """
    images, labels, (training, _) = _split_train_file(folder)
    if not 1 <= samples <= len(training):
        raise DataError(f"fashion-mnist: {samples} calibration samples asked for; choose 1 to {len(training)}.")
    return _samples(images, labels, training[:samples], "fashion-mnist/calibration")


def fashion_mnist_training(folder: Path | None = None) -> tuple[Samples, Samples]:
    """The two parts of the training file: 54,000 images to train on, and 6,000 to choose hyperparameters by.

    Raises:
        DataError: If a file is missing or damaged.
    """
    images, labels, (training, validation) = _split_train_file(folder)
    return (
        _samples(images, labels, training, "fashion-mnist/training"),
        _samples(images, labels, validation, "fashion-mnist/validation"),
    )


def fashion_mnist_training_data(folder: Path | None = None) -> TrainingData:
    """The same parts for fine-tuning: images mirrored and moved by up to one pixel, as the network was trained.

    Raises:
        DataError: If a file is missing or damaged.
    """
    images, labels, (training, validation) = _split_train_file(folder)
    return TrainingData(
        torch.from_numpy(images[training]).reshape(-1, *IMAGE_SHAPE),
        torch.from_numpy(labels[training].astype(np.int64)),
        _samples(images, labels, validation, "fashion-mnist/validation"),
        shift=1,
        mirrored=True,
        scale=torch.full((1,), 1 / 255),
    )


def _split_train_file(folder: Path | None) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    images, labels = read_images("train", folder), read_labels("train", folder)
    order = balanced_order(labels, _TRAIN_SALT)
    return images, labels, (order[VALIDATION_SAMPLES:], order[:VALIDATION_SAMPLES])


def read_images(part: str, folder: Path | None = None) -> np.ndarray:
    """The images of `train` or `test` in their original order: (N, 28, 28) uint8.

    Raises:
        DataError: If the file is missing or damaged.
    """
    count, (_, height, width) = RECORDS[part], IMAGE_SHAPE
    header = _IMAGE_HEADER.pack(_IMAGE_MAGIC, count, height, width)
    data = _read(
        FASHION_TRAIN_IMAGES if part == "train" else FASHION_TEST_IMAGES, header, count * height * width, folder
    )
    return data.reshape(count, height, width)


def read_labels(part: str, folder: Path | None = None) -> np.ndarray:
    """The labels of `train` or `test` in their original order: (N,) uint8, 0 to 9.

    Raises:
        DataError: If the file is missing or damaged.
    """
    name, count = FASHION_TRAIN_LABELS if part == "train" else FASHION_TEST_LABELS, RECORDS[part]
    labels = _read(name, _LABEL_HEADER.pack(_LABEL_MAGIC, count), count, folder)
    if int(labels.max()) >= CLASSES:
        raise DataError(f"Fashion-MNIST file {name} has a label {labels.max()}, expected 0 to 9: it is damaged.")
    return labels


def _read(name: str, header: bytes, size: int, folder: Path | None) -> np.ndarray:
    """The bytes behind a header that is known beforehand, as one row of uint8."""
    path = data_path(name, folder)
    cure = f"run `amed fetch fashion-cnn`, or set {DATA_DIR_VARIABLE} to the folder that holds {FASHION_FOLDER}."
    try:
        data = path.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "does not exist" if missing else f"cannot be read ({error.strerror})"
        raise DataError(f"Fashion-MNIST file {path} {reason}: {cure}") from error
    if len(data) != len(header) + size or not data.startswith(header):
        raise DataError(
            f"Fashion-MNIST file {path} is no IDX file of {size:,} bytes behind the header {header.hex()} "
            f"(it has {len(data):,} bytes and begins with {data[: len(header)].hex()}); delete it and {cure}"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=len(header))


def _samples(images: np.ndarray, labels: np.ndarray, chosen: np.ndarray, name: str) -> Samples:
    inputs = images[chosen].reshape(-1, *IMAGE_SHAPE).astype(np.float32) / np.float32(255)
    return Samples(torch.from_numpy(inputs), torch.from_numpy(labels[chosen].astype(np.int64)), name)
