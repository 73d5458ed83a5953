"""Scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 that come with the library, no download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
    1998
(its test part).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from amed_env.datasets.samples import Samples, Splits, balanced_order
from amed_env.datasets.training import TrainingData
from amed_env.errors import DataError

CLASSES = 10
SEARCH_SAMPLES = 500
TEST_SAMPLES = 500
# All that is left of 1,797 images; the network was trained on the same ones, but not on search or test images.
CALIBRATION_SAMPLES = 797
VALIDATION_SAMPLES = 200
_SALT = "amed/digits/1"  # another text would assign the images to other splits and make all published figures void
_LARGEST_PIXEL = 16.0
_FILE = "datasets/data/digits.csv.gz"
_SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"
"""Of the text in the file: 64 pixels and the label a line."""


def digits_train() -> Samples:
    """The 797 training images, class-balanced as far as they go; calibration images are the first of them."""
    samples, order = _all_in_order()
    return samples.subset(order[SEARCH_SAMPLES + TEST_SAMPLES :], "digits/train")


def digits_training() -> TrainingData:
    """597 of the training images to train on, moved by up to one pixel, and the last 200 to validate by.

    Both were seen by the pretrained network, and calibration uses them too.
    """
    train = digits_train()
    kept = len(train) - VALIDATION_SAMPLES
    validation = train.subset(range(kept, len(train)), "digits/validation")
    return TrainingData(train.inputs[:kept], train.known_labels[:kept], validation, shift=1)


def digits_splits(calibration_samples: int = CALIBRATION_SAMPLES) -> Splits:
    """The fixed splits: 500 search images, 500 test images, calibration images from the training part.

    Every prefix of every part is as class-balanced as the classes allow.

    Args:
        calibration_samples: How many training images to calibrate with, 1 to 797.

    Returns:
        Inputs (N, 1, 8, 8) float32 in 0..1, labels 0..9.

    Raises:
        DataError: If there are not as many training images.
    """
    samples, order = _all_in_order()
    search, test, train = np.split(order, [SEARCH_SAMPLES, SEARCH_SAMPLES + TEST_SAMPLES])
    if not 1 <= calibration_samples <= len(train):
        raise DataError(f"digits: {calibration_samples} calibration samples asked for; choose 1 to {len(train)}.")
    return Splits(
        calibration=samples.subset(train[:calibration_samples], "digits/calibration"),
        search=samples.subset(search, "digits/search"),
        test=samples.subset(test, "digits/test"),
    )


def _all_in_order() -> tuple[Samples, np.ndarray]:
    images, labels = _images_and_labels()
    inputs = (np.asarray(images, dtype=np.float32) / np.float32(_LARGEST_PIXEL)).reshape(-1, 1, 8, 8)
    labels = np.asarray(labels, dtype=np.int64)
    samples = Samples(torch.from_numpy(inputs), torch.from_numpy(labels), "digits")
    return samples, balanced_order(labels, _SALT)


def _images_and_labels() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Pixels (1797, 64) in 0..16 and labels, of the library's file: importing the library takes over a second."""
    spec = find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or ():
        try:
            content = gzip.decompress((Path(folder) / _FILE).read_bytes())
        except (OSError, EOFError, zlib.error):
            continue
        if hashlib.sha256(content).hexdigest() == _SHA256:
            table = np.loadtxt(io.BytesIO(content), delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits  # it stands elsewhere in this version

    images, labels = load_digits(return_X_y=True)
    return images, labels
