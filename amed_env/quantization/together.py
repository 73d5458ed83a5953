"""Many allocations in one pass of the fake-quantized float network: what keeps a GPU busy with a small network.

A layer's integers, scales, and biases under several allocations are stacked, and `torch.vmap` runs the network over
them; what it computes is what one allocation after the other gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from amed_env.errors import NonFiniteError
from amed_env.problem.allocation import BitAllocation
from amed_env.quantization.finiteness import CollectedSums, check_finite
from amed_env.quantization.layers import QuantizedLayer, StoredTensor, channels_last
from amed_env.quantization.products import QuantizedProduct
from amed_env.quantization.rounding import integer_range

Settings = dict[str, torch.Tensor]
"""Tensors of one layer, the first dimension over allocations: `integers`, `scales`, `inverse`, `step`, `low`, `high`,
and `bias` where it has one; of a product of activations the last four of each operand (`left_step`, …)."""


def stacked_settings(
    layers: Mapping[str, QuantizedLayer | QuantizedProduct], allocations: Sequence[BitAllocation]
) -> dict[str, Settings]:
    """What every layer needs to run under several allocations, whose widths are prepared."""
    settings = {}
    for name, layer in layers.items():
        make = _settings_of_product if isinstance(layer, QuantizedProduct) else _settings_of
        settings[name] = make(layer, [allocation[name] for allocation in allocations])  # type: ignore[arg-type]
    return settings


def _settings_of_product(layer: QuantizedProduct, precisions: Sequence[tuple[int, int]]) -> Settings:
    settings: Settings = {}
    for operand, side in enumerate(("left", "right")):
        widths = [activation_bits if side == "left" else weight_bits for weight_bits, activation_bits in precisions]
        steps = [layer.prepared[bits].steps[operand] for bits in widths]
        ranges = [integer_range(bits, layer.operands[operand].unsigned) for bits in widths]
        settings |= {f"{side}_{key}": tensor for key, tensor in _grids(steps, ranges).items()}
    return settings


def _grids(steps: Sequence[float], ranges: Sequence[tuple[int, int]]) -> Settings:
    return {
        "step": torch.tensor(steps, dtype=torch.float32),
        "inverse": torch.tensor([1.0 / step for step in steps], dtype=torch.float32),
        "low": torch.tensor([low for low, _ in ranges], dtype=torch.float32),
        "high": torch.tensor([high for _, high in ranges], dtype=torch.float32),
    }


def _settings_of(layer: QuantizedLayer, precisions: Sequence[tuple[int, int]]) -> Settings:
    device = layer.layer.weight.device
    weights = [layer.prepared[weight_bits] for weight_bits, _ in precisions]
    steps = [layer.prepared[activation_bits].activation_scale for _, activation_bits in precisions]
    ranges = [integer_range(activation_bits, layer.statistics.unsigned) for _, activation_bits in precisions]
    settings = {
        "integers": torch.stack([prepared.integers for prepared in weights]).float(),
        "scales": torch.stack([prepared.scales for prepared in weights]),
        **_grids(steps, ranges),
    }
    on_steps = [layer.prepared_for(bits, step) for (bits, _), step in zip(precisions, steps, strict=True)]
    biases = [prepared.bias for prepared in on_steps if prepared.bias is not None]
    if biases:
        settings["bias"] = torch.stack(biases)
    return {key: tensor.to(device) for key, tensor in settings.items()}


@torch.no_grad()
def run_together(
    module: nn.Module,
    layers: Mapping[str, QuantizedLayer | QuantizedProduct],
    settings: dict[str, Settings],
    inputs: torch.Tensor,
) -> torch.Tensor:
    """Class scores of one batch under several allocations of at most 8 bits: float32 (allocations, N, classes).

    Args:
        module: The fake-quantized network, with its stored results rounded.
        layers: Its layers.
        settings: What `stacked_settings` returns.
        inputs: Float tensor (N, …) on the network's device.

    Raises:
        RuntimeError: If the network has an operation that cannot be run for several allocations at once.
        NonFiniteError: If activations are, or could be, NaN or infinite; one after the other it is known which.
    """
    stored = [child for child in module.modules() if isinstance(child, StoredTensor)]
    checking: list[QuantizedLayer | QuantizedProduct | StoredTensor] = [*layers.values(), *stored]

    def run_one(one: dict[str, Settings]) -> tuple[torch.Tensor, torch.Tensor]:
        collected = CollectedSums()
        for part in checking:
            part.check = collected
        for name, layer in layers.items():
            layer.given = one[name]
        scores: torch.Tensor = module(channels_last(inputs))
        return scores, torch.stack(collected.sums)

    try:
        scores, sums = torch.vmap(run_one)(settings)
    finally:
        for layer in layers.values():
            layer.given = None
        for part in checking:
            part.check = check_finite
    if not torch.isfinite(sums).all():
        raise NonFiniteError("a layer meets activations that are NaN or infinite.")
    return scores
