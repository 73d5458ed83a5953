"""Rounding solved for one allocation: each layer makes up for what the layers before it have lost.

What is prepared for all allocations cannot know what a layer will read. For one of them it is known: the layers are
gone through in order, and the weights and biases of each become those of least squared error against the float
network's results, given what the quantized layers before it return. Then they are rounded as in `layerwise`. So it
takes one pass of some hundred samples and a linear system a layer. What is solved for one allocation is worse than
before for others, so it is for the answer of a search.

Source: solving layers in order against the float network's results is asymmetric calibration (GPTAQ, Li et al., ICML
2025); that shortcuts are made up for, and biases solved with the weights, is this project's.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import fx

from amed_env.problem.allocation import FLOAT_BITS, BitAllocation, Precision
from amed_env.quantization.layers import PreparedWidth, QuantizedLayer, StoredTensor, channels_last, prepared_width
from amed_env.quantization.layerwise import MOMENT_SAMPLES, solvable, solved_positions, vectors_and_outputs
from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.products import QuantizedProduct
from amed_env.quantization.ranges import quantize_weight
from amed_env.quantization.recipe import LEARNED_WIDTHS
from amed_env.quantization.rounding import integer_range

RIDGE = 0.1
"""Part of the mean moment that holds weights where they are: a layer reads few samples beside its number of weights."""
_MOST_BYTES = 2 * 2**30
_LIVE_TENSORS = 4
"""Results that are in memory at once, of the size of the largest: a layer's input and output, and a shortcut."""
_FLOAT = Precision(FLOAT_BITS, FLOAT_BITS)


@torch.no_grad()
def solved_for(
    network: QuantizedNetwork, allocation: BitAllocation, inputs: torch.Tensor
) -> dict[tuple[str, int], PreparedWidth]:
    """Weights and biases of the layers that have one of `LEARNED_WIDTHS` in an allocation, solved for it.

    Layers that are called more than once, share weights or multiply no vectors stay as they are.

    Args:
        network: The network, prepared; it takes batches of any size. It is left as it was.
        allocation: The allocation.
        inputs: Float tensor (N, …) of calibration samples, of which the first are used.

    Returns:
        By layer and width.
    """
    network.select(allocation)
    samples = channels_last(inputs[: _samples_in_memory(network)].to(network.device))
    solving = _Solving(network, len(samples))
    # The float network's samples and the quantized one's go through it as one batch.
    solving.run(torch.cat([samples, samples]))
    return solving.solved


def _samples_in_memory(network: QuantizedNetwork) -> int:
    largest = max(max(layer.input_elements, layer.output_elements) for layer in network.workload)
    return max(1, min(MOMENT_SAMPLES, _MOST_BYTES // (largest * 4 * 2 * _LIVE_TENSORS)))


class _Solving(fx.Interpreter):
    """Runs a network on samples of which the first half meets float layers, the second quantized ones."""

    def __init__(self, network: QuantizedNetwork, count: int) -> None:
        super().__init__(network.module)
        self._network, self._count = network, count
        self._addends = {group.call: group.addend for group in network.groups.values()}
        calls = Counter(node.target for node in network.module.graph.nodes if node.op == "call_module")
        self._solvable = {
            name
            for name, layer in network.weighted.items()
            if solvable(layer) and layer.weight_bits in LEARNED_WIDTHS
            if calls[name] == 1 and name not in network.workload.sharing
        }
        self.solved: dict[tuple[str, int], PreparedWidth] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The result of a node for all samples."""
        module = self.submodules.get(str(n.target)) if n.op == "call_module" else None
        if not isinstance(module, QuantizedLayer | QuantizedProduct | StoredTensor):
            return super().run_node(n)
        arguments, keywords = self.fetch_args_kwargs_from_env(n)
        given = [*arguments, *keywords.values()]
        exact = [values[: self._count] for values in given]
        rounded = [values[self._count :] for values in given]
        if isinstance(module, StoredTensor):
            return torch.cat([exact[0], module(rounded[0])])
        found: torch.Tensor = module.at(_FLOAT, *exact)
        if isinstance(module, QuantizedLayer) and module.name in self._solvable:
            wanted = found
            addend = self._addends.get(n)
            if addend in self.env:
                wanted = found + self.env[addend][: self._count] - self.env[addend][self._count :]
            solved = _solution(module, rounded[0], wanted)
            self.solved[module.name, module.weight_bits] = solved
            inputs = module.rounded_inputs(rounded[0], module.activation_bits)
            bias = None if solved.bias is None else solved.bias.to(found.device)
            weight = channels_last(solved.weight.to(found.device))
            return torch.cat([found, module.compute(inputs, weight, bias)])
        return torch.cat([found, module(*rounded)])


def _solution(layer: QuantizedLayer, read: torch.Tensor, wanted: torch.Tensor) -> PreparedWidth:
    """Weights and biases with which a layer makes of what it reads as nearly as it can what is wanted."""
    weight, bits = layer.layer.weight.detach().cpu(), layer.weight_bits
    bias = torch.zeros(weight.shape[0]) if layer.layer.bias is None else layer.layer.bias.detach().cpu()
    read = layer.rounded_inputs(read, layer.activation_bits)
    missing = wanted - layer.compute(read, layer.layer.weight, layer.layer.bias)
    parts = vectors_and_outputs(layer.layer, read, missing, len(read))
    vectors = torch.cat([vectors for vectors, _ in parts], dim=2).cpu()
    missing = torch.cat([values for _, values in parts], dim=2).cpu()
    # A bias is free, so only what varies is left to the weights.
    mean_read, mean_missing = vectors.mean(dim=2, keepdim=True), missing.mean(dim=2, keepdim=True)
    vectors, missing = vectors - mean_read, missing - mean_missing
    moments = (vectors @ vectors.transpose(1, 2)).double()
    size = moments.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    held = moments + RIDGE * size[:, None, None] * torch.eye(moments.shape[1], dtype=moments.dtype)
    change = torch.linalg.solve(held, (vectors @ missing.transpose(1, 2)).double()).transpose(1, 2)
    changed = weight + change.reshape(weight.shape).float()
    _, scales = quantize_weight(changed, bits)
    position = solved_positions(changed, moments, (bits,))[bits]
    integers = position.round().clamp(*integer_range(bits, unsigned=False))
    lost = (weight - integers * scales).reshape(*mean_missing.shape[:2], -1)
    bias = bias + (mean_missing + lost @ mean_read).flatten()
    return prepared_width(integers, scales, bias, layer.prepared[bits].activation_scale, bits)
