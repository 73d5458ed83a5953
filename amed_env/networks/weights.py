"""Loading weights from safetensors files, and a digest of their contents."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from amed_env.errors import NetworkError
from amed_env.support.text import first_few

# Counts training batches of a batch norm; no forward pass in eval mode reads it, and published files leave it
# out.
_COUNTER = "num_batches_tracked"


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


def load_weights(module: nn.Module, path: str | Path, layers: Mapping[str, str] | None = None) -> nn.Module:
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
    wanted = module.state_dict()
    problems = {
        "missing": [n for n in wanted if n not in tensors and not n.endswith(_COUNTER)],
        "unexpected": [n for n in tensors if n not in wanted],
        "of another shape": [
            f"{n} {tuple(tensors[n].shape)} instead of {tuple(w.shape)}"
            for n, w in wanted.items()
            if n in tensors and tensors[n].shape != w.shape
        ],
        "not finite": [n for n, t in tensors.items() if not bool(torch.isfinite(t).all())],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(names)} {what}: {first_few(names)}" for what, names in problems.items() if names)
        raise NetworkError(
            f"the weight file {path} does not fit {type(module).__name__}: {found}. "
            "Use the file that was made for this network."
        )
    module.load_state_dict({**wanted, **tensors})
    return module


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
