"""Saved policies: a folder with the weights (safetensors) and a card (JSON) that says what the policy saw."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from amed_env.agents.policy.network import PolicyNetwork
from amed_env.errors import AgentError
from amed_env.support.typed_fields import faults_of

WEIGHTS, CARD = "policy.safetensors", "policy.json"
SHIPPED = "default"
"""Name of the policy that comes with the package."""


class Configuration(BaseModel):
    """Sizes of the network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(gt=0, le=1024)
    depth: int = Field(gt=0, le=16)
    heads: int = Field(gt=0, le=64)


class Card(BaseModel):
    """What a policy is, and what it saw.

    Attributes:
        format: Says what the file is.
        version: Of the format.
        configuration: Sizes of the network.
        tasks: Tasks whose trials it was trained on.
        devices: Devices whose costs it was trained on.
        random_devices: Whether random devices were among them.
        training: Options of the training.
        regret: Mean regret in accuracy points without an evaluation, by task and kind of cell.
        made: Date.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["amed-policy"] = "amed-policy"
    version: Literal[1] = 1
    configuration: Configuration
    tasks: tuple[str, ...]
    devices: tuple[str, ...]
    random_devices: bool
    training: dict[str, Any]
    regret: dict[str, dict[str, float]] = {}
    made: str


def save_policy(folder: Path, network: PolicyNetwork, card: Card) -> None:
    """Write a policy; the folder is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(save_tensors({k: v.contiguous() for k, v in network.state_dict().items()}))
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_policy(folder: str | Path | None = None) -> tuple[PolicyNetwork, Card]:
    """Read a policy; None is the one that comes with the package.

    Raises:
        AgentError: If a file is missing, damaged, or does not fit the other; the message says which.
    """
    if folder is None:
        with as_file(files("amed_env.agents.policy") / "shipped" / SHIPPED) as path:
            return load_policy(path)
    folder = Path(folder)
    for name in (WEIGHTS, CARD):
        if not (folder / name).is_file():
            raise AgentError(f"policy {folder}: {name} is missing; give the folder that a training has written.")
    try:
        card = Card.model_validate_json((folder / CARD).read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise AgentError(f"policy {folder}: {CARD} is no card of a policy: {_first_line(error)}") from error
    if card.configuration.width % card.configuration.heads:
        raise AgentError(f"policy {folder}: {CARD}: the width must be a multiple of the heads.")
    network = PolicyNetwork(**card.configuration.model_dump())
    try:
        tensors = load_tensors((folder / WEIGHTS).read_bytes())
        network.load_state_dict(tensors)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise AgentError(f"policy {folder}: {WEIGHTS} does not fit its card: {_first_line(error)}") from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise AgentError(f"policy {folder}: {WEIGHTS} holds NaN or infinite numbers.")
    return network.eval(), card


def fingerprint(network: PolicyNetwork) -> str:
    """SHA-256 of a policy's weights."""
    return sha256(save_tensors({k: v.contiguous() for k, v in network.state_dict().items()})).hexdigest()


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return faults_of(error)[0]
    return str(error).strip().splitlines()[0]
