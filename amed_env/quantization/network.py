"""A network with fake quantization: every layer's weights and the activations that it reads are rounded to any width.

Weights: symmetric, one scale an output channel. Activations: one scale a tensor, unsigned where calibration never saw a
negative value, signed otherwise. All scales come from one calibration pass and are prepared once per (layer, width).
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable
from typing import cast

import torch
from torch import nn

from amed_env.allocation import FLOAT_BITS, BitAllocation
from amed_env.errors import DataError, NonFiniteError
from amed_env.quantization.ranges import quantize_weight, squared_error_scales
from amed_env.quantization.reuse import PrefixReuse
from amed_env.quantization.rounding import check_supported, integer_range
from amed_env.threads import torch_threads
from amed_env.tracing import TracedNetwork

Quantizable = nn.Conv1d | nn.Conv2d | nn.Linear

ACTIVATION_SAMPLE = 2**16
"""Activations of a layer that the range search looks at; more changes no scale by more than its own grid."""


class ActivationStatistics:
    """Extremes and a seeded sample of everything that a layer reads during calibration."""

    def __init__(self, seed: int = 0) -> None:
        self.minimum, self.maximum = float("inf"), float("-inf")
        self._generator = torch.Generator().manual_seed(seed)
        self._samples: list[torch.Tensor] = []

    def update(self, values: torch.Tensor, share: float) -> None:
        """Take in the input of one call.

        Args:
            values: Float tensor of any shape.
            share: The part of the calibration samples that is in it.
        """
        flat = values.detach().reshape(-1)
        self.minimum = min(self.minimum, float(flat.min()))
        self.maximum = max(self.maximum, float(flat.max()))
        count = max(1, round(ACTIVATION_SAMPLE * share))
        chosen = flat
        if flat.numel() > count:
            chosen = flat[torch.randint(flat.numel(), (count,), generator=self._generator)]
        self._samples.append(chosen.float().clone())

    @property
    def unsigned(self) -> bool:
        """Whether no negative value was seen."""
        return self.minimum >= 0

    def scale(self, bits: int) -> float:
        """The scale that minimises the squared error of the sample at a width."""
        # The extremes belong to the sample: at 8 bits they matter more than their number.
        values = torch.cat([*self._samples, torch.tensor([self.minimum, self.maximum])])
        return float(squared_error_scales(values[None], bits, self.unsigned))


class QuantizedLayer(nn.Module):
    """A convolution or linear layer that computes at a selected precision.

    Args:
        layer: The float layer; it is kept as it is.
        name: Its name, for messages.
        reuse: Knows outputs that were computed before.
    """

    def __init__(self, layer: Quantizable, name: str, reuse: PrefixReuse) -> None:
        super().__init__()
        self.layer, self.name, self.reuse = layer, name, reuse
        self.statistics: ActivationStatistics | None = None
        self.recording_share: float | None = None
        self._weights: dict[int, torch.Tensor] = {}
        self._scales: dict[int, float] = {}
        self.weight_bits = self.activation_bits = FLOAT_BITS

    def prepare(self, bits: int) -> None:
        """Make the weights and the activation scale of a width, unless they are there already."""
        check_supported(bits, f"layer {self.name!r}")
        if bits != FLOAT_BITS and bits not in self._weights:
            assert self.statistics is not None
            weight = self.layer.weight
            with torch_threads(1):  # many small operations: more threads only wait for each other
                integers, scales = quantize_weight(weight.detach(), bits)
                # The weights go last, as they stand for "prepared": a signal may end this block between two lines.
                self._scales[bits] = self.statistics.scale(bits)
                self._weights[bits] = _channels_last(integers * scales)

    def select(self, weight_bits: int, activation_bits: int) -> None:
        """Compute at this precision from now on."""
        self.prepare(weight_bits)
        self.prepare(activation_bits)
        self.weight_bits, self.activation_bits = weight_bits, activation_bits

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The layer's output for float inputs of the layer's own shape; the name is torch's, for calls by keyword."""
        inputs = input
        if self.recording_share is not None:
            assert self.statistics is not None
            self.statistics.update(inputs, self.recording_share)
        known = self.reuse.find((self.name, self.weight_bits, self.activation_bits))
        if known is not None:
            return known
        if self.activation_bits != FLOAT_BITS:
            assert self.statistics is not None
            low, high = integer_range(self.activation_bits, self.statistics.unsigned)
            scale = self._scales[self.activation_bits]
            # Three passes in place over one copy; torch.fake_quantize_per_tensor_affine takes over ten times as long.
            inputs = inputs.div(scale).round_().clamp_(low, high).mul_(scale)
        layer = self.layer
        weight = layer.weight if self.weight_bits == FLOAT_BITS else self._weights[self.weight_bits]
        if isinstance(layer, nn.Linear):
            outputs = nn.functional.linear(inputs, weight, layer.bias)
        else:
            # The layer's own method applies its padding mode too.
            outputs = layer._conv_forward(inputs, weight, layer.bias)
        self.reuse.keep(outputs)
        return outputs


class QuantizedNetwork:
    """A traced network whose layers can be switched to any precision.

    Args:
        traced: The network; it is copied.
        calibration: Float tensor (N, …) of samples that were not set apart for search or test.
        batch_size: Samples of one forward pass.
        reuse_mib: Memory in MiB for outputs of layers that the next allocation may share; 0 for none.

    Raises:
        DataError: If there is no calibration sample.
        NonFiniteError: If a layer reads NaN or infinity during calibration, or its weights have them; it is named.
    """

    def __init__(
        self, traced: TracedNetwork, calibration: torch.Tensor, batch_size: int = 128, reuse_mib: int = 0
    ) -> None:
        if calibration.shape[0] == 0:
            raise DataError("calibration needs at least one sample; it has none.")
        self.workload = traced.workload
        self.batch_size = batch_size
        self.reuse = PrefixReuse(reuse_mib)
        self.module = copy.deepcopy(traced.module)
        self._layers: dict[str, QuantizedLayer] = {}
        for name in self.workload.layer_names:
            layer = cast(Quantizable, self.module.get_submodule(name))
            if not torch.isfinite(layer.weight).all():
                raise NonFiniteError(f"layer {name!r} has NaN or infinite weights; repair or retrain the network.")
            self._layers[name] = QuantizedLayer(layer, name, self.reuse)
        self.module = _replace(self.module, self._layers)
        for parameter in self.module.parameters():
            parameter.data = _channels_last(parameter.data)
        self._calibrate(calibration)

    def _calibrate(self, calibration: torch.Tensor) -> None:
        for layer in self._layers.values():
            layer.statistics = ActivationStatistics()
        for batch in calibration.split(self.batch_size):
            for layer in self._layers.values():
                layer.recording_share = batch.shape[0] / calibration.shape[0]
            self(batch)
        for name, layer in self._layers.items():
            layer.recording_share = None
            assert layer.statistics is not None
            extremes = torch.tensor([layer.statistics.minimum, layer.statistics.maximum])
            if not torch.isfinite(extremes).all():
                raise NonFiniteError(f"layer {name!r} reads NaN or infinite activations on the calibration samples.")

    def prepare(self, widths: Iterable[int]) -> None:
        """Prepare all layers at some widths ahead of time."""
        for bits in widths:
            for layer in self._layers.values():
                layer.prepare(bits)

    def select(self, allocation: BitAllocation) -> None:
        """Switch every layer to its precision in `allocation`.

        Raises:
            AllocationError: If the allocation does not have exactly this network's layers.
            UnsupportedPrecisionError: If a width cannot be evaluated.
        """
        allocation = allocation.require_layers(self.workload.layer_names, f"network {self.workload.name!r}")
        for name, precision in allocation.items():
            self._layers[name].select(*precision)
        self.reuse.start_pass()

    def float_weights(self) -> list[torch.Tensor]:
        """The float weights of every layer, in order."""
        return [layer.layer.weight.detach() for layer in self._layers.values()]

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor, batch: Hashable | None = None) -> torch.Tensor:
        """Class scores, float32 of shape (N, classes), of one batch.

        Args:
            inputs: Float tensor (N, …).
            batch: A name of the batch, if the same one will come again under other allocations.
        """
        self.reuse.start_batch(batch)
        scores: torch.Tensor = self.module(_channels_last(inputs))
        self.reuse.end_batch()
        return scores


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in the layout in which convolutions on a CPU are fastest."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor.contiguous()


def _replace(module: nn.Module, layers: dict[str, QuantizedLayer]) -> nn.Module:
    """Put the quantized layers where the float ones are, at every path that leads to them."""
    by_identity = {id(wrapper.layer): wrapper for wrapper in layers.values()}
    if id(module) in by_identity:
        return by_identity[id(module)]
    paths = [path for path, child in module.named_modules(remove_duplicate=False) if id(child) in by_identity]
    for path in paths:
        if path:
            module.set_submodule(path, by_identity[id(module.get_submodule(path))])
    return module
