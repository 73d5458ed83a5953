"""The vertical axis of a score: what is better is higher, whichever way the score goes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from amed_env.evaluation.quality import Quality
from amed_env.problem.score import Score

_SMALLEST = 5e-4  # of scores that are drawn as logarithms: below it nothing tells networks apart, and 8 bit often is;
# only an answer that is itself below it makes the picture reach further
_TALLEST = 20.0  # points that a picture shows at most
_FLATTEST = 1.0  # and at least
_DECADES_A_POINT = 0.12  # so that a picture shows at most 2.4 decades
_STEPS = (1, 2, 5)  # of a decade, that are labelled


@dataclass(frozen=True)
class ScoreAxis:
    """Turns scores into heights.

    Attributes:
        score: The score.
        reference: A typical value, which the size of a point is a hundredth of where the score has no known end.
        best: The score of the answer, or None.
    """

    score: Score
    reference: float
    best: float | None = None

    @property
    def point(self) -> float:
        """The height of a difference that is just worth seeing: a percentage point of accuracy."""
        if self.score.scale == "log":
            return _DECADES_A_POINT
        return 1.0 if self.score.unit == "%" else abs(self.reference) / 100 or 1.0

    def height(self, quality: Quality) -> float:
        """Where a quality is drawn: percent, minus the decimal logarithm of a divergence or a loss, or the value."""
        return self._height(quality.score)

    def _height(self, value: float) -> float:
        if self.score.scale == "log":
            return -math.log10(max(value, self._smallest))
        return self.score.shown(-self.score.order(value))

    def error_lengths(self, quality: Quality) -> tuple[float, float]:
        """How far one standard error reaches below and above the height of a quality; 0 where it is not known."""
        height, error = self.height(quality), quality.standard_error or 0.0
        ends = sorted((self._height(quality.score - error), self._height(quality.score + error)))
        return height - ends[0], ends[1] - height

    def above(self, quality: Quality) -> bool:
        """Whether a quality is better than what is drawn at its height."""
        return self.score.scale == "log" and quality.score < self._smallest

    @property
    def _smallest(self) -> float:
        return min(_SMALLEST, self.best) if self.best else _SMALLEST

    def limits(
        self, heights: Iterable[float], worth_seeing: Iterable[float], shown: float | None
    ) -> tuple[float, float]:
        """Lower and upper end: the upper part; collapsed networks lie below.

        Args:
            heights: All heights.
            worth_seeing: Those that should be in the picture if it does not become too tall.
            shown: The one that is in the picture however low it is.
        """
        top = max(heights)
        reach = min(max(top - min(worth_seeing), _FLATTEST * self.point), _TALLEST * self.point)
        if shown is not None:
            reach = max(reach, top - shown)
        low, high = top - 1.12 * reach, top + 0.12 * reach
        if self.score.unit == "%":
            return max(0.0, low), min(100.0 + 0.04 * reach, high)
        return low, high

    def label(self, axes: Axes) -> None:
        """Label the axis and its ticks in the score's own values."""
        unit = f" ({self.score.unit})" if self.score.unit else ""
        axes.set_ylabel(f"{self.score.title} on the search split{unit}")
        if self.score.scale == "log":
            low, high = axes.get_ylim()
            decades = range(math.floor(-high) - 1, math.ceil(-low) + 1)
            values = np.asarray([step * 10.0**decade for decade in decades for step in _STEPS])
            ticks = -np.log10(values)
            axes.yaxis.set_major_locator(FixedLocator(ticks[(ticks >= low) & (ticks <= high)].tolist()))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda height, _: f"{10**-height:.3g}"))
            return
        axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
        if not self.score.higher_is_better:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda height, _: f"{-height:.4g}"))
