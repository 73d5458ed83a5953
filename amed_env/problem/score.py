"""What is optimised: a number, and whether more or less of it is better. Pure functions of numbers, no torch.

The reward of a score is `Score.gain`: the log-ratio of the reference's error to its own. It orders allocations by the
score alone, stays informative close to the reference (half a point of accuracy matters there) and does not explode
where a network collapses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

ERROR_SMOOTHING = 0.01
"""Added to both errors in `Score.gain`, so that a reference without any error does not divide by zero. It is the size
below which a difference means little: the standard error of an accuracy of 92 % on 2,000 samples is 0.006; and where
the divergence is 0.01 nats, one to two of a hundred answers change (measured on digits-cnn, ResNet-8 and ResNet-20,
whose uniform 8 bit has 0.00003 to 0.004 nats and uniform 4 bit 0.006 to 0.16). One number for all, so that every gain
has the same range and the penalties in `problem.objective` fit all of them."""
LEAST_GAIN = math.log(ERROR_SMOOTHING / (1.0 + ERROR_SMOOTHING))
"""Gain of a network with an error of 1 against one without any: -4.6. Nothing gains less, but for `open` scales."""

_SMALLEST = 1e-9  # a reference that is nearer to 0 has no size to compare with

Scale = Literal["fraction", "log", "open"]


@dataclass(frozen=True)
class Score:
    """What a search optimises, or a metric that is reported.

    Attributes:
        name: As in `--score`.
        title: In words, for tables and pictures.
        higher_is_better: Its orientation; nothing else in the package decides it.
        unit: `%` (the value is a fraction), `nats`, or empty.
        scale: `fraction`: at most 1, which is perfect. `log`: from 0, which is perfect, and about 1 means that little
            of the float network is left. `open`: anything else, of which only ratios to the reference say something.
        against_float: Whether it compares with the outputs of the float network, which is then perfect by definition.
    """

    name: str
    title: str
    higher_is_better: bool
    unit: str = ""
    scale: Scale = "open"
    against_float: bool = False

    def order(self, value: float) -> float:
        """A number that is smaller for what is better."""
        return -value if self.higher_is_better else value

    def goodness(self, value: float) -> float:
        """A number that is larger for what is better, and from 0 to 1 where the scale allows it."""
        if self.scale == "log":
            return math.exp(-value)
        return -self.order(value)

    def error(self, value: float) -> float:
        """How far a value is from the best, 0 where that is known; at most 1 for values of a `log` scale."""
        if self.scale == "fraction":
            return 1.0 - value
        # Equal to the value while that is small; bounded, as the divergence of a collapsed network has no limit.
        return -math.expm1(-value) if self.scale == "log" else self.order(value)

    def gain(self, value: float, reference: float) -> float:
        """What a value is worth against a reference: ln of the reference's error over its own.

        Both errors are smoothed by `ERROR_SMOOTHING`. Of an `open` scale the values themselves are compared, smoothed
        by the same part of the reference; where more is better, the gain is the relative change.

        Args:
            value: The value.
            reference: That of the float network, or of uniform 8 bit for what compares with the float network.

        Returns:
            0 at the reference, positive where it is better, -2.3 where the smoothed error is ten times as large.
        """
        if self.scale != "open":
            ratio = (self.error(reference) + ERROR_SMOOTHING) / (self.error(value) + ERROR_SMOOTHING)
            return max(LEAST_GAIN, math.log(ratio))
        size = max(abs(reference), _SMALLEST)
        if self.higher_is_better:
            return (value - reference) / size
        smoothing = ERROR_SMOOTHING * size
        # A negative value where less is better is beyond what ratios can say: as good as 0.
        return math.log((max(reference, 0.0) + smoothing) / (max(value, 0.0) + smoothing))

    def text(self, value: float) -> str:
        """A value as a person reads it, with its unit: `88.10 %`, `0.0123 nats`."""
        if self.unit == "%":
            return f"{100 * value:.2f} %"
        number = f"{value:.4g}"
        if value == 0 or 0.001 <= abs(value) < 10:
            number = f"{value:.4f}"
        elif abs(value) < 0.001:
            number = f"{value:.2g}"
        return f"{number} {self.unit}".rstrip()

    def described(self, value: float) -> str:
        """A value in the middle of a sentence: `88.10 %` of an accuracy, `divergence 0.0123 nats`."""
        return self.text(value) if self.name == "top-1" else f"{self.title} {self.text(value)}"

    @property
    def label(self) -> str:
        """The title with its unit, for the axis of a picture or the head of a column."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def to_json(self) -> dict[str, Any]:
        """Name, title, orientation and unit as a JSON object."""
        return {
            "name": self.name,
            "title": self.title,
            "higher_is_better": self.higher_is_better,
            "unit": self.unit,
        }

    def shown(self, value: float) -> float:
        """A value in the unit of `label`: percent for fractions."""
        return 100.0 * value if self.unit == "%" else value


TOP_1 = Score("top-1", "accuracy", True, "%", "fraction")
LOSS = Score("loss", "cross-entropy", False, "nats", "log")
DIVERGENCE = Score("divergence", "divergence", False, "nats", "log", against_float=True)
SQUARED_ERROR = Score("squared-error", "squared error", False, "", "log", against_float=True)
KNOWN_SCORES = {score.name: score for score in (TOP_1, LOSS, DIVERGENCE, SQUARED_ERROR)}


def score_from_json(document: Mapping[str, Any] | None) -> Score:
    """The inverse of `Score.to_json`, as far as showing values goes; None is what earlier versions wrote, accuracy."""
    if document is None:
        return TOP_1
    known = KNOWN_SCORES.get(document["name"])
    return known or Score(document["name"], document["title"], document["higher_is_better"], document["unit"])


def score_named(name: str, higher_is_better: bool) -> Score:
    """The score of a name in a file; of one that is not known here only the name and the orientation are left."""
    return KNOWN_SCORES.get(name) or Score(name, name, higher_is_better)
