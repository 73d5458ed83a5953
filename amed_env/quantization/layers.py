"""The modules of a fake-quantized network: layers that round what they read, and results that are kept at 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from amed_env.problem.allocation import FLOAT_BITS, Precision
from amed_env.quantization.finiteness import Check, check_finite
from amed_env.quantization.ranges import quantize_weight
from amed_env.quantization.rescaling import bias_integers, rescale_, rescaled
from amed_env.quantization.rounding import check_supported, integer_range
from amed_env.quantization.statistics import ActivationStatistics
from amed_env.support.threads import torch_threads
from amed_env.tracing.lowering import EmbeddingTable, QuantizableModule, TransposedConvolution

Quantizable = QuantizableModule | EmbeddingTable

SIGNED_ZERO = 128
"""The code that stands for zero where values may be negative."""
# Without a stored width a network at 4 bits would still move floats around its residual blocks, which no device does.
STORED_BITS = 8
"""Width of results that more than one reader needs."""


@dataclass(frozen=True)
class PreparedWidth:
    """A layer at one width.

    Attributes:
        integers: Weights as integers, int8 (int16 above 8 bits), of the weight's shape.
        scales: float32 (out_channels,), positive: a weight is its integer times the scale of its output channel.
        bias: float32 (out_channels,) or None.
        activation_scale: A value that is read is its integer times this.
    """

    integers: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None
    activation_scale: float

    @property
    def weight(self) -> torch.Tensor:
        """The rounded weights: float32 of the weight's shape."""
        return self.integers.float() * self.scales.view(-1, *[1] * (self.integers.dim() - 1))


def round_to_nearest(layer: Quantizable, statistics: ActivationStatistics, bits: int) -> PreparedWidth:
    """A layer whose weights go to the nearest point of the grid of least squared error; its bias stays."""
    integers, scales = quantize_weight(layer.weight.detach(), bits)
    step = 1.0 if isinstance(layer, EmbeddingTable) else statistics.scale(bits)  # indices are integers as they are
    return prepared_width(integers, scales, layer.bias, step, bits)


def prepared_width(
    integers: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, activation_scale: float, bits: int
) -> PreparedWidth:
    """The layer of integers (as floats) and of scales that may be negative: the sign goes to the integers.

    Below 8 bits, and from 9 to 15, such a channel may hold +2^(bits-1). The integers of 8 and of 16 bits have no room
    for it: there the largest takes its place, which is one step less.
    """
    flat = scales.reshape(-1)
    sign = torch.where(flat < 0, -1.0, 1.0)
    signed = integers * sign.view(-1, *[1] * (integers.dim() - 1))
    dtype = torch.int8 if bits <= 8 else torch.int16
    signed = signed.clamp(max=torch.iinfo(dtype).max)
    return PreparedWidth(
        signed.to(dtype), flat.abs().float(), None if bias is None else bias.detach().float().clone(), activation_scale
    )


class QuantizedLayer(nn.Module):
    """A layer with weights that computes at a selected precision; an embedding has one scale a row.

    Args:
        layer: The float layer; it is kept as it is.
        name: Its name, for messages.
    """

    def __init__(self, layer: Quantizable, name: str) -> None:
        super().__init__()
        self.layer, self.name = layer, name
        self.operands = [ActivationStatistics()]
        self.recording_share: float | None = None
        self.prepared: dict[int, PreparedWidth] = {}
        self.integer_bias = False
        self._on_step: dict[tuple[int, float], tuple[PreparedWidth, PreparedWidth]] = {}
        self._weights: dict[tuple[str, int], torch.Tensor] = {}
        self.weight_bits = self.activation_bits = FLOAT_BITS
        self.learning: Callable[[torch.Tensor], torch.Tensor] | None = None  # computes in place of it meanwhile
        self.given: dict[str, torch.Tensor] | None = None  # settings in place of the selected ones (see `together`)
        self.check: Check = check_finite  # of what is rounded

    @property
    def statistics(self) -> ActivationStatistics:
        """What calibration remembers of what it reads."""
        return self.operands[0]

    @property
    def reads_indices(self) -> bool:
        """Whether it looks rows up: what it reads is no activation that could be rounded."""
        return isinstance(self.layer, EmbeddingTable)

    def prepare(self, bits: int) -> None:
        """Make what a width needs, unless it is there already."""
        check_supported(bits, f"layer {self.name!r}")
        if bits != FLOAT_BITS and bits not in self.prepared:
            with torch_threads(1):  # many small operations: more threads only wait for each other
                self.prepared[bits] = round_to_nearest(self.layer, self.statistics, bits)

    def prepared_for(self, weight_bits: int, step: float) -> PreparedWidth:
        """The layer at a width, for inputs that are integers times `step`: integer biases count in both scales."""
        prepared = self.prepared[weight_bits]
        if not self.integer_bias or prepared.bias is None:
            return prepared
        known = self._on_step.get((weight_bits, step))
        if known is None or known[0] is not prepared:
            units = prepared.scales.double() * step
            bias = (bias_integers(prepared.bias, step, prepared.scales) * units).float()
            known = prepared, replace(prepared, bias=bias)
            self._on_step[weight_bits, step] = known
        return known[1]

    def replace(self, bits: int, prepared: PreparedWidth) -> None:
        """Use other weights and scales at a width."""
        self.prepared[bits] = prepared
        for kind in ("weight", "integers"):
            self._weights.pop((kind, bits), None)

    def replace_all(self, prepared: Mapping[int, PreparedWidth]) -> None:
        """Use these weights and scales by width, and none but these."""
        self.prepared = dict(prepared)
        self._weights.clear()

    def select(self, weight_bits: int, activation_bits: int) -> None:
        """Compute at this precision from now on."""
        self.prepare(weight_bits)
        self.prepare(activation_bits)
        self.weight_bits, self.activation_bits = weight_bits, activation_bits

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The layer's output for float inputs of the layer's own shape; the name is torch's, for calls by keyword.

        Raises:
            NonFiniteError: If an input that is to be rounded is NaN or infinite.
        """
        if self.recording_share is not None and not self.reads_indices:
            self.statistics.update(input, self.recording_share)
        if self.learning is not None:
            return self.learning(input)
        if self.given is not None:
            return self._on_given(input, self.given)
        return self.at(Precision(self.weight_bits, self.activation_bits), input)

    def at(self, precision: Precision, inputs: torch.Tensor) -> torch.Tensor:
        """The output at a precision whose widths are prepared."""
        # Wider integers have sums that float32 does not hold exactly.
        on_integers = max(precision) <= STORED_BITS and not self.reads_indices
        return self._on_rounded(inputs, precision) if on_integers else self._on_values(inputs, precision)

    def _on_rounded(self, inputs: torch.Tensor, precision: Precision) -> torch.Tensor:
        """Products and sums of integers; then scales and bias, as the kernels do it."""
        self.check(inputs, self.name)
        scale = self.prepared[precision.activation_bits].activation_scale
        integers = on_grid(inputs, scale, *integer_range(precision.activation_bits, self.statistics.unsigned))
        return self.on_integers(integers, scale, precision.weight_bits)

    def on_integers(self, integers: torch.Tensor, scale: float, weight_bits: int) -> torch.Tensor:
        """The output for inputs that are integers times a scale, at a width of at most 8 bits that is prepared."""
        prepared = self.prepared_for(weight_bits, scale)
        # Sums of integers are exact in float32 below 2^24, so the scales come afterwards, as the kernels have it.
        outputs = self.compute(integers, self._tensor("integers", weight_bits), None)
        channels = self._channels(outputs)
        bias = None if prepared.bias is None else prepared.bias.to(outputs.device).view(channels)
        return rescale_(outputs, scale, prepared.scales.to(outputs.device).view(channels), bias)

    def _on_given(self, inputs: torch.Tensor, given: dict[str, torch.Tensor]) -> torch.Tensor:
        """The same with settings that are tensors, so that `torch.vmap` can run it for several at once."""
        if self.reads_indices:
            return self.compute(inputs, given["integers"] * given["scales"][:, None], None)
        self.check(inputs, self.name)
        integers = select_grid(inputs, self.statistics.unsigned, given["inverse"], given["low"], given["high"])
        outputs = self.compute(integers, given["integers"], None)
        channels = self._channels(outputs)
        bias = given["bias"].view(channels) if "bias" in given else None
        return rescaled(outputs, given["step"], given["scales"].view(channels), bias)

    def _channels(self, outputs: torch.Tensor) -> tuple[int, ...]:
        """The shape of one value a channel, for outputs of this layer."""
        return (-1,) if isinstance(self.layer, nn.Linear) else (1, -1, *[1] * (outputs.dim() - 2))

    def rounded_inputs(self, inputs: torch.Tensor, bits: int) -> torch.Tensor:
        """What it reads at a width, as float values."""
        if bits == FLOAT_BITS or self.reads_indices:
            return inputs
        self.check(inputs, self.name)
        scale = self.prepared[bits].activation_scale
        return on_grid(inputs, scale, *integer_range(bits, self.statistics.unsigned)).mul_(scale)

    def _on_values(self, inputs: torch.Tensor, precision: Precision) -> torch.Tensor:
        inputs = self.rounded_inputs(inputs, precision.activation_bits)
        if precision.weight_bits == FLOAT_BITS:
            return self.compute(inputs, self.layer.weight, self.layer.bias)
        prepared = self.prepared[precision.weight_bits]
        bias = None if prepared.bias is None else prepared.bias.to(inputs.device)
        return self.compute(inputs, self._tensor("weight", precision.weight_bits), bias)

    def _tensor(self, kind: str, bits: int) -> torch.Tensor:
        """Weights as floats in the layout and on the device in which they are used, made once a width."""
        if (kind, bits) not in self._weights:
            prepared = self.prepared[bits]
            values = prepared.weight if kind == "weight" else prepared.integers.float()
            self._weights[kind, bits] = channels_last(values.to(self.layer.weight.device))
        return self._weights[kind, bits]

    def compute(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """What the layer does, with other weights."""
        if isinstance(self.layer, nn.Linear):
            return nn.functional.linear(inputs, weight, bias)
        if isinstance(self.layer, EmbeddingTable):
            return self.layer.compute(inputs, weight)
        if isinstance(self.layer, TransposedConvolution):
            return self.layer.compute(inputs, weight, bias)
        return self.layer._conv_forward(inputs, weight, bias)  # type: ignore[no-any-return]


class StoredTensor(nn.Module):
    """A result that stands in memory at 8 bits, because more than one reader needs it.

    Args:
        layer: Name of the layer whose result it is, for messages.

    Attributes:
        active: Whether values are rounded; they are not as long as some layer reads floats.
    """

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer
        self.check: Check = check_finite
        self.statistics = ActivationStatistics()
        self.recording_share: float | None = None
        self.active = False
        self.learning: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._scale: float | None = None

    @property
    def scale(self) -> float:
        """The scale of least squared error."""
        if self._scale is None:
            self._scale = self.statistics.scale(STORED_BITS)
        return self._scale

    def use(self, scale: float) -> None:
        """Use a scale that was found elsewhere."""
        self._scale = scale

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """The values, rounded if it is active: float, of the same shape.

        Raises:
            NonFiniteError: If a value that is to be rounded is NaN or infinite.
        """
        if self.recording_share is not None:
            self.statistics.update(values, self.recording_share)
        if self.learning is not None:
            return self.learning(values)
        if not self.active:
            return values
        self.check(values, self.layer)
        return on_grid(values, self.scale, *integer_range(STORED_BITS, self.statistics.unsigned)).mul_(self.scale)


def on_grid(values: torch.Tensor, scale: float, low: int, high: int) -> torch.Tensor:
    """Integers (as floats) that stand for values on the grid of a scale, from `low` to `high`.

    Passes in place over one copy; torch.fake_quantize_per_tensor_affine takes over ten times as long on a CPU. The
    kernels multiply by the inverse scale too, and add the zero point of signed codes before they round, which takes
    bits from the fraction: both round alike only if both do so.
    """
    steps = values.mul(1.0 / scale)
    if -SIGNED_ZERO <= low < 0:
        return steps.add_(SIGNED_ZERO).round_().sub_(SIGNED_ZERO).clamp(low, high)
    return steps.round_().clamp(low, high)


def select_grid(
    values: torch.Tensor, unsigned: bool, inverse: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    """`on_grid` with settings that are tensors, out of place, as `torch.vmap` cannot run operations in place."""
    zero = 0 if unsigned else SIGNED_ZERO
    return values.mul(inverse).add(zero).round().sub(zero).clamp(low, high)


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in the layout in which convolutions on a CPU are fastest."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor.contiguous()
