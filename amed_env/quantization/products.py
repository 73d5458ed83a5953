"""Products of two activations, attention's for example, at a selected precision: they have no weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from amed_env.problem.allocation import FLOAT_BITS, Precision
from amed_env.quantization.finiteness import Check, check_finite
from amed_env.quantization.layers import STORED_BITS, on_grid, select_grid
from amed_env.quantization.rounding import check_supported, integer_range
from amed_env.quantization.statistics import ActivationStatistics
from amed_env.tracing.lowering import Product


@dataclass(frozen=True)
class ProductWidth:
    """A product at one width: value of one step of each operand, left and right."""

    steps: tuple[float, float]


class QuantizedProduct(nn.Module):
    """A product of two activations. The left one has the activation width, the right one that of the weights.

    Sums of integers are exact in float32 below 2^24, as in `QuantizedLayer`; there is no integer kernel for them, so
    both engines compute them here and cannot differ.

    Args:
        product: The float product.
        name: Its name, for messages.
    """

    def __init__(self, product: Product, name: str) -> None:
        super().__init__()
        self.product, self.name = product, name
        self.operands = [ActivationStatistics(), ActivationStatistics()]
        self.recording_share: float | None = None
        self.prepared: dict[int, ProductWidth] = {}
        self.weight_bits = self.activation_bits = FLOAT_BITS
        self.learning: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
        self.given: dict[str, torch.Tensor] | None = None  # see `together`
        self.check: Check = check_finite

    def prepare(self, bits: int) -> None:
        """Make what a width needs, unless it is there already."""
        check_supported(bits, f"layer {self.name!r}")
        if bits != FLOAT_BITS and bits not in self.prepared:
            left, right = self.operands
            self.prepared[bits] = ProductWidth((left.scale(bits), right.scale(bits)))

    def select(self, weight_bits: int, activation_bits: int) -> None:
        """Compute at this precision from now on."""
        self.prepare(weight_bits)
        self.prepare(activation_bits)
        self.weight_bits, self.activation_bits = weight_bits, activation_bits

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """(…, M, K) by (…, K, N): (…, M, N), float.

        Raises:
            NonFiniteError: If a value that is to be rounded is NaN or infinite.
        """
        if self.recording_share is not None:
            for statistics, values in zip(self.operands, (left, right), strict=True):
                statistics.update(values, self.recording_share)
        if self.learning is not None:
            return self.learning(left, right)
        if self.given is not None:
            return self._on_given(left, right, self.given)
        return self.at(Precision(self.weight_bits, self.activation_bits), left, right)

    def at(self, precision: Precision, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """The product at a precision whose widths are prepared."""
        if max(precision) > STORED_BITS:
            return self.product(  # type: ignore[no-any-return]
                self.rounded(left, 0, precision.activation_bits), self.rounded(right, 1, precision.weight_bits)
            )
        integers, step = self._on_grid(left, 0, precision.activation_bits)
        others, other_step = self._on_grid(right, 1, precision.weight_bits)
        outputs: torch.Tensor = self.product(integers, others)
        return outputs.mul_(step).mul_(other_step)

    def rounded(self, values: torch.Tensor, operand: int, bits: int) -> torch.Tensor:
        """An operand (0: left, 1: right) at a width, as float values."""
        if bits == FLOAT_BITS:
            return values
        integers, step = self._on_grid(values, operand, bits)
        return integers.mul_(step)

    def _on_grid(self, values: torch.Tensor, operand: int, bits: int) -> tuple[torch.Tensor, float]:
        self.check(values, self.name)
        step = self.prepared[bits].steps[operand]
        return on_grid(values, step, *integer_range(bits, self.operands[operand].unsigned)), step

    def _on_given(self, left: torch.Tensor, right: torch.Tensor, given: dict[str, torch.Tensor]) -> torch.Tensor:
        """The same with settings that are tensors, so that `torch.vmap` can run it for several at once."""
        rounded = []
        for values, statistics, side in ((left, self.operands[0], "left"), (right, self.operands[1], "right")):
            self.check(values, self.name)
            grid = (given[f"{side}_inverse"], given[f"{side}_low"], given[f"{side}_high"])
            rounded.append(select_grid(values, statistics.unsigned, *grid))
        outputs: torch.Tensor = self.product(*rounded)
        return outputs.mul(given["left_step"]).mul(given["right_step"])
