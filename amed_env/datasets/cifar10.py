"""CIFAR-10 in its official binary layout: 60,000 colour images of 32 x 32 in ten classes.

A file is 10,000 records of 3,073 bytes: the label, then 1,024 red, 1,024 green and 1,024 blue bytes, row by
row.
Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009;
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from amed_env.datasets.samples import Samples, Splits, balanced_order
from amed_env.datasets.training import TrainingData
from amed_env.errors import DataError
from amed_env.support.data_files import CIFAR10_FOLDER, CIFAR10_TEST_FILE, CIFAR10_TRAIN_FILES
from amed_env.support.location import DATA_DIR_VARIABLE, data_path

CLASSES = 10
IMAGE_SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32
RECORDS_PER_FILE = 10_000

# All 50,000 training images were seen by the pretrained networks, so search and test images come from the test file.
SEARCH_SAMPLES = 2_000
CALIBRATION_SAMPLES = 8_192
VALIDATION_SAMPLES = 5_000
SHIFT = 4
"""Pixels by which training images move at the most."""

# The statistics of ImageNet, not those of CIFAR-10: the pretrained ResNets were trained with them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Another text would assign the images to other splits and make all published figures void.
_TEST_SALT = "amed/cifar10/test/1"
_CALIBRATION_SALT = "amed/cifar10/calibration/1"


def cifar10_splits(
    folder: Path | None = None, calibration_samples: int = CALIBRATION_SAMPLES, *, raw: bool = False
) -> Splits:
    """The fixed splits for a network that was trained on all 50,000 training images.

    Calibration takes training images; the test file is split once into 2,000 search and 8,000 test images,
    200 and 800 a class. Every prefix of every part is class-balanced to within one image a class.

    Args:
        folder: The data folder that holds `cifar-10-batches-bin`; by default `data_dir()`.
        calibration_samples: How many training images to calibrate with, 1 to 50,000.
        raw: Leave the pixels from 0 to 255, for networks that were trained so.

    Returns:
        Inputs (N, 3, 32, 32) float32, normalised by the ImageNet mean and deviation unless `raw`; labels 0..9.

    Raises:
        DataError: If a file is missing or damaged, or there are not as many training images.
    """
    test_records = open_records(CIFAR10_TEST_FILE, folder)
    order = balanced_order(test_records[:, 0], _TEST_SALT)
    return Splits(
        calibration=cifar10_calibration(folder, calibration_samples, raw=raw),
        search=_samples(test_records[order[:SEARCH_SAMPLES]], "cifar10/search", raw),
        test=_samples(test_records[order[SEARCH_SAMPLES:]], "cifar10/test", raw),
        # No index is in two parts. Copies within the data set itself would be no fault of the split, and
        # hashing would take longer than reading.
        allow_duplicates=True,
    )


def cifar10_calibration(
    folder: Path | None = None, samples: int = CALIBRATION_SAMPLES, *, raw: bool = False
) -> Samples:
    """The first training images of a fixed, class-balanced order; only these are turned into floats.

    Raises:
        DataError: If a file is missing or damaged, or there are not as many training images.
    """
    files, order = _ordered_train_files(folder)
    if not 1 <= samples <= len(order):
        raise DataError(f"cifar10: {samples} calibration samples asked for; choose 1 to {len(order)}.")
    return _samples(_records(files, order[:samples]), "cifar10/calibration", raw)


def cifar10_training(folder: Path | None = None, *, raw: bool = False) -> TrainingData:
    """45,000 training images to train on, mirrored and moved by up to four pixels, and 5,000 to validate by.

    The pretrained networks saw all of them. Calibration images are among those that are trained on; validation images
    are the last of the same order. Pixels that come in at the border are black.

    Raises:
        DataError: If a file is missing or damaged.
    """
    files, order = _ordered_train_files(folder)
    records = _records(files, order[:-VALIDATION_SAMPLES])
    scale, offset = np.ones(len(MEAN)), np.zeros(len(MEAN))
    if not raw:
        scale, offset = 1 / (255 * np.asarray(STD)), -np.asarray(MEAN) / np.asarray(STD)
    return TrainingData(
        torch.from_numpy(records[:, 1:].reshape(-1, *IMAGE_SHAPE)),
        torch.from_numpy(records[:, 0].astype(np.int64)),
        _samples(_records(files, order[-VALIDATION_SAMPLES:]), "cifar10/validation", raw),
        shift=SHIFT,
        mirrored=True,
        scale=torch.from_numpy(scale.astype(np.float32)),
        offset=torch.from_numpy(offset.astype(np.float32)),
    )


# Networks of MLPerf Tiny take pixels as they are stored.
cifar10_raw_splits = partial(cifar10_splits, raw=True)
cifar10_raw_training = partial(cifar10_training, raw=True)


def _ordered_train_files(folder: Path | None) -> tuple[list[np.ndarray], np.ndarray]:
    """The records of all training files, and the fixed, class-balanced order of their images."""
    files = [open_records(name, folder) for name in CIFAR10_TRAIN_FILES]
    labels = np.concatenate([records[:, 0] for records in files])
    return files, balanced_order(labels, _CALIBRATION_SALT)


def _records(files: list[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    per_file = len(files[0])
    return np.stack([files[index // per_file][index % per_file] for index in chosen])


def cifar10_test_file(folder: Path | None = None, *, raw: bool = False) -> Samples:
    """All 10,000 images of the test file in their original order: for comparison with published figures only.

    Raises:
        DataError: If the file is missing or damaged.
    """
    return _samples(np.asarray(open_records(CIFAR10_TEST_FILE, folder)), "cifar10/test file", raw)


def open_records(name: str, folder: Path | None = None) -> np.ndarray:
    """Map one file into memory.

    Args:
        name: A file of the layout, such as `test_batch.bin`.
        folder: The data folder that holds `cifar-10-batches-bin`; by default `data_dir()`.

    Returns:
        (10,000, 3,073) uint8, read-only and read from disk where it is touched; column 0 is the label.

    Raises:
        DataError: If the file is missing, has the wrong size, or a label is not 0..9.
    """
    path = data_path(f"{CIFAR10_FOLDER}/{name}", folder)
    expected = RECORD_BYTES * RECORDS_PER_FILE
    cure = f"run `amed fetch cifar10-resnet20`, or set {DATA_DIR_VARIABLE} to the folder that holds {CIFAR10_FOLDER}."
    try:
        size = path.stat().st_size
        if size != expected:
            raise DataError(f"CIFAR-10 file {path} has {size:,} bytes, expected {expected:,}; delete it and {cure}")
        shape = (RECORDS_PER_FILE, RECORD_BYTES)
        records: np.ndarray = np.memmap(path, dtype=np.uint8, mode="r", shape=shape)
        largest = int(records[:, 0].max())
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "does not exist" if missing else f"cannot be read ({error.strerror})"
        raise DataError(f"CIFAR-10 file {path} {reason}; expected {expected:,} bytes there: {cure}") from error
    if largest >= CLASSES:
        raise DataError(
            f"CIFAR-10 file {path} has a label {largest}, expected 0 to 9: it is damaged; delete it and {cure}"
        )
    return records


def normalise(pixels: np.ndarray) -> np.ndarray:
    """Turn bytes into the inputs of the pretrained networks.

    Args:
        pixels: (N, 3, 32, 32) uint8.

    Returns:
        (N, 3, 32, 32) float32: (pixel / 255 - mean) / deviation of its colour.
    """
    # 256 values a colour: looked up, so that the result is the same on every machine to the last bit.
    levels = np.arange(256, dtype=np.float64) / 255
    inputs = np.empty(pixels.shape, dtype=np.float32)
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        inputs[:, channel] = ((levels - mean) / std).astype(np.float32)[pixels[:, channel]]
    return inputs


def _samples(records: np.ndarray, name: str, raw: bool) -> Samples:
    pixels = records[:, 1:].reshape(-1, *IMAGE_SHAPE)
    inputs = pixels.astype(np.float32) if raw else normalise(pixels)
    return Samples(torch.from_numpy(inputs), torch.from_numpy(records[:, 0].astype(np.int64)), name)
