"""States of training, and trained networks, as safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from amed_env.errors import AmedError, InputError
from amed_env.evaluation.prepared_file import file_content, prepared_tensors, read_prepared
from amed_env.problem.allocation import BitAllocation
from amed_env.quantization.layers import PreparedWidth
from amed_env.quantization.network import QuantizedNetwork
from amed_env.support.files import write_atomically

if TYPE_CHECKING:
    from amed_env.evaluation.post_training import PostTrainingEvaluator

STATE_FORMAT = "amed-training/1"
WEIGHTS, ALLOCATION = "weights.safetensors", "allocation.json"
_STORED = "stored_scales"


def write_state(path: Path, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
    """Write a state as one file, so that its parts always belong together.

    Args:
        path: The file.
        tensors: Its tensors.
        values: What else belongs to it; must fit into JSON.
    """
    text = json.dumps({"format": STATE_FORMAT, **values})
    write_atomically(path, save(dict(tensors), {"state": text}))


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a state.

    Raises:
        InputError: If the file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as stream:
            values = json.loads((stream.metadata() or {}).get("state", "{}"))
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"the checkpoint {path} cannot be read ({error}); train anew in another folder.") from error
    if values.pop("format", None) != STATE_FORMAT:
        raise InputError(f"{path} is no {STATE_FORMAT} file; train anew in another folder.")
    return tensors, values


def used_widths(network: QuantizedNetwork, allocation: BitAllocation) -> dict[tuple[str, int], PreparedWidth]:
    """What a network uses under an allocation, by layer and width."""
    stored = network.as_stored(allocation)  # weights that layers share are read at the width of the first of them
    network.prepare_all(allocation)
    network.prepare_all(stored)
    widths = {}
    for name, layer in network.weighted.items():
        for bits in (*allocation[name], *stored[name]):
            if bits in layer.prepared:
                widths[name, bits] = layer.prepared[bits]
    return widths


def stored_scales(network: QuantizedNetwork) -> list[float]:
    """Scales of the results that a network keeps at 8 bits, in their order."""
    return [stored.scale for stored in network.stored]


def write_trained(folder: Path, evaluator: PostTrainingEvaluator, allocation: BitAllocation) -> list[Path]:
    """Write the integers and scales that an evaluator uses under an allocation, and the allocation.

    Returns:
        The files.
    """
    tensors = prepared_tensors(used_widths(evaluator.network, allocation))
    tensors[_STORED] = torch.tensor(stored_scales(evaluator.network), dtype=torch.float64)
    made = {"made_of": evaluator.made_of, "network": evaluator.workload.name}
    paths = [folder / WEIGHTS, folder / ALLOCATION]
    write_atomically(paths[0], file_content(tensors, made))
    document = allocation.to_json(evaluator.workload.name)
    write_atomically(paths[1], json.dumps(document, indent=2) + "\n")
    return paths


def use_trained(folder: Path, evaluator: PostTrainingEvaluator) -> BitAllocation:
    """Let an evaluator use the weights and scales of a folder of `amed finetune`.

    Returns:
        The allocation for which they were trained.

    Raises:
        InputError: If the folder has no finished training, or one of another network or other calibration samples.
        AmedError: If a file is damaged.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"{folder} holds no finished training of `amed finetune`: there is no {WEIGHTS}.")
    allocation = BitAllocation.load(folder / ALLOCATION)
    allocation = allocation.require_layers(evaluator.workload.layer_names, f"network {evaluator.workload.name!r}")
    file = read_prepared(evaluator.network, path)
    if file.made.get("made_of") != evaluator.made_of:
        raise InputError(
            f"{path} was trained from {file.made.get('network')!r} with other weights or calibration samples than "
            f"those of {evaluator.workload.name!r} here."
        )
    scales = file.others.get(_STORED)
    if scales is None or scales.shape != (len(evaluator.network.stored),):
        raise AmedError(f"{path} is damaged: scales of results that the network keeps are missing")
    evaluator.adopt(file.widths, scales.tolist())
    return allocation
