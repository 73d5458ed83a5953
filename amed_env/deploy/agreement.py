"""Whether an export answers as the network does that was evaluated."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from amed_env.evaluation.comparisons import KullbackLeibler
from amed_env.evaluation.scoring import Scoring

LEAST = 0.99
"""Share of equal answers below which an export is no export of this network."""
CLOSE = 0.01
"""Values without classes are equal answers within this part of their spread."""


@dataclass(frozen=True)
class Agreement:
    """Outputs of an export beside those of the evaluator.

    Attributes:
        settings: How it was run.
        samples: On how many samples.
        same_answer: Share of answers that are equal: classes, or values within a hundredth of their spread.
        bit_equal: Share of samples all of whose values are equal to the last bit.
        largest_difference: Of two values.
        metrics: Metric to (evaluator, export), where the samples have labels.
        ms_a_sample: Wall clock of the export, with its start; None if it was not measured.
    """

    settings: str
    samples: int
    same_answer: float
    bit_equal: float
    largest_difference: float
    metrics: dict[str, tuple[float, float]]
    ms_a_sample: float | None = None

    @property
    def enough(self) -> bool:
        """Whether it does what the network does."""
        return self.same_answer >= LEAST

    def to_json(self) -> dict[str, Any]:
        """As a JSON document."""
        return asdict(self)


def compare(
    settings: str,
    expected: npt.NDArray[np.float32],
    found: npt.NDArray[np.float32],
    scoring: Scoring,
    labels: torch.Tensor | None,
    seconds: float | None = None,
) -> Agreement:
    """Compare outputs.

    Args:
        settings: How the export was run.
        expected: What the evaluator returns: (N, …).
        found: What the export returns: (N, …), as many values.
        scoring: What the evaluator measures.
        labels: (N, …), or None.
        seconds: What running the export took.
    """
    found = found.reshape(expected.shape)
    if isinstance(scoring.divergence, KullbackLeibler):
        axis = scoring.divergence.axis
        same = float(np.mean(expected.argmax(axis=axis) == found.argmax(axis=axis)))
    else:
        spread = float(expected.std()) or 1.0
        same = float(np.mean(np.abs(expected - found) <= CLOSE * spread))
    rows = expected.reshape(len(expected), -1) == found.reshape(len(found), -1)
    metrics = {}
    if labels is not None:
        for metric in scoring.metrics:
            pair = []
            for outputs in (expected, found):
                instance = metric.factory()
                metric.updated(instance, torch.from_numpy(outputs.copy()), labels)
                pair.append(metric.value(instance))
            metrics[metric.score.name] = (pair[0], pair[1])
    return Agreement(
        settings,
        len(expected),
        same,
        float(rows.all(axis=1).mean()),
        float(np.abs(expected - found).max()),
        metrics,
        None if seconds is None else 1e3 * seconds / len(expected),
    )
