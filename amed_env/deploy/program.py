"""What every export needs of a quantized network: its graph, and of each layer the integers, scales and grids.

It is read from the evaluator's network under one allocation, so that what is exported is what was evaluated. The graph
stays the evaluator's: a format that has a layer by a standard operation replaces the module, and what is computed in
float stays in float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from amed_env.problem.allocation import FLOAT_BITS, BitAllocation, Precision
from amed_env.quantization.codes import WIDEST, Format
from amed_env.quantization.integer import IntegerEngine
from amed_env.quantization.layers import STORED_BITS, Quantizable, QuantizedLayer, StoredTensor
from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.products import QuantizedProduct
from amed_env.quantization.rescaling import bias_integers, multiplies_scales_first
from amed_env.quantization.rounding import integer_range


@dataclass(frozen=True)
class Grid:
    """What a value is rounded to as it is read: an integer from `low` to `high`, times `scale`.

    Attributes:
        scale: Value of one step; a float32.
        bits: Width.
        low, high: The smallest and the largest integer.
    """

    scale: float
    bits: int
    low: int
    high: int

    @classmethod
    def of(cls, scale: float, bits: int, unsigned: bool) -> Grid:
        """The grid of a width."""
        return cls(scale, bits, *integer_range(bits, unsigned))

    @property
    def format(self) -> Format:
        """The same as codes of 8 bits; of widths up to 8 only."""
        assert self.bits <= WIDEST
        return Format.of(self.scale, self.bits, self.low >= 0)


@dataclass(frozen=True)
class LayerProgram:
    """A layer with weights under its precision.

    Attributes:
        name: Its name.
        module: The float layer, for its kind and its options.
        precision: Its widths.
        integers: int8 (int16 above 8 bits) of the weight's shape, output channel first; None if weights are floats. A
            channel of w bits may hold +2^(w-1) (its scale was negative once), and then holds no -2^(w-1).
        scales: float32 (out_channels,): a weight is its integer times this. None if weights are floats.
        bias: float32 (out_channels,) or None.
        read: What the layer reads is rounded to; None if it reads floats, or indices.
    """

    name: str
    module: Quantizable
    precision: Precision
    integers: npt.NDArray[np.int8] | npt.NDArray[np.int16] | None
    scales: npt.NDArray[np.float32] | None
    bias: npt.NDArray[np.float32] | None
    read: Grid | None

    def integer_bias(self, scales: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        """The bias as integer-only devices add it to sums: int32 (out_channels,); of layers that have one and round.

        Args:
            scales: Those of the weights, which a format may store with another sign.
        """
        assert self.bias is not None and self.read is not None
        integers = bias_integers(torch.from_numpy(self.bias), self.read.scale, torch.from_numpy(scales))
        return integers.numpy().astype(np.int32)

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights at their width: what the allocation promises."""
        return int(self.module.weight.numel()) * self.precision.weight_bits / 8


@dataclass(frozen=True)
class ProductProgram:
    """A product of two activations under its precision.

    Attributes:
        name: Its name.
        left, right: What the operands are rounded to; None if they stay floats.
    """

    name: str
    left: Grid | None
    right: Grid | None


@dataclass(frozen=True)
class Program:
    """A quantized network under one allocation.

    Attributes:
        name: Of the network.
        allocation: The allocation.
        module: The network; every layer is a `QuantizedLayer` or a `QuantizedProduct`, and results that are kept at 8
            bits pass a `StoredTensor`. It is the evaluator's own: copy it before changing it.
        layers: Layers with weights by name, in network order.
        products: Products of activations by name.
        stored: Grids of kept results by the module's name; empty if some layer reads floats, as nothing is kept then.
        example: Float tensor (N, …) that the network accepts.
        fixed_batch: The only number of samples that the network takes at once; None for any.
        scales_first: Whether sums are multiplied by the product of both scales, or by one after the other: as the
            evaluator on this machine does (`quantization.rescaling`).
    """

    name: str
    allocation: BitAllocation
    module: fx.GraphModule
    layers: Mapping[str, LayerProgram]
    products: Mapping[str, ProductProgram]
    stored: Mapping[str, Grid]
    shared: frozenset[str]
    example: torch.Tensor
    fixed_batch: int | None
    scales_first: bool

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights at their widths; weights that several layers share are counted once."""
        return sum(layer.weight_bytes for name, layer in self.layers.items() if name not in self.shared)


def program_of(network: QuantizedNetwork, allocation: BitAllocation) -> Program:
    """The program of a network under an allocation; the network is switched to it.

    Raises:
        AllocationError: If the allocation does not have exactly the network's layers.
        UnsupportedPrecisionError: If a width cannot be evaluated.
    """
    network.select(allocation)
    stored_at = network.as_stored(allocation)
    layers: dict[str, LayerProgram] = {}
    products: dict[str, ProductProgram] = {}
    for name, layer in network.layers.items():
        precision = stored_at[name]
        if isinstance(layer, QuantizedLayer):
            layers[name] = _layer(layer, precision)
        else:
            products[name] = _product(layer, precision)
    stored: dict[str, Grid] = {}
    if IntegerEngine.runs(stored_at):
        for name, module in network.module.named_modules():
            if isinstance(module, StoredTensor):
                stored[name] = Grid.of(module.scale, STORED_BITS, module.statistics.unsigned)
    return Program(
        network.workload.name,
        allocation,
        network.module,
        layers,
        products,
        stored,
        frozenset(layer.name for layer in network.workload if layer.shares_weights_with),
        network.example,
        network.fixed_batch,
        multiplies_scales_first(),
    )


def _layer(layer: QuantizedLayer, precision: Precision) -> LayerProgram:
    module = layer.layer
    read: Grid | None = None
    if precision.activation_bits != FLOAT_BITS and not layer.reads_indices:
        step = layer.prepared[precision.activation_bits].activation_scale
        read = Grid.of(step, precision.activation_bits, layer.statistics.unsigned)
    if precision.weight_bits == FLOAT_BITS:
        return LayerProgram(layer.name, module, precision, None, None, _array(module.bias), read)
    prepared = layer.prepared[precision.weight_bits]
    integers, scales = prepared.integers.cpu().numpy(), prepared.scales.cpu().numpy()
    return LayerProgram(layer.name, module, precision, integers, scales, _array(prepared.bias), read)


def _product(product: QuantizedProduct, precision: Precision) -> ProductProgram:
    grids: list[Grid | None] = []
    for operand, bits in enumerate((precision.activation_bits, precision.weight_bits)):
        if bits == FLOAT_BITS:
            grids.append(None)
        else:
            step, unsigned = product.prepared[bits].steps[operand], product.operands[operand].unsigned
            grids.append(Grid.of(step, bits, unsigned))
    return ProductProgram(product.name, *grids)


def _array(values: torch.Tensor | nn.Parameter | None) -> npt.NDArray[np.float32] | None:
    return None if values is None else values.detach().float().cpu().numpy()
