"""Loading weights from safetensors files, and a digest of their contents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from amed_env.errors import NetworkError
from amed_env.support.location import DATA_DIR_VARIABLE, data_path
from amed_env.support.text import first_few

# Counts training batches of a batch norm; no forward pass in eval mode reads it, and published files leave it
# out.
_COUNTER = "num_batches_tracked"
M = TypeVar("M", bound=nn.Module)


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        NetworkError: If the file is missing or damaged.
    """
    try:
        return load_file(path)
    except OSError as error:
        raise NetworkError(
            f"cannot read the weight file {path}: {error}; for a built-in network run `amed fetch`, or check the path."
        ) from error
    except SafetensorError as error:
        raise NetworkError(
            f"the weight file {path} is damaged or no safetensors file ({error}); delete it and fetch it again."
        ) from error


def tensor_file(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file; equal contents make equal bytes, which the library's own order of metadata does not.

    Args:
        tensors: What it holds, contiguous.
        metadata: Texts by name.
    """
    content = save(dict(tensors), dict(metadata))
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the library aligns what follows to eight bytes
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def load_weights(module: M, path: str | Path, layers: Mapping[str, str] | None = None) -> M:
    """Load the weights of a network from a safetensors file, all of them or none.

    Args:
        module: The network; changed in place only if everything fits.
        path: A safetensors file with the module's state-dict names. Batch norms' `num_batches_tracked` may be
            absent.
        layers: Name of a layer in the file to its name in the module, where they differ.

    Returns:
        The same module.

    Raises:
        NetworkError: If the file is missing or damaged, or tensors are missing, unexpected, of another shape,
            or have NaN or infinite values; all of them are named.
    """
    tensors = {_renamed(name, layers or {}): tensor for name, tensor in read_weights(path).items()}
    state = module.state_dict()
    problems: dict[str, list[str]] = {"missing": [], "unexpected": [], "of another shape": [], "not finite": []}
    for name, parameter in state.items():
        if name not in tensors:
            if not name.endswith(_COUNTER):
                problems["missing"].append(name)
        elif tensors[name].shape != parameter.shape:
            shapes = f"{tuple(tensors[name].shape)} instead of {tuple(parameter.shape)}"
            problems["of another shape"].append(f"{name} {shapes}")
    for name, tensor in tensors.items():
        if name not in state:
            problems["unexpected"].append(name)
        if not bool(torch.isfinite(tensor).all()):
            problems["not finite"].append(name)
    faults = [f"{len(names)} {what}: {first_few(names)}" for what, names in problems.items() if names]
    if faults:
        raise NetworkError(
            f"the weight file {path} does not fit {type(module).__name__}: {'; '.join(faults)}. "
            "Use the file that was made for this network."
        )
    module.load_state_dict({**state, **tensors})
    return module


def load_shipped(module: M, file: str) -> M:
    """Load weights that are part of the package, and turn to eval mode.

    Raises:
        NetworkError: If the weight file of the package is missing or damaged.
    """
    # A package in a zip file has no path of its own; as_file makes one for as long as it is needed.
    with as_file(files("amed_env.networks") / "weights" / file) as path:
        return load_weights(module, path).eval()


def load_fetched(
    module: M,
    file: str,
    task: str,
    folder: Path | None,
    layers: Mapping[str, str] | None = None,
    digest: str | None = None,
) -> M:
    """Load weights of the data folder, and turn to eval mode.

    Args:
        module: The network.
        file: The file, relative to the data folder.
        task: The task whose download brings it, for messages.
        folder: The data folder; by default `data_dir()`.
        layers: As for `load_weights`.
        digest: `weights_digest` of the published weights; None if every maker of the file gets other last bits.

    Raises:
        NetworkError: If the weights are missing or damaged, or are others than the published ones.
    """
    path = data_path(file, folder)
    if not path.is_file():
        raise NetworkError(
            f"the weights of {task} are missing: {path} does not exist; run `amed fetch {task}`, or set "
            f"{DATA_DIR_VARIABLE} to the folder that has them."
        )
    load_weights(module, path, layers)
    # A flipped bit gives a network that runs and answers a little otherwise, which nobody would notice.
    found = None if digest is None else weights_digest(module.state_dict())
    if found != digest:
        raise NetworkError(
            f"{path} holds other weights than the published ones of {task} (digest {found}, expected {digest}); delete "
            f"it and run `amed fetch {task}`."
        )
    return module.eval()


def _renamed(name: str, layers: Mapping[str, str]) -> str:
    layer, _, parameter = name.rpartition(".")
    return f"{layers[layer]}.{parameter}" if layer in layers else name


def weights_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) over sorted names, shapes, dtypes and little-endian bytes, whatever file they came from.

    Args:
        tensors: Name to tensor; counters of batch norms are left out, so they make no difference.
    """
    digest = hashlib.sha256(b"amed-weights/1\n")
    for name in sorted(tensors):
        if name.endswith(_COUNTER):
            continue
        values = tensors[name].detach().cpu().numpy()
        digest.update(f"{name} {values.shape} {values.dtype.name}\n".encode())
        digest.update(np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False)).data)
    return digest.hexdigest()
