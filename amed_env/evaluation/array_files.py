"""Arrays in `.npz` files without any pickle: equal contents are equal bytes, and a digest covers everything."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amed_env.errors import AmedError, TableError


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write an `.npz` file; equal arrays give equal bytes, as `numpy.savez`, which keeps the time, does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED)


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an `.npz` file by name."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def sealed(header: bytes, digest: str) -> dict[str, npt.NDArray[Any]]:
    """A header and a digest (hex) as the arrays `header` and `sha256`."""
    pair = {"header": header, "sha256": bytes.fromhex(digest)}
    return {name: np.frombuffer(content, dtype=np.uint8) for name, content in pair.items()}


def unsealed(arrays: dict[str, npt.NDArray[Any]]) -> tuple[bytes, str]:
    """Takes header and digest (hex) out of the arrays of a file."""
    return arrays.pop("header").tobytes(), arrays.pop("sha256").tobytes().hex()


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turns whatever goes wrong inside into a `TableError` that names the file and what it should be."""
    try:
        yield
    except OSError as error:
        raise TableError(f"cannot read the {what} {path}: {error}.") from error
    except AmedError as error:
        raise TableError(f"the {what} {path} cannot be used: {error}") from error
    except Exception as error:  # a damaged file makes zipfile, numpy and json raise errors of many types
        raise TableError(
            f"the {what} {path} is damaged or no such file ({type(error).__name__}: {error}); install the package "
            "again, or make the file anew."
        ) from error


def digest_of(header: bytes, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 (hex) of a header and of arrays with their names, shapes and types."""
    digest = hashlib.sha256(header)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.shape} {array.dtype.str}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def packed(column: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The low bytes of all values, then the high ones: uint8 (2, rows), which compresses better."""
    return np.ascontiguousarray(column.view(np.uint8).reshape(-1, 2).T)


def unpacked(planes: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Two-byte values of their planes, as `packed` wrote them; TableError for another shape or type."""
    if planes.dtype != np.uint8 or planes.ndim != 2 or len(planes) != 2:
        raise TableError(f"a column has shape {planes.shape} and type {planes.dtype}, expected uint8 (2, rows).")
    return np.ascontiguousarray(planes.T).view(dtype).reshape(-1)
