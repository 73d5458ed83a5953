"""An evaluator that asks another one: what stands between an agent and the truth changes as little as it must."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from amed_env.evaluation.quality import Evaluator, GradientMeasure, Progress, Quality, Split
from amed_env.problem.allocation import BitAllocation, Precision


class DelegatingEvaluator(Evaluator):
    """Answers every question with another evaluator's answer.

    It has nothing but what every evaluator has: no table, no samples, no network.

    Args:
        inner: The other one.
    """

    def __init__(self, inner: Evaluator) -> None:
        self.workload, self.kept_float = inner.workload, inner.kept_float
        self.ties, self.looked_up, self.score = inner.ties, inner.looked_up, inner.score
        self.metrics, self.splits = inner.metrics, inner.splits
        self._inner = inner

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """That of the other one; asking a network for it prepares it."""
        return self._inner.fingerprint

    def evaluate(self, allocation: BitAllocation, split: Split = "search") -> Quality:
        """See `Evaluator.evaluate`."""
        return self._inner.evaluate(allocation, split)

    def predicted_loss(self, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """See `Evaluator.predicted_loss`."""
        return self._inner.predicted_loss(precisions)

    def first_losses(self, precisions: Sequence[Precision]) -> npt.NDArray[np.float64] | None:
        """See `Evaluator.first_losses`."""
        return self._inner.first_losses(precisions)

    def first_divergences(
        self, precisions: Sequence[Precision], cells: Iterable[tuple[int, int]]
    ) -> npt.NDArray[np.float64]:
        """See `Evaluator.first_divergences`."""
        return self._inner.first_divergences(precisions, cells)

    @property
    def prepares_at_once(self) -> bool:
        """See `Evaluator.prepares_at_once`."""
        return self._inner.prepares_at_once

    def sensitivity(self, measure: GradientMeasure, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """See `Evaluator.sensitivity`."""
        return self._inner.sensitivity(measure, precisions)

    def pair_divergences(self, precisions: Sequence[Precision], reach: int) -> npt.NDArray[np.float64]:
        """See `Evaluator.pair_divergences`."""
        return self._inner.pair_divergences(precisions, reach)

    def prepare(
        self,
        progress: Progress | None = None,
        seconds: float | None = None,
        precisions: Iterable[Precision] | None = None,
    ) -> None:
        """See `Evaluator.prepare`."""
        self._inner.prepare(progress, seconds, precisions)

    def float_remarks(self) -> list[str]:
        """See `Evaluator.float_remarks`."""
        return self._inner.float_remarks()

    def score_remarks(self) -> list[str]:
        """See `Evaluator.score_remarks`."""
        return self._inner.score_remarks()

    def weight_statistics(self) -> npt.NDArray[np.float64]:
        """See `Evaluator.weight_statistics`."""
        return self._inner.weight_statistics()
