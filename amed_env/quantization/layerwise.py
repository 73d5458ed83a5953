"""Rounding solved layer by layer: later weights make up for the errors of earlier ones.

A layer's error is quadratic in the errors of its weights, with the second moments of what the layer reads as the
matrix. So after one weight of a row is rounded, the best change of those that are not rounded yet is known in closed
form. It takes no step of learning: one pass of some hundred samples and a Cholesky factor a layer. Learning starts
from it where time is short.

Source: GPTQ (Frantar et al., ICLR 2023), which makes the Optimal Brain Surgeon (Hassibi and Stork, 1992) quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from amed_env.problem.allocation import FLOAT_BITS
from amed_env.quantization.layers import PreparedWidth, QuantizedLayer, prepared_width
from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.ranges import quantize_weight
from amed_env.quantization.recipe import LEARNED_WIDTHS
from amed_env.quantization.rounding import integer_range

MOMENT_SAMPLES = 256
POSITIONS_PER_WEIGHT = 32
"""Vectors that moments are taken over, as a multiple of their length; more of them change nothing."""
DAMPING = 0.01
"""Part of the mean moment that is added to each (GPTQ's): without it, inputs that are always 0 have no inverse."""
_BLOCK = 64  # columns whose corrections of later ones are made at once
_PATCH_BYTES = 64 * 2**20


def solvable(layer: QuantizedLayer) -> bool:
    """Whether a layer multiplies vectors that it reads: a linear layer, or a convolution in one or two dimensions."""
    return isinstance(layer.layer, nn.Linear | nn.Conv1d | nn.Conv2d)


def solved(
    network: QuantizedNetwork, inputs: torch.Tensor, layers: Iterable[QuantizedLayer]
) -> dict[str, Mapping[int, torch.Tensor]]:
    """Where the weights of all layers stand on their grids after solving them; see `solved_positions`.

    Args:
        network: The calibrated network.
        inputs: Float tensor (N, …) of calibration samples.
        layers: The layers that are asked for.

    Returns:
        By layer and width; no entry for layers that are not `solvable`.
    """
    moments = input_moments(network, inputs)
    return {
        layer.name: solved_positions(layer.layer.weight.detach(), moments[layer.name], LEARNED_WIDTHS)
        for layer in layers
        if layer.name in moments
    }


@torch.no_grad()
def solved_widths(network: QuantizedNetwork, inputs: torch.Tensor) -> dict[tuple[str, int], PreparedWidth]:
    """The solution itself, by layer and width, with the scales of the nearest rounding and nothing learned."""
    learning = [layer for name, layer in network.weighted.items() if name not in network.workload.sharing]
    prepared = {}
    for name, positions in solved(network, inputs, learning).items():
        layer = network.weighted[name]
        for bits, position in positions.items():
            _, scales = quantize_weight(layer.layer.weight.detach(), bits)
            integers = position.round().clamp(*integer_range(bits, unsigned=False))
            scale = layer.statistics.scale(bits)
            prepared[name, bits] = prepared_width(integers, scales, layer.layer.bias, scale, bits)
    return prepared


@torch.no_grad()
def input_moments(network: QuantizedNetwork, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Second moments of what the layers of the float network read.

    Args:
        network: The network.
        inputs: Float tensor (N, …), of which the first `MOMENT_SAMPLES` are used.

    Returns:
        By layer: float32 (groups, K, K) with K weights of a row; no entry for layers that are not `solvable`.
    """
    inputs = network.whole_batches(inputs[:MOMENT_SAMPLES])  # copies that fill a batch up would count
    moments: dict[str, torch.Tensor] = {}

    def observe(layer: QuantizedLayer) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def record(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            for vectors in _vectors(layer.layer, arguments[0], len(inputs)):
                found = vectors @ vectors.transpose(1, 2)
                moments[layer.name] = moments[layer.name] + found if layer.name in moments else found

        return record

    network.select(network.workload.uniform(FLOAT_BITS))
    layers = [layer for layer in network.weighted.values() if solvable(layer)]
    handles = [layer.register_forward_pre_hook(observe(layer)) for layer in layers]
    try:
        for batch in inputs.split(network.batch_size):
            network.run_in_float(batch)
    finally:
        for handle in handles:
            handle.remove()
    return moments


def _vectors(layer: nn.Module, read: torch.Tensor, samples: int) -> list[torch.Tensor]:
    """Some of the vectors that a layer multiplies: float32 (groups, K, vectors), in parts that fit the memory."""
    groups = getattr(layer, "groups", 1)
    return [part.reshape(groups, -1, part.shape[1]) for part in _positions(layer, read, samples)]


def vectors_and_outputs(
    layer: nn.Module, read: torch.Tensor, outputs: torch.Tensor, samples: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Some of the vectors that a layer multiplies, and what stands where it writes the result of each.

    Args:
        layer: A linear layer or a convolution in one or two dimensions.
        read: What it reads.
        outputs: A tensor of the shape of its output.
        samples: Samples of all calls; see `POSITIONS_PER_WEIGHT`.

    Returns:
        float32 (groups, K, vectors) and (groups, rows, vectors), in parts that fit the memory.
    """
    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    groups, rows = getattr(layer, "groups", 1), layer.weight.shape[0]
    pairs = []
    for part in _positions(layer, read, samples, outputs):
        vectors, values = part[:-rows], part[-rows:]
        pairs.append((vectors.reshape(groups, -1, part.shape[1]), values.reshape(groups, -1, part.shape[1])))
    return pairs


def _positions(
    layer: nn.Module, read: torch.Tensor, samples: int, outputs: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Vectors that a layer multiplies, with what is in `outputs` at the same place below: float32 (rows, vectors)."""
    if isinstance(layer, nn.Linear):
        rows = read.reshape(-1, read.shape[-1])
        wanted = -(-POSITIONS_PER_WEIGHT * rows.shape[1] * len(read) // samples)
        if outputs is not None:
            rows = torch.cat([rows, outputs.reshape(-1, outputs.shape[-1])], dim=1)
        return [rows[:: max(1, len(rows) // wanted)].T]
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    kernel, stride, dilation = list(layer.kernel_size), list(layer.stride), list(layer.dilation)
    if isinstance(layer.padding, str):
        spans = [d * (size - 1) if layer.padding == "same" else 0 for d, size in zip(dilation, kernel, strict=True)]
        sides = [side for span in reversed(spans) for side in (span // 2, span - span // 2)]
    else:
        sides = [side for width in reversed(layer.padding) for side in (width, width)]
    read = F.pad(read, sides)
    if isinstance(layer, nn.Conv1d):
        read = read.unsqueeze(2)
        kernel, stride, dilation = [1, *kernel], [1, *stride], [1, *dilation]
    weights = layer.weight[0].numel()
    wanted = -(-POSITIONS_PER_WEIGHT * weights // samples)
    bytes_of_sample = read[0].numel() * weights // layer.weight.shape[1] * 4 // (stride[0] * stride[1])
    size = max(1, _PATCH_BYTES // bytes_of_sample)
    parts = []
    for start in range(0, len(read), size):
        patches = F.unfold(read[start : start + size].contiguous(), tuple(kernel), tuple(dilation), 0, tuple(stride))
        if outputs is not None:
            patches = torch.cat([patches, outputs[start : start + size].flatten(2)], dim=1)
        step = max(1, patches.shape[2] // wanted)
        # Of each sample others, so that no place of the picture is left out.
        chosen = torch.stack(
            [one[:, index % step :: step][:, : patches.shape[2] // step] for index, one in enumerate(patches)]
        )
        parts.append(chosen.transpose(0, 1).flatten(1))
    return parts


@torch.no_grad()
def solved_positions(weight: torch.Tensor, moments: torch.Tensor, widths: Sequence[int]) -> Mapping[int, torch.Tensor]:
    """Where weights stand on their grids after all that was rounded before them is made up for.

    Args:
        weight: The weights of a layer.
        moments: Its entry of `input_moments`.
        widths: Widths of the weights.

    Returns:
        By width: the weights in steps of the grid, float32 of the weight's shape. Rounded to the nearest point of the
        grid they are the solution.
    """
    groups, length = moments.shape[:2]
    rows = weight.shape[0] // groups
    order, factor = _factor(moments.double())
    positions, limits = [], []
    for bits in widths:
        _, scales = quantize_weight(weight, bits)
        positions.append((weight / scales).reshape(groups, rows, length))
        limits.append(torch.tensor(integer_range(bits, unsigned=False)).expand(rows, 2))
    # All widths at once: they are further rows of the same problem.
    current = torch.cat(positions, dim=1).double()
    low, high = torch.cat(limits).double().unbind(dim=1)
    current = current.gather(2, order[:, None].expand_as(current))
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        errors = torch.zeros_like(current[:, :, start:end])
        for column in range(start, end):
            position = current[:, :, column]
            error = (position - position.round().clamp(low, high)) / factor[:, column, column, None]
            current[:, :, column + 1 : end] -= error[:, :, None] * factor[:, column, None, column + 1 : end]
            errors[:, :, column - start] = error
        current[:, :, end:] -= errors @ factor[:, start:end, end:]
    inverse = order.argsort(dim=1)[:, None].expand_as(current)
    solved = current.gather(2, inverse).float().reshape(groups, len(widths), rows, length)
    return {bits: solved[:, place].reshape(weight.shape) for place, bits in enumerate(widths)}


def _factor(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of columns, the largest moments first, and the upper Cholesky factor of the inverse in that order."""
    diagonal = moments.diagonal(dim1=1, dim2=2)
    order = diagonal.argsort(dim=1, descending=True)
    length = moments.shape[1]
    rows = order[:, :, None].expand_as(moments)
    moments = moments.gather(1, rows).gather(2, order[:, None].expand_as(moments))
    added = DAMPING * diagonal.mean(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    moments = moments + added[:, None, None] * torch.eye(length, dtype=moments.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    return order, torch.linalg.cholesky(inverse, upper=True)
