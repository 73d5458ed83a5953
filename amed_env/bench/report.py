"""The report of a folder of results: pictures, and one page with these pictures and their numbers.

The page has everything in it and runs no script, so it works without a network and in every browser.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from amed_env.bench import charts, page_tables
from amed_env.bench.curves import Comparison, compare, read_folder
from amed_env.bench.estimates import Curves, Profile, beats_all, curves_of, profiles_of
from amed_env.bench.fronts import Trade, draw_fronts, trades_of
from amed_env.bench.run_statistics import Estimate
from amed_env.errors import InputError
from amed_env.report.style import DOTS_PER_INCH, png
from amed_env.support.files import write_atomically
from amed_env.tasks.catalogue import TABULAR_PREFIX

PAGE = "report.html"
_SHOWN_PER_INCH = 100


@dataclass(frozen=True)
class Shown:
    """What the pictures and the tables show, and takes time to compute.

    Attributes:
        curves: Regret curves of each of `Comparison.scopes`.
        profiles: Performance profile of every agent.
        pairs: Who beats whom; see `beats_all`.
        trades: Trade-offs of accuracy and cost.
    """

    curves: Mapping[str, Curves]
    profiles: Mapping[str, Profile]
    pairs: Estimate
    trades: list[Trade]


def report(folder: Path, out: Path) -> list[Path]:
    """Write the report of all result files of a folder.

    Args:
        folder: The folder with the files.
        out: The folder of the report; it is made if it does not exist.

    Returns:
        The files that were written, the page first.

    Raises:
        InputError: If there are no result files, or `out` is a file.
        BenchFileError: If they are damaged, cannot be compared, or claim what cannot be.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder for the report.")
    comparison = compare(read_folder(folder))
    shown = shown_of(comparison)
    drawn = pictures(comparison, shown)
    contents = {PAGE: page(comparison, shown, drawn).encode(), **drawn}
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(out / name, content)
    return [out / name for name in contents]


def shown_of(comparison: Comparison) -> Shown:
    """Compute what the page and the pictures of a comparison show."""
    return Shown(
        {scope: curves_of(of_scope) for scope, of_scope in comparison.scopes().items()},
        profiles_of(comparison),
        beats_all(comparison.agents),
        trades_of(comparison),
    )


def pictures(comparison: Comparison, shown: Shown) -> dict[str, bytes]:
    """All pictures as PNG files by name."""
    figures = {
        "regret.png": charts.draw_regret(comparison, shown.curves[""]),
        "profiles.png": charts.draw_profiles(comparison, shown.profiles),
        "improvement.png": charts.draw_improvement(comparison, shown.pairs),
        "splits.png": charts.draw_splits(comparison),
    }
    if comparison.group("control"):
        figures["controls.png"] = charts.draw_regret(comparison, shown.curves[""], groups=("control",))
    for task, of_task in comparison.scopes().items():
        if task:
            figures[f"regret-{_short(task)}.png"] = charts.draw_regret(of_task, shown.curves[task], _short(task))
    for task in comparison.tasks:
        trades = [trade for trade in shown.trades if trade.task == task]
        if trades:
            figures[f"pareto-{_short(task)}.png"] = draw_fronts(comparison, trades)
    return {name: png(figure) for name, figure in figures.items()}


def page(comparison: Comparison, shown: Shown, drawn: Mapping[str, bytes]) -> str:
    """The page, with everything that it needs inside."""
    environment = Environment(
        loader=PackageLoader("amed_env.bench", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pieces"] = _pieces
    assert environment.loader is not None
    style, _, _ = environment.loader.get_source(environment, "page.css")
    regret_by_task = {
        _short(task): page_tables.regret_table(of_task, shown.curves[task])
        for task, of_task in comparison.scopes().items()
        if task
    }
    return environment.get_template("page.html").render(
        suite=comparison.suite,
        agents=comparison.agents,
        band_points=len(comparison.points),
        summary=_summary(comparison),
        left_out=comparison.left_out,
        pictures={name: _embedded(content) for name, content in drawn.items()},
        regret_table=page_tables.regret_table(comparison, shown.curves[""]),
        regret_by_task=regret_by_task,
        task_table=page_tables.task_table(comparison),
        pair_table=page_tables.pair_table(comparison, shown.pairs),
        floor=page_tables.floor_text(comparison),
        split_table=page_tables.split_table(comparison),
        fronts=[_short(task) for task in dict.fromkeys(trade.task for trade in shown.trades)],
        front_tables=[page_tables.front_table(trade) for trade in shown.trades],
        controls=page_tables.control_table(comparison),
        cell_table=page_tables.cell_table(comparison),
        agent_table=page_tables.agent_table(comparison),
        css=Markup(style),
    )


def _summary(comparison: Comparison) -> str:
    devices = dict.fromkeys(truth.cell.device for truth in comparison.truths)
    tasks = ", ".join(map(_short, comparison.tasks))
    made = sorted(agent.header.made for agent in comparison.agents)
    dates = made[0] if made[0] == made[-1] else f"{made[0]} to {made[-1]}"
    return (
        f"{len(comparison.truths)} {comparison.which} cells ({tasks}; {', '.join(devices)}), "
        f"{comparison.evaluations} evaluations a run, seeds per cell: {comparison.seeds}, made {dates}."
    )


def _embedded(content: bytes) -> dict[str, object]:
    """A PNG file for the page, with a width in CSS pixels at which 8-point letters can be read."""
    pixels = int.from_bytes(content[16:20], "big")  # where the format has the width
    return {"width": round(pixels * _SHOWN_PER_INCH / DOTS_PER_INCH), "base64": b64encode(content).decode()}


def _pieces(name: str) -> list[str]:
    """Parts of a name that stay in one line: it is broken at spaces and after slashes only, as numbers have points."""
    return re.findall(r"[^\s/]*/|[^\s/]+|\s+", name)


def _short(task: str) -> str:
    return task.removeprefix(TABULAR_PREFIX).replace("/", "-")
