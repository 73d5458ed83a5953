"""NaN and infinity among activations: rounding to a grid would make numbers of infinity, so it is looked for first."""

from __future__ import annotations

from collections.abc import Callable

import torch

from amed_env.errors import NonFiniteError

Check = Callable[[torch.Tensor, str], None]
"""Takes activations and the name of the layer that meets them."""


def check_finite(values: torch.Tensor, layer: str) -> None:
    """Check what a layer reads or adds.

    Args:
        values: Float tensor of any shape.
        layer: The layer's name.

    Raises:
        NonFiniteError: If a value is NaN or infinite; the layer is named.
    """
    # A finite sum has finite terms, and takes one pass in any layout; only a sum that is not needs a second look.
    if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
        raise NonFiniteError(f"layer {layer!r} meets activations that are NaN or infinite.", layer)


class CollectedSums:
    """Takes the place of `check_finite` where no value may be asked for yet, as while `torch.vmap` runs.

    Attributes:
        sums: The sum of everything that was to be checked, finite if all of that is (but for an overflow).
    """

    def __init__(self) -> None:
        self.sums: list[torch.Tensor] = []

    def __call__(self, values: torch.Tensor, layer: str) -> None:
        """Remember the sum of activations."""
        self.sums.append(values.sum())
