"""What calibration remembers of a tensor: its extremes, and a seeded sample of its values."""

from __future__ import annotations

import math

import torch

from amed_env.quantization.ranges import squared_error_scales

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
        self._samples.append(chosen.float().cpu().clone())

    @property
    def finite(self) -> bool:
        """Whether neither NaN nor infinity was seen."""
        return not self._samples or bool(torch.isfinite(torch.tensor([self.minimum, self.maximum])).all())

    @property
    def unsigned(self) -> bool:
        """Whether no negative value was seen."""
        return self.minimum >= 0

    def scale(self, bits: int) -> float:
        """The scale that minimises the squared error of the sample at a width."""
        return short_scale(float(squared_error_scales(self.sample()[None], bits, self.unsigned)))

    def sample(self) -> torch.Tensor:
        """Float tensor (V,) of values that were seen, the extremes among them."""
        # The extremes belong to the sample: at 8 bits they matter more than their number.
        return torch.cat([*self._samples, torch.tensor([self.minimum, self.maximum])])


def short_scale(scale: float) -> float:
    """A scale rounded to 16 significant bits, so that its product with a code of 8 bits is exact in float32.

    Kernels add a scaled code with one rounding, plain float arithmetic with two: now both give the same.
    """
    mantissa, exponent = math.frexp(scale)
    return math.ldexp(round(mantissa * 2**16) / 2**16, exponent)
