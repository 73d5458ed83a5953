"""How agents look in every picture of the benchmark: colours of Okabe and Ito, told apart by colour-blind people.

There are more agents than such colours. Agents of different kinds stand in panels of their own, so a colour may come
once in each; where kinds meet, the shape of the mark tells them apart. Where one kind has more agents than colours,
dashes and hollow marks do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amed_env.bench.curves import REFERENCE, Comparison

LIGHT_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b3518f", "#c98500", "#2f8fc9")
"""Blue, vermilion, green, purple, orange, sky blue; the last three darker than theirs, to be seen on white."""
DARK_COLOURS = ("#4aa8e0", "#f0803c", "#2ec49a", "#e39ac4", "#f0b840", "#8fd0f7")
"""The same hues on a dark ground."""
REFERENCE_COLOUR = -1
"""Number of the colour of `random`: grey."""
GREYS = ("#6b7280", "#9aa3af")
GROUPS = {"learner": "learners", "search": "searchers", "control": "negative controls"}
"""Kinds of agents, and what they are called."""
_SHAPES = {"learner": ("o", "circle"), "search": ("s", "square"), "control": ("X", "x")}
_DASHES = (("-", "solid"), ((0, (6, 2)), "dash"), ((0, (2, 1.5)), "dot"))


@dataclass(frozen=True)
class Mark:
    """The look of an agent.

    Attributes:
        colour: Number of its colour, or `REFERENCE_COLOUR`.
        marker: Shape for matplotlib.
        symbol: The same shape for plotly.
        line: Dashes for matplotlib.
        dash: The same dashes for plotly.
    """

    colour: int
    marker: str
    symbol: str
    line: object
    dash: str

    def on(self, dark: bool = False) -> str:
        """The colour (hexadecimal) on a light or dark ground."""
        if self.colour == REFERENCE_COLOUR:
            return GREYS[dark]
        return (DARK_COLOURS if dark else LIGHT_COLOURS)[self.colour]


def marks_of(comparison: Comparison) -> dict[str, Mark]:
    """The look of every agent by its name; it does not depend on how well agents did."""
    marks = {}
    for group, (marker, symbol) in _SHAPES.items():
        names = sorted(agent.name for agent in comparison.group(group) if agent.name != REFERENCE)
        for number, name in enumerate(names):
            line, dash = _DASHES[number // len(LIGHT_COLOURS) % len(_DASHES)]
            marks[name] = Mark(number % len(LIGHT_COLOURS), marker, symbol, line, dash)
    if comparison.find(REFERENCE) is not None:
        marks[REFERENCE] = Mark(REFERENCE_COLOUR, "D", "diamond", (0, (4, 2)), "dash")
    return marks


LINEAR_BELOW = 0.1
"""Accuracy points below which the scale of regrets is about linear, so that it has a zero."""
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
