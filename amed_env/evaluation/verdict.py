"""What a result is worth on samples that nothing was chosen by: differences of pairs, with their standard errors.

Two networks that see the same samples err on much the same ones, so the differences sample by sample vary far less than
either's own values: paired, a few thousand samples tell half a point of accuracy apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amed_env.problem.score import Score

SURE = 2.0
"""Standard errors by which a difference must differ from 0 to be called one: in 95 of 100 cases it then is."""

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Estimate:
    """A mean over samples.

    Attributes:
        value: The mean.
        error: Its standard error.
    """

    value: float
    error: float

    @classmethod
    def of(cls, values: FloatArray) -> Estimate:
        """The mean of N values, one a sample."""
        precise = np.asarray(values, dtype=np.float64)
        deviation = float(precise.std(ddof=1)) if len(precise) > 1 else 0.0
        return cls(float(precise.mean()), deviation / math.sqrt(len(precise)))

    def to_json(self) -> dict[str, float]:
        """`{"value", "standard_error"}`."""
        return {"value": self.value, "standard_error": self.error}


@dataclass(frozen=True)
class Verdict:
    """How a chosen allocation does on unseen samples, and against what it has to beat.

    Attributes:
        score: What is compared.
        samples: Unseen samples.
        chosen: The chosen allocation.
        uniform_bits: Width of the best uniform allocation within the budget, or None if there is none.
        over_uniform: By how much the chosen one is better than that, paired; None if there is none.
        over_float: By how much it is better than the float network, paired; None where that is perfect by definition.
    """

    score: Score
    samples: int
    chosen: Estimate
    uniform_bits: int | None
    over_uniform: Estimate | None
    over_float: Estimate | None

    @property
    def better_than_uniform(self) -> bool | None:
        """Whether that is known; None where there is no uniform width to compare with."""
        if self.over_uniform is None:
            return None
        return self.over_uniform.value > SURE * self.over_uniform.error

    def sentence(self) -> str:
        """The verdict in words; ± is one standard error."""
        value, error, unit = self._words(self.chosen)
        if self.score.unit == "%":
            text = f"on {self.samples:,} unseen samples: {value} % ± {error}"
        else:
            text = f"on {self.samples:,} unseen samples: {self.score.title} {value} ± {error}{unit}"
        if self.over_uniform is None:
            return f"{text}; no uniform width is within the budget."
        value, error, unit = self._words(self.over_uniform)
        if not self.better_than_uniform:
            signed = value if value.startswith("−") else f"+{value}"
            return f"{text}; no better than uniform {self.uniform_bits} bit ({signed} ± {error}): take that."
        side = "above" if self.score.higher_is_better else "below"
        points = " points" if self.score.unit == "%" else unit
        return (
            f"{text}; {value} ± {error}{points} {side} the best uniform width within the budget "
            f"({self.uniform_bits} bit)."
        )

    def _words(self, estimate: Estimate) -> tuple[str, str, str]:
        """Value and error with as many decimals as the error allows, and the unit."""
        value, error = self.score.shown(estimate.value), self.score.shown(estimate.error)
        least = 1 if self.score.unit == "%" else 4
        decimals = least if error == 0 else max(1, -math.floor(math.log10(error)))
        unit = "" if self.score.unit == "%" or not self.score.unit else f" {self.score.unit}"
        return f"{value:.{decimals}f}".replace("-", "−"), f"{error:.{decimals}f}", unit

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "score": self.score.to_json(),
            "samples": self.samples,
            "chosen": self.chosen.to_json(),
            "uniform_bits": self.uniform_bits,
            "over_uniform": None if self.over_uniform is None else self.over_uniform.to_json(),
            "over_float": None if self.over_float is None else self.over_float.to_json(),
            "better_than_uniform": self.better_than_uniform,
            "sentence": self.sentence(),
        }


def judge(
    score: Score,
    chosen: FloatArray,
    uniform: FloatArray | None = None,
    uniform_bits: int | None = None,
    of_float: FloatArray | None = None,
) -> Verdict:
    """The verdict on a chosen allocation.

    Args:
        score: What the values are.
        chosen: Value of the chosen allocation for each of N unseen samples.
        uniform: The same of the best uniform width within the budget.
        uniform_bits: That width.
        of_float: The same of the float network.
    """

    def gained(over: FloatArray | None) -> Estimate | None:
        if over is None:
            return None
        differences = np.asarray(chosen, dtype=np.float64) - np.asarray(over, dtype=np.float64)
        return Estimate.of(differences if score.higher_is_better else -differences)

    against_float = None if score.against_float else of_float
    return Verdict(score, len(chosen), Estimate.of(chosen), uniform_bits, gained(uniform), gained(against_float))


def compared_score(
    score: Score, metrics: tuple[Score, ...], measured: Mapping[str, Mapping[str, FloatArray]]
) -> Score | None:
    """What to compare on unseen samples: the first metric that is a mean over them, or else the score itself.

    Args:
        score: What was optimised.
        metrics: What was measured besides.
        measured: Values of single samples by metric, for everything that is to be compared.

    Returns:
        None if nothing has values of single samples, as in tables and of metrics that are no means.
    """
    for candidate in (*metrics, score):
        if all(candidate.name in values for values in measured.values()):
            return candidate
    return None
