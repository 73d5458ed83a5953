"""Bias correction: rounded weights shift the mean of every output channel; the bias takes the shift back.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, here with the
means that calibration measures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from amed_env.problem.allocation import FLOAT_BITS, BitAllocation
from amed_env.quantization.layers import PreparedWidth, QuantizedLayer
from amed_env.quantization.network import QuantizedNetwork


def correctable(network: QuantizedNetwork) -> dict[str, QuantizedLayer]:
    """The layers that have output channels with a mean: not the rows of an embedding, nor products of activations."""
    return {name: layer for name, layer in network.weighted.items() if not layer.reads_indices}


@torch.no_grad()
def corrected(
    network: QuantizedNetwork, prepared: Mapping[tuple[str, int], PreparedWidth], calibration: torch.Tensor
) -> dict[tuple[str, int], PreparedWidth]:
    """Widths with biases that keep the mean of every output channel when all other layers are float.

    Of a layer that is called more than once, the mean over its calls is kept.

    Args:
        network: The network.
        prepared: What was prepared, by layer and width.
        calibration: Float tensor (N, …).
    """
    network.select(network.workload.uniform(FLOAT_BITS))
    calls: Counter[str] = Counter()
    shifts = {key: torch.zeros_like(width.scales, dtype=torch.float64) for key, width in prepared.items()}

    def observe(layer: QuantizedLayer, share: float) -> object:
        widths = {bits: width for (name, bits), width in prepared.items() if name == layer.name}

        def record(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            calls[layer.name] += 1
            for bits, width in widths.items():
                error = layer.compute(inputs[0], layer.layer.weight - width.weight, None)
                shifts[layer.name, bits] += share * _channel_means(layer, error)

        return record

    for batch in calibration.split(network.batch_size):
        share = len(batch) / len(calibration)
        calls.clear()  # every batch has the same calls
        handles = [
            layer.register_forward_pre_hook(observe(layer, share))  # type: ignore[arg-type]
            for layer in correctable(network).values()
        ]
        try:
            network(batch)
        finally:
            for handle in handles:
                handle.remove()
    result = {}
    layers = correctable(network)
    for key, width in prepared.items():
        if key[0] not in layers:
            result[key] = width
            continue
        bias = layers[key[0]].layer.bias
        base = width.bias if width.bias is not None else torch.zeros_like(width.scales) if bias is None else bias
        result[key] = replace(width, bias=(base.double() + shifts[key] / max(1, calls[key[0]])).float())
    return result


@torch.no_grad()
def correct_biases_of(network: QuantizedNetwork, allocation: BitAllocation, calibration: torch.Tensor) -> None:
    """Shift the biases of one allocation's own widths, layer by layer, so that channel means are the float network's.

    It depends on the allocation, so it is for finalists and not for the inner loop of a search. It changes what
    the network uses at these widths; restore it with `network.use`.
    """
    exact: dict[str, torch.Tensor] = {}
    network.select(network.workload.uniform(FLOAT_BITS))
    _run_with_means(network, calibration, exact)
    for name in correctable(network):
        if allocation[name].weight_bits == FLOAT_BITS:
            continue
        found: dict[str, torch.Tensor] = {}
        network.select(allocation)
        _run_with_means(network, calibration, found, only=name)
        layer, bits = network.weighted[name], allocation[name].weight_bits
        width = layer.prepared[bits]
        base = torch.zeros_like(width.scales) if width.bias is None else width.bias
        network.use(name, bits, replace(width, bias=(base.double() + exact[name] - found[name]).float()))


def _run_with_means(
    network: QuantizedNetwork, calibration: torch.Tensor, means: dict[str, torch.Tensor], only: str | None = None
) -> None:
    """Collect the mean of every output channel of the layers, or of one of them, over all calls."""
    calls: Counter[str] = Counter()
    chosen = [layer for name, layer in correctable(network).items() if only in (None, name)]
    share = 1.0 / len(calibration)

    def record(layer: nn.Module, _: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> None:
        assert isinstance(layer, QuantizedLayer)
        calls[layer.name] += 1
        part = _channel_means(layer, outputs) * outputs.shape[0] * share
        means[layer.name] = means.get(layer.name, torch.zeros_like(part)) + part

    handles = [layer.register_forward_hook(record) for layer in chosen]
    try:
        for batch in calibration.split(network.batch_size):
            calls.clear()
            network.run_in_float(batch)
    finally:
        for handle in handles:
            handle.remove()
    for name, times in calls.items():
        means[name] = means[name] / times


def _channel_means(layer: QuantizedLayer, outputs: torch.Tensor) -> torch.Tensor:
    channel = outputs.dim() - 1 if isinstance(layer.layer, nn.Linear) else 1
    others = [axis for axis in range(outputs.dim()) if axis != channel]
    return outputs.double().mean(dim=others)
