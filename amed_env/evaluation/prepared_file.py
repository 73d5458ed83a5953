"""Files of prepared layers: safetensors with integers, scales and biases of every (layer, width), and a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from amed_env.errors import AmedError
from amed_env.networks.weights import tensor_file
from amed_env.quantization.layers import PreparedWidth
from amed_env.quantization.network import QuantizedNetwork

FORMAT = "amed-prepared/1"
_PARTS = ("integers", "scales", "bias", "activation_scale")


class PreparedFile(NamedTuple):
    """What a file holds.

    Attributes:
        widths: Layers at some widths.
        others: Tensors that belong to no layer.
        made: How it was made.
    """

    widths: dict[tuple[str, int], PreparedWidth]
    others: dict[str, torch.Tensor]
    made: dict[str, Any]


def prepared_tensors(prepared: Mapping[tuple[str, int], PreparedWidth]) -> dict[str, torch.Tensor]:
    """What was prepared as the named tensors of a file."""
    tensors = {}
    for (layer, bits), width in prepared.items():
        where = f"{layer}/{bits}"
        tensors[f"{where}/integers"] = width.integers.contiguous()
        tensors[f"{where}/scales"] = width.scales.contiguous()
        tensors[f"{where}/activation_scale"] = torch.tensor(width.activation_scale, dtype=torch.float64)
        if width.bias is not None:
            tensors[f"{where}/bias"] = width.bias.contiguous()
    return tensors


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """A digest (hex) of named tensors."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def file_content(tensors: Mapping[str, torch.Tensor], made: Mapping[str, Any]) -> bytes:
    """The bytes of a file; equal contents make equal files."""
    facts = json.dumps({**made, "digest": digest_of(tensors)}, sort_keys=True)
    return tensor_file(tensors, {"format": FORMAT, "made": facts})


def read_prepared(network: QuantizedNetwork, path: Path) -> PreparedFile:
    """Read what a file has of a network's layers at some widths.

    Raises:
        AmedError: If it cannot be read, is another kind of file, is damaged, or does not fit the network.
    """
    try:
        with safe_open(path, "pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise AmedError(f"{path} cannot be read ({error})") from error
    if metadata.get("format") != FORMAT:
        raise AmedError(f"{path} is no {FORMAT} file")
    made = _made(metadata, path)
    if "digest" in made and made["digest"] != digest_of(tensors):
        raise AmedError(f"{path} is damaged: its content is not the one that was written")
    widths, others = {}, dict(tensors)
    for key in tensors:
        where, _, part = key.rpartition("/")
        if part != "integers":
            continue
        layer, _, bits = where.rpartition("/")
        parts = {name: others.pop(f"{where}/{name}", None) for name in _PARTS}
        if layer not in network.weighted or not bits.isdecimal() or not _fits(network, layer, int(bits), parts):
            raise AmedError(f"{path} does not fit the network at layer {layer!r} with {bits} bits")
        widths[layer, int(bits)] = PreparedWidth(
            parts["integers"], parts["scales"], parts["bias"], float(parts["activation_scale"])
        )
    return PreparedFile(widths, others, made)


def _made(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        made = json.loads(metadata.get("made", "{}"))
    except ValueError as error:
        raise AmedError(f"{path} is damaged: {error}") from error
    if not isinstance(made, dict):
        raise AmedError(f"{path} is damaged: it does not say how it was made")
    return made


def _fits(network: QuantizedNetwork, layer: str, bits: int, parts: Mapping[str, torch.Tensor | None]) -> bool:
    """Whether the parts of a layer at a width are all there, of the right shapes, and sound numbers."""
    weight = network.weighted[layer].layer.weight
    integers, scales, bias, activation_scale = (parts[part] for part in _PARTS)
    if integers is None or scales is None or activation_scale is None:
        return False
    channels = weight.shape[:1]
    if integers.shape != weight.shape or scales.shape != channels or activation_scale.numel() != 1:
        return False
    if integers.is_floating_point() or int(integers.abs().max()) > 2 ** (bits - 1):
        return False
    if bias is not None and (bias.shape != channels or not bool(bias.isfinite().all())):
        return False
    return all(bool(((value > 0) & value.isfinite()).all()) for value in (scales, activation_scale))
