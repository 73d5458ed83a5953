"""Where downloaded data sets and weights lie."""

from __future__ import annotations

import os
from pathlib import Path

from amed_env.errors import DataError

DATA_DIR_VARIABLE = "AMED_DATA_DIR"


def data_dir() -> Path:
    """The folder of data sets and weights: `AMED_DATA_DIR` if set, otherwise below the user's cache folder.

    The cache folder need not exist yet; a folder that was named must.

    Raises:
        DataError: If `AMED_DATA_DIR` names something that is no folder.
    """
    named = os.environ.get(DATA_DIR_VARIABLE)
    if not named:
        import platformdirs  # `amed --help` does without

        return Path(platformdirs.user_cache_dir("amed-env")) / "data"
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{DATA_DIR_VARIABLE} is {named!r}, which is no folder; create it, correct the variable, or "
            "unset it to use the cache folder."
        )
    return folder


def data_path(name: str, folder: Path | None = None) -> Path:
    """A file of a data folder, by default of `data_dir()`."""
    return (data_dir() if folder is None else Path(folder)) / name
