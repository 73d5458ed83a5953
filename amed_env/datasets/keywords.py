"""The 1,000 samples on which MLPerf Tiny measures keyword spotting: MFCC features of one second of speech, 12 classes.

`kws_mlperf_tiny_1000.npz` holds them: `x` (1000, 490) int8, `y` (1000,) uint8, and the numbers `scale` and `zero`, with
which a feature is (x - zero) * scale. The official files, a `.bin` of 490 bytes a sample, have the same bytes.
Source: https://github.com/eembc/energyrunner, datasets/kws01, made from P. Warden, Speech Commands: A Dataset for
Limited-Vocabulary Speech Recognition, arXiv 1804.03209, 2018 (CC BY 4.0).
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from amed_env.datasets.samples import Samples, Splits, balanced_order
from amed_env.errors import DataError
from amed_env.support.data_files import KEYWORDS_FILE
from amed_env.support.location import DATA_DIR_VARIABLE, data_path

CLASSES = 12
FEATURE_SHAPE = (1, 49, 10)
SAMPLES = 1_000
# Only the 1,000 official samples are at hand in a form that needs no audio processing.
CALIBRATION_SAMPLES = 200
SEARCH_SAMPLES = 400

_SALT = "amed/keywords/1"  # another text would assign the samples to other splits and make all published figures void
_ARRAYS = {"x": (SAMPLES, 490), "y": (SAMPLES,), "scale": (), "zero": ()}


def keyword_splits(folder: Path | None = None) -> Splits:
    """The fixed splits: 200 samples for calibration, 400 for search and 400 for test.

    The first two have the same number of samples of each class, to within one or two; the test split has what is left
    of 70 to 92 a class.

    Args:
        folder: The data folder; by default `data_dir()`.

    Returns:
        Inputs (N, 1, 49, 10) float32, labels 0..11.

    Raises:
        DataError: If the file is missing or damaged.
    """
    samples = keyword_samples(folder)
    hashes = samples.sample_hashes()
    has_copy = np.asarray([hashes.count(value) > 1 for value in hashes])
    order = balanced_order(samples.known_labels.numpy(), _SALT)
    # Six samples are duplicated. At the end of the order both copies are in the test part, none is in two parts.
    order = np.concatenate([order[~has_copy[order]], order[has_copy[order]]])
    calibration, search, test = np.split(order, [CALIBRATION_SAMPLES, CALIBRATION_SAMPLES + SEARCH_SAMPLES])
    return Splits(
        calibration=samples.subset(calibration, "keywords/calibration"),
        search=samples.subset(search, "keywords/search"),
        test=samples.subset(test, "keywords/test"),
    )


def keyword_samples(folder: Path | None = None) -> Samples:
    """All 1,000 samples in their original order: for comparison with published figures only.

    Raises:
        DataError: If the file is missing or damaged.
    """
    path = data_path(KEYWORDS_FILE, folder)
    cure = f"`amed fetch kws-dscnn` says where it comes from; {DATA_DIR_VARIABLE} names the folder that holds it."
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in _ARRAYS}
    except FileNotFoundError as error:
        raise DataError(f"the keyword samples {path} do not exist; {cure}") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"the keyword samples {path} cannot be read: {type(error).__name__}: {error}; {cure}"
        ) from error
    for name, shape in _ARRAYS.items():
        if arrays[name].shape != shape:
            raise DataError(f"{path}: {name!r} has shape {arrays[name].shape}, expected {shape}; {cure}")
    _check_values(arrays, f"{path}: ", cure)
    features = (arrays["x"].astype(np.float32) - np.float32(arrays["zero"])) * np.float32(arrays["scale"])
    inputs = torch.from_numpy(features.reshape(-1, *FEATURE_SHAPE))
    return Samples(inputs, torch.from_numpy(arrays["y"].astype(np.int64)), "keywords")


def _check_values(arrays: dict[str, np.ndarray], where: str, cure: str) -> None:
    """Check what a damaged or foreign file would change without a word.

    Raises:
        DataError: If a type or a value is none that the file has.
    """
    for name in ("x", "y"):
        if arrays[name].dtype.kind not in "iu":
            raise DataError(f"{where}{name!r} holds {arrays[name].dtype}, expected integers; {cure}")
    labels = arrays["y"]
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise DataError(f"{where}labels are {labels.min()} to {labels.max()}, expected 0 to {CLASSES - 1}; {cure}")
    scale = float(arrays["scale"])
    if not (np.isfinite(scale) and scale > 0 and np.isfinite(float(arrays["zero"]))):
        zero = float(arrays["zero"])
        raise DataError(f"{where}the scale is {scale} with zero {zero}, expected a positive one; {cure}")
