"""Cross-layer equalisation: scale channels between two layers so that their weights have equal ranges.

ReLU lets a positive factor through, so a channel of one layer may be multiplied, and the weights of the next layer that
read it divided, without any change of the network. Source: Nagel et al., Data-Free Quantization Through Weight
Equalization and Bias Correction, ICCV 2019.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import nn

from amed_env.quantization.graph import NetworkGraph
from amed_env.tracing.groups import Group, effective_readers
from amed_env.tracing.lowering import QuantizableModule

_ROUNDS = 10  # pairs in a chain disturb each other; the ranges settle after a few rounds
# Channels whose weights are all but zero have no range to equalise; dividing by it would give infinity.
_SMALLEST = 1e-8


def equalizable_pairs(graph: NetworkGraph, layers: Mapping[str, QuantizableModule]) -> list[tuple[str, str]]:
    """Pairs of layers between which channels can be scaled: the second alone reads the first, through ReLU at most.

    Args:
        graph: The network.
        layers: Its layers by name.
    """
    calls = {group.call: group.layer for group in graph.groups.values()}
    times_called = [group.layer for group in graph.groups.values()]
    pairs = []
    for group in graph.groups.values():
        readers = list(effective_readers(group.output))
        if len(readers) != 1 or readers[0] not in calls or readers[0].all_input_nodes[0] is not group.output:
            continue
        second = calls[readers[0]]
        if times_called.count(group.layer) == times_called.count(second) == 1 and _scales(
            group, layers[group.layer], layers[second]
        ):
            pairs.append((group.layer, second))
    return pairs


def _scales(group: Group, writer: QuantizableModule, reader: QuantizableModule) -> bool:
    """Whether a factor for every channel that is written can be taken out of what reads it."""
    homogeneous = group.high == math.inf and group.low in (0.0, -math.inf)
    return homogeneous and group.addition is None and _reads_channels(writer, reader)


def _reads_channels(writer: QuantizableModule, reader: QuantizableModule) -> bool:
    """Whether the channels of the second layer are those of the first: a linear layer reads the last axis."""
    if isinstance(writer, nn.Linear) or isinstance(reader, nn.Linear):
        return isinstance(writer, nn.Linear) and isinstance(reader, nn.Linear)
    return reader.groups == 1 or reader.groups == reader.in_channels == reader.out_channels


@torch.no_grad()
def equalize(
    graph: NetworkGraph, layers: Mapping[str, QuantizableModule], fixed: Collection[str] = ()
) -> list[tuple[str, str]]:
    """Equalise the layers of a network in place; what it computes stays the same but for rounding.

    Args:
        graph: The network.
        layers: Its layers by name.
        fixed: Layers that are left as they are: those that share their weights with others.

    Returns:
        The pairs of layers that were scaled.
    """
    pairs = [pair for pair in equalizable_pairs(graph, layers) if not set(pair) & set(fixed)]
    for _ in range(_ROUNDS if pairs else 0):
        for first, second in pairs:
            _equalize_pair(layers[first], layers[second])
    return pairs


def _equalize_pair(first: QuantizableModule, second: QuantizableModule) -> None:
    written = first.weight.flatten(1).abs().amax(dim=1)
    depthwise = not isinstance(second, nn.Linear) and second.groups > 1
    by_channel = second.weight.flatten(1) if depthwise else second.weight.transpose(0, 1).flatten(1)
    read = by_channel.abs().amax(dim=1)
    usable = (written > _SMALLEST) & (read > _SMALLEST)
    # With the square root both ranges become their geometric mean (Nagel et al. 2019).
    factor = torch.where(usable, (read / written.clamp_min(_SMALLEST)).sqrt(), torch.ones_like(written))
    first.weight.mul_(factor.view(-1, *[1] * (first.weight.dim() - 1)))
    if first.bias is not None:
        first.bias.mul_(factor)
    shape = (-1, *[1] * (second.weight.dim() - 1)) if depthwise else (1, -1, *[1] * (second.weight.dim() - 2))
    second.weight.div_(factor.view(shape))
