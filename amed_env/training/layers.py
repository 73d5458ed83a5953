"""What a layer, and a result that is kept at 8 bits, compute while they are trained."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from amed_env.problem.allocation import FLOAT_BITS
from amed_env.quantization.layers import STORED_BITS, PreparedWidth, QuantizedLayer, StoredTensor, prepared_width
from amed_env.quantization.ranges import quantize_weight
from amed_env.quantization.rounding import integer_range
from amed_env.quantization.statistics import short_scale
from amed_env.tracing.lowering import EmbeddingTable
from amed_env.training.lsq import quantize_activations, quantize_weights

EPSILON = 1e-5
"""Added to variances of batch norms; torch's own default."""
NORM_MOMENTUM = 0.1
"""How far running means and variances go to those of a batch; torch's own default."""
CELL = 0.25
"""How far from the middle of its cell, in steps, a weight starts at the most, so that it rounds as it did before and a
little noise does not change that. At 0.45 twenty steps lost what rounding had learned
(docs/decisions.md, 76)."""
LEAST_STEP = 1e-2
"""No step size falls below this part of its first value: at zero it would divide by zero."""


class LearnedSteps(nn.Module):
    """The step sizes of a layer at one width, or of one thing that has a single width.

    Attributes:
        bits: The width.
        step: The positive step sizes, which are trained.
        sign: ±1 for each: a negative one mirrors the grid (see `quantization.ranges.quantize_weight`).
        low, high: The smallest and the largest integer.
    """

    def __init__(self, bits: int, steps: torch.Tensor, unsigned: bool) -> None:
        super().__init__()
        self.bits = bits
        self.low, self.high = integer_range(bits, unsigned)
        self.step = nn.Parameter(steps.abs().float())
        self.sign: torch.Tensor
        self.register_buffer("sign", torch.where(steps < 0, -1.0, 1.0))
        self._least = LEAST_STEP * self.step.detach().clone()

    def signed(self) -> torch.Tensor:
        """The step sizes with their signs."""
        return self.step * self.sign

    @torch.no_grad()
    def keep_positive(self) -> None:
        """Undo steps of the optimizer that went too near to zero, or beyond."""
        self._least = self._least.to(self.step.device)
        self.step.clamp_(min=self._least)

    def extra_repr(self) -> str:
        """The width."""
        return f"{self.bits} bits"


class TrainedLayer(nn.Module):
    """Weights, bias and step sizes of a layer that are trained; it computes in place of the layer meanwhile.

    Args:
        layer: The layer, calibrated.
        per_channel: Whether every output channel has a step size of its own.
        normalise: Whether a convolution is followed by a batch norm while it is trained, which changes nothing at first
            (`set_norm`) and is folded into scales and biases in the end.

    Attributes:
        weight: Float weights, of which the quantized ones are made; shared by all widths.
        weight_steps, activation_steps: Step sizes by width.
        moments: Where its outputs are measured meanwhile, or None.
        momentum: How far means and variances of the batch norm go to those of a batch.
    """

    def __init__(self, layer: QuantizedLayer, per_channel: bool = True, normalise: bool = False) -> None:
        super().__init__()
        self._layer = [layer]  # in a list: it is no part of this module
        self.per_channel = per_channel
        self.normalises = normalise and not isinstance(layer.layer, nn.Linear | EmbeddingTable)
        self.weight = nn.Parameter(layer.layer.weight.detach().clone())
        bias = layer.layer.bias
        self.bias = None if bias is None or self.normalises else nn.Parameter(bias.detach().clone())
        self._first_bias = None if bias is None else bias.detach().clone()
        if self.normalises:
            channels = len(self.weight)
            self.gain, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
            self.mean: torch.Tensor
            self.variance: torch.Tensor
            self.register_buffer("mean", torch.zeros(channels))
            self.register_buffer("variance", torch.ones(channels))
            self.to(layer.layer.weight.device)
        self.weight_steps, self.activation_steps = nn.ModuleDict(), nn.ModuleDict()
        self.weight_bits = self.activation_bits = FLOAT_BITS
        self.moments: OutputMoments | None = None
        self.momentum = NORM_MOMENTUM

    @property
    def layer(self) -> QuantizedLayer:
        """The layer that it stands for."""
        return self._layer[0]

    def add_width(self, bits: int) -> None:
        """Have step sizes of a width, that start at those of the post-training quantization."""
        if bits == FLOAT_BITS:
            return
        self.layer.prepare(bits)
        prepared = self.layer.prepared[bits]
        device = self.weight.device
        if str(bits) not in self.activation_steps:
            activation = torch.tensor(prepared.activation_scale)
            steps = LearnedSteps(bits, activation, self.layer.statistics.unsigned)
            self.activation_steps[str(bits)] = steps.to(device)
        if str(bits) not in self.weight_steps:
            self.weight_steps[str(bits)] = LearnedSteps(bits, self._first_steps(prepared, bits), False).to(device)

    def share_weights(self, other: TrainedLayer) -> None:
        """Have the weights of another layer and their step sizes: they are stored once."""
        self.weight, self.weight_steps = other.weight, other.weight_steps

    def _first_steps(self, prepared: PreparedWidth, bits: int) -> torch.Tensor:
        weight = self.layer.layer.weight.detach().cpu()
        if not self.per_channel:
            _, scale = quantize_weight(weight.reshape(1, -1), bits)
            return scale.reshape([1] * weight.dim())
        shape = (-1, *[1] * (weight.dim() - 1))
        return (prepared.scales * _signs(prepared.integers, weight, bits)).view(shape)

    @torch.no_grad()
    def start_from(self, bits: int) -> None:
        """Move weights into the cells to which the prepared network rounds them at a width, and take over its biases.

        A weight goes no further than it must, so that training starts with what post-training quantization ended with.
        Does nothing with a single step size for all channels, which cannot stand for that network.
        """
        if bits == FLOAT_BITS or not self.per_channel:
            return
        prepared, steps = self.layer.prepared[bits], self.weight_steps[str(bits)]
        assert isinstance(steps, LearnedSteps)
        signed = steps.signed()
        integers = prepared.integers.to(self.weight.device).float() * steps.sign
        low = torch.where(integers <= steps.low, -torch.inf, integers - CELL)
        high = torch.where(integers >= steps.high, torch.inf, integers + CELL)
        position = (self.weight / signed).clamp(low, high)
        self.weight.copy_(position * signed)
        if prepared.bias is not None:
            bias = prepared.bias.to(self.weight.device)
            self._first_bias = bias.clone()
            if self.bias is not None:
                self.bias.copy_(bias)

    def select(self, weight_bits: int, activation_bits: int) -> None:
        """Compute at a precision whose widths were added."""
        self.weight_bits, self.activation_bits = weight_bits, activation_bits

    def quantized_weight(self) -> torch.Tensor:
        """Weights at the selected width, differentiable."""
        steps = self.weight_steps[str(self.weight_bits)]
        assert isinstance(steps, LearnedSteps)
        return quantize_weights(self.weight, steps.signed(), steps.low, steps.high)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The layer at the selected precision."""
        if self.activation_bits != FLOAT_BITS and not self.layer.reads_indices:
            steps = self.activation_steps[str(self.activation_bits)]
            assert isinstance(steps, LearnedSteps)
            inputs = quantize_activations(inputs, steps.step, steps.low, steps.high)
        if self.weight_bits == FLOAT_BITS:  # float layers stay as they are
            return self.layer.compute(inputs, self.layer.layer.weight, self.layer.layer.bias)
        weight = self.quantized_weight()
        if self.moments is not None:
            return self._observe(self.layer.compute(inputs, weight, None))
        if not self.normalises:
            return self.layer.compute(inputs, weight, self.bias)
        outputs = self.layer.compute(inputs, weight, None)
        return F.batch_norm(
            outputs, self.mean, self.variance, self.gain, self.shift, self.training, self.momentum, EPSILON
        )

    def _observe(self, outputs: torch.Tensor) -> torch.Tensor:
        assert self.moments is not None
        channel = outputs.dim() - 1 if isinstance(self.layer.layer, nn.Linear | EmbeddingTable) else 1
        self.moments.add(outputs, channel)
        if self._first_bias is None:
            return outputs
        shape = [1] * outputs.dim()
        shape[channel] = -1
        return outputs + self._first_bias.view(shape)

    @torch.no_grad()
    def set_norm(self, moments: OutputMoments) -> None:
        """Let the batch norm begin as the identity, with the means and variances that were observed."""
        if not self.normalises:
            return
        self.mean.copy_(moments.mean)
        self.variance.copy_(moments.variance)
        self.gain.copy_((self.variance + EPSILON).sqrt())
        self.shift.copy_(self.mean if self._first_bias is None else self.mean + self._first_bias)

    @torch.no_grad()
    def export(self) -> dict[int, PreparedWidth]:
        """The layer at the widths of its selected precision, in integers, with the batch norm folded; {} for float."""
        exported_widths: dict[int, PreparedWidth] = {}
        if self.weight_bits != FLOAT_BITS:
            self.layer.prepare(self.weight_bits)
            exported_widths[self.weight_bits] = self._integer_weights(
                self.layer.prepared[self.weight_bits].activation_scale
            )
        if self.activation_bits != FLOAT_BITS:
            self.layer.prepare(self.activation_bits)
            width = exported_widths.get(self.activation_bits, self.layer.prepared[self.activation_bits])
            step = self.activation_steps[str(self.activation_bits)]
            assert isinstance(step, LearnedSteps)
            exported_widths[self.activation_bits] = replace(width, activation_scale=short_scale(float(step.step)))
        return exported_widths

    def _integer_weights(self, activation_scale: float) -> PreparedWidth:
        steps = self.weight_steps[str(self.weight_bits)]
        assert isinstance(steps, LearnedSteps)
        signed = steps.signed()
        integers = (self.weight / signed).round().clamp(steps.low, steps.high)
        scales = signed.expand(len(self.weight), *signed.shape[1:]).reshape(-1)
        bias: torch.Tensor | None = self.bias
        if self.normalises:
            factor = self.gain / (self.variance + EPSILON).sqrt()
            scales, bias = scales * factor, self.shift - self.mean * factor
        if self.weight_bits >= STORED_BITS:  # mirrored, the smallest integer would not fit
            mirrored = (scales < 0).view(-1, *[1] * (integers.dim() - 1))
            integers = torch.where(mirrored, integers.clamp_min(-steps.high), integers)
        exported = prepared_width(integers.cpu(), scales.cpu(), bias, activation_scale, self.weight_bits)
        return replace(exported, bias=None if exported.bias is None else exported.bias.cpu())


class OutputMoments:
    """Mean and variance of every channel of a layer's outputs before the bias."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, outputs: torch.Tensor, channel: int) -> None:
        """Take in a batch.

        Args:
            outputs: Float tensor (N, …).
            channel: Its axis of channels.
        """
        rows = outputs.detach().movedim(channel, -1).reshape(-1, outputs.shape[channel]).double()
        self._count += len(rows)
        self._sum = self._sum.to(rows.device) + rows.sum(dim=0)
        self._squares = self._squares.to(rows.device) + rows.square().sum(dim=0)

    @property
    def mean(self) -> torch.Tensor:
        """float64 (channels,)."""
        return self._sum / self._count

    @property
    def variance(self) -> torch.Tensor:
        """float64 (channels,)."""
        return (self._squares / self._count - self.mean.square()).clamp_min(0.0)


class TrainedStore(nn.Module):
    """A result that is kept at 8 bits, with a learned step size.

    Args:
        stored: The result, calibrated.
        device: Where it is computed.
    """

    def __init__(self, stored: StoredTensor, device: torch.device) -> None:
        super().__init__()
        self.steps = LearnedSteps(STORED_BITS, torch.tensor(stored.scale), stored.statistics.unsigned).to(device)
        self.active = False

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """The values, rounded if it is active."""
        if not self.active:
            return values
        return quantize_activations(values, self.steps.step, self.steps.low, self.steps.high)

    def scale(self) -> float:
        """The step size with as many bits as the kernels need."""
        return short_scale(float(self.steps.step.detach()))


def _signs(integers: torch.Tensor, weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Which channels of a prepared width have a mirrored grid: (out_channels,) of ±1.

    Prepared integers carry the sign themselves. One that fits only a mirrored grid tells; where all fit both, the
    longer tail decides.
    """
    rows, tails = integers.reshape(len(integers), -1), weight.reshape(len(weight), -1)
    _, high = integer_range(bits, unsigned=False)
    if bits >= STORED_BITS:
        return torch.ones(len(rows))
    longer = tails.amax(dim=1) > -tails.amin(dim=1)
    mirrored = (rows.amax(dim=1) > high) | (longer & (rows.amin(dim=1) >= -high))
    return torch.where(mirrored, -1.0, 1.0)
