"""Colours and conventions of all pictures. The colours differ in lightness, so they survive greyscale."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from amed_env.problem.objective import BUDGET_METRICS

DARK, MIDDLE, LIGHT, ACCENT = "#12355b", "#4d8fc4", "#b9bec5", "#c8451b"
"""Ink of what matters, of its neighbours, of the background, and of the one thing to look at."""
DOTS = "#a3aab4"
"""Ink of small marks of the background."""
DOTS_PER_INCH = 150


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, with a canvas that needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """Remove what carries no information."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def layer_axis(axes: Axes, names: Sequence[str], title: str) -> None:
    """Layers from top to bottom, and a titled axis below with a light grid."""
    axes.set_yticks(range(len(names)), names, parse_math=False, fontsize=8.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(title)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.7)
    axes.tick_params(axis="y", length=0)
    tidy(axes)


def legend_above(axes: Axes, columns: int = 2, **options: Any) -> None:
    """A legend without a frame above the axes, where it covers nothing."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, fontsize=8.5, frameon=False, **options)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    return picture(figure, "png")


def picture(figure: Figure, form: str) -> bytes:
    """The figure as a file of a format that matplotlib knows: `png`, `svg`, `pdf`."""
    _without_formulas(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format=form, dpi=DOTS_PER_INCH)
    return stream.getvalue()


def _without_formulas(figure: Figure) -> None:
    """Let text stand as it is: a layer's name with dollars is no formula. Numbers at the axes may be powers of ten."""
    numbers = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for label in axis.get_ticklabels(which="both")
    }
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in numbers:
            text.set_parse_math(False)


def metric_title(metric: str) -> str:
    """What a metric is called in a picture: `latency`, `memory of weights`."""
    names = {known: name for name, known in BUDGET_METRICS.items()}
    name = names.get(metric, metric)
    return {"memory": "memory of weights", "bops": "bit operations"}.get(name, name)
