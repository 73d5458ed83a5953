"""Quantizers with learned step sizes (LSQ).

A value v becomes v̂ = s x round(clip(v / s, -Qn, Qp)). Rounding counts as the identity for gradients (straight-through):

- ∂v̂/∂v is 1 where -Qn < v / s < Qp, and 0 elsewhere;
- ∂v̂/∂s is round(v / s) - v / s there, -Qn where v / s ≤ -Qn, and Qp where v / s ≥ Qp;
- the gradient of a step size is multiplied by 1 / √(N Qp), N being the elements that share it (of a sample, for
  activations), so that step sizes and weights move by similar parts of themselves.

Source: S. Esser et al., Learned Step Size Quantization, ICLR 2020, arXiv 1902.08153, equations 1 to 5 and section 2.2.
"""

from __future__ import annotations

import math
from typing import Any

import torch


def gradient_scale(elements: int, high: int) -> float:
    """Factor of a step size's gradient: 1 / √(N Qp).

    Args:
        elements: N, values that share the step size; of one sample, for activations.
        high: Qp, the largest integer of the width.
    """
    return 1.0 / math.sqrt(elements * high)


def quantize_weights(weight: torch.Tensor, step: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Weights on the grid of learned step sizes; differentiable as LSQ says.

    Args:
        weight: Float tensor (out_channels, …).
        step: (out_channels, 1, …) or a single value of as many dimensions; not zero. A negative step mirrors the grid.
        low: -Qn, the smallest integer.
        high: Qp.

    Returns:
        Float tensor of the weight's shape.
    """
    return _QuantizeWeights.apply(weight, step, low, high)  # type: ignore[no-any-return]


def quantize_activations(inputs: torch.Tensor, step: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Activations on the grid of one learned step size; differentiable as LSQ says.

    Args:
        inputs: Float tensor (N, …).
        step: A positive tensor without dimensions.
        low: -Qn; 0 where no value is negative.
        high: Qp.

    Returns:
        Float tensor of the inputs' shape.
    """
    return _QuantizeActivations.apply(inputs, step, low, high)  # type: ignore[no-any-return]


class _QuantizeWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, step: torch.Tensor, low: int, high: int) -> torch.Tensor:
        position = weight / step
        rounded = position.round().clamp_(low, high)
        inside = (position > low) & (position < high)
        ctx.save_for_backward(rounded - position.mul_(inside), inside)
        ctx.step_shape, ctx.factor = step.shape, gradient_scale(weight.numel() // step.numel(), high)
        return rounded.mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        slope, inside = ctx.saved_tensors
        (gradient,) = gradients
        return gradient * inside, (gradient * slope).sum_to_size(ctx.step_shape) * ctx.factor, None, None


class _QuantizeActivations(torch.autograd.Function):
    """Keeps what others keep anyway: the activation's own output before, and the layer's input behind it.

    With v̂ the result and m the mask of what is inside, Σ g ∂v̂/∂s = (Σ g v̂ - Σ g m v) / s: two scalar products, in place
    of tensors of slopes that would be written and read again.
    """

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, step: torch.Tensor, low: int, high: int) -> torch.Tensor:
        result = (inputs / step).round_().clamp_(low, high).mul_(step)
        ctx.save_for_backward(inputs, result, step)
        ctx.low, ctx.high = low, high
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        inputs, result, step = ctx.saved_tensors
        (gradient,) = gradients
        size = float(step)
        # The gradient of clamping: 0 at the limits and beyond.
        passed = torch.ops.aten.hardtanh_backward(gradient, inputs, ctx.low * size, ctx.high * size)
        slope = (_dot(gradient, result) - _dot(passed, inputs)) / step
        return passed, slope * gradient_scale(inputs[0].numel(), ctx.high), None, None


def _dot(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The scalar product of two tensors of one shape."""
    if first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last):
        first, second = first.permute(0, 2, 3, 1), second.permute(0, 2, 3, 1)
    return torch.dot(first.reshape(-1), second.reshape(-1))
