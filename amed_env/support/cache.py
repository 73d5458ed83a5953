"""Results that are worth keeping between runs, as `.npy` files named by a fingerprint of all that they depend on."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs

from amed_env.support.files import write_atomically

logger = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Where they are kept: `AMED_CACHE_DIR`, or the user's cache folder."""
    override = os.environ.get("AMED_CACHE_DIR")
    return Path(override) if override else Path(platformdirs.user_cache_dir("amed-env"))


def cached_array(
    kind: str,
    fingerprint: str,
    shape: tuple[int | None, ...],
    compute: Callable[[], npt.NDArray[Any]],
    dtype: npt.DTypeLike = np.float64,
    worth_keeping: Callable[[npt.NDArray[Any]], bool] | None = None,
) -> npt.NDArray[Any]:
    """Return an array from the cache, or compute and keep it.

    A file that is damaged or has another shape is computed again; a cache that cannot be written is only logged.

    Args:
        kind: What it is: the folder's name.
        fingerprint: Text that changes with everything that the array depends on.
        shape: The array's shape; None for a length that is not known beforehand.
        compute: Makes the array.
        dtype: Its type.
        worth_keeping: Whether an array that was computed is kept; every one by default.
    """
    path = cache_dir() / kind / f"{hashlib.sha256(fingerprint.encode()).hexdigest()[:32]}.npy"
    try:
        kept = np.load(path, allow_pickle=False)
        if _holds(kept, shape, np.dtype(dtype)):
            return np.asarray(kept)
        logger.warning("%s does not hold what it should; it is computed again", path)
    except FileNotFoundError:
        pass
    except Exception as error:  # whatever a damaged file makes numpy raise: ValueError, BadZipFile, MemoryError ...
        logger.warning("cannot read %s (%s); it is computed again", path, error)
    array = np.asarray(compute(), dtype=dtype)
    if worth_keeping is not None and not worth_keeping(array):
        return array
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        write_atomically(path, content.getvalue())  # another process may read while this one writes
    except OSError as error:
        logger.warning("cannot keep %s (%s)", path, error)
    return array


def _holds(kept: object, shape: tuple[int | None, ...], dtype: np.dtype[Any]) -> bool:
    return (
        isinstance(kept, np.ndarray)
        and kept.ndim == len(shape)
        and all(expected in (None, length) for expected, length in zip(shape, kept.shape, strict=True))
        and kept.dtype == dtype
        and bool(np.isfinite(kept).all())
    )
