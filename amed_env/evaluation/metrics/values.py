"""Metrics of values: regression."""

from __future__ import annotations

import torch

from amed_env.evaluation.outputs import RunningSpread, aligned_values


class MeanAbsoluteError:
    """Mean absolute error; of several outputs a sample their mean."""

    title, higher_is_better = "mean absolute error", False

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See `Metric.update`."""
        values, truth = aligned_values(outputs, targets)
        errors = (values - truth).abs().mean(dim=1)
        self.total += float(errors.sum())
        self.count += len(errors)
        return errors

    def compute(self) -> float:
        """See `Metric.compute`."""
        return self.total / self.count


class R2:
    """Coefficient of determination; of several outputs the mean of each one's.

    An output whose truth does not vary counts 1 if it is always right and 0 if not.
    """

    title, scale, higher_is_better = "R²", "fraction", True

    def __init__(self) -> None:
        self.truth = RunningSpread()
        self.residual: torch.Tensor | float = 0.0

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        """See `Metric.update`."""
        values, truth = aligned_values(outputs, targets)
        self.truth.add(truth)
        self.residual = self.residual + (values - truth).square().sum(dim=0)

    def compute(self) -> float:
        """See `Metric.compute`."""
        residual, spread = torch.as_tensor(self.residual), self.truth.squares
        varies = spread > 0
        ratio = 1.0 - residual / torch.where(varies, spread, torch.ones_like(spread))
        always_right = (residual == 0).double()
        return float(torch.where(varies, ratio, always_right).mean())
