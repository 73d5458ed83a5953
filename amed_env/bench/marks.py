"""How agents look in every picture of the benchmark, and the scale that regrets are drawn on.

Colours are those of Okabe and Ito (2008), which colour-blind people can tell apart. There are more agents than such
colours. Agents of different kinds have panels of their own, so each panel may use a colour once; where kinds meet, the
shape of the mark tells them apart. Where one kind has more agents than colours, dashes and hollow marks do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amed_env.bench.curves import REFERENCE, Comparison

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b3518f", "#c98500", "#2f8fc9")
"""Blue, vermilion, green, purple, orange, sky blue; the last three darker than the originals, to be seen on white."""
GREY = "#6b7280"
"""Of `random`, which every panel shows."""
GROUPS = {"learner": "learners", "search": "searchers", "control": "negative controls"}
"""Kinds of agents, and what they are called."""
_SHAPES = {"learner": "o", "search": "s", "control": "X"}
SOLID = "-"
_DASHES = (SOLID, (0, (6, 2)), (0, (2, 1.5)))


@dataclass(frozen=True)
class Mark:
    """The look of an agent in matplotlib's terms.

    Attributes:
        colour: Hexadecimal.
        marker: Shape.
        line: Dashes.
    """

    colour: str
    marker: str
    line: object


def marks_of(comparison: Comparison) -> dict[str, Mark]:
    """The look of every agent by its name; it does not depend on how well agents did."""
    marks = {}
    for group, shape in _SHAPES.items():
        names = sorted(agent.name for agent in comparison.group(group) if agent.name != REFERENCE)
        for number, name in enumerate(names):
            turn, colour = divmod(number, len(COLOURS))
            marks[name] = Mark(COLOURS[colour], shape, _DASHES[turn % len(_DASHES)])
    if comparison.find(REFERENCE) is not None:
        marks[REFERENCE] = Mark(GREY, "D", (0, (4, 2)))
    return marks


LINEAR_BELOW = 0.1
"""Accuracy points below which the scale of regrets is about linear, so that it has a zero.

A tenth of a point is two samples of the largest search split: less than that tells agents apart by chance."""
REGRET_TICKS = (0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def spread(regret: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Position of regrets on a scale that is logarithmic but has a zero: log10(1 + regret / 0.1)."""
    return np.asarray(np.log10(1.0 + np.asarray(regret, dtype=np.float64) / LINEAR_BELOW))


def unspread(position: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The regrets at positions; the inverse of `spread`."""
    return np.asarray(LINEAR_BELOW * (10.0 ** np.asarray(position, dtype=np.float64) - 1.0))


def regret_range(bottom: float, top: float) -> tuple[float, float]:
    """What an axis of regrets shows: from half of the least, or zero if that is near, to above the most."""
    return (bottom / 2 if bottom / 2 > LINEAR_BELOW else 0.0), max(top, 0.5) * 1.05


def evaluation_ticks(evaluations: int) -> list[int]:
    """Numbers of evaluations to write at the axis: 1, 2, 5, 10 … up to the last one."""
    steps = [step * 10**power for power in range(len(str(evaluations))) for step in (1, 2, 5)]
    return [step for step in steps if step <= evaluations]
