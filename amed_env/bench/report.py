"""The report of a folder of results: pictures, and one page that works without any network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from amed_env.bench import charts, page_figures, page_tables
from amed_env.bench.curves import Comparison, compare, read_folder
from amed_env.bench.estimates import Curves, Profile, beats_all, curves_of, profiles_of
from amed_env.bench.fronts import Trade, draw_fronts, trades_of
from amed_env.bench.marks import DARK_COLOURS, GREYS, GROUPS, LIGHT_COLOURS
from amed_env.bench.run_statistics import Estimate
from amed_env.errors import InputError
from amed_env.report.style import png
from amed_env.support.files import write_atomically
from amed_env.tasks.catalogue import TABULAR_PREFIX

PAGE = "report.html"
_THEMES = {
    "light": {"ink": "#1a2330", "muted": "#5b6675", "grid": "#e3e7ec", "paper": "#ffffff", "panel": "#f6f8fa"},
    "dark": {"ink": "#e6eaf0", "muted": "#9aa5b4", "grid": "#2b333e", "paper": "#12161c", "panel": "#1a2029"},
}
_ACCENTS = {"light": "#c8451b", "dark": "#f0803c"}


@dataclass(frozen=True)
class Shown:
    """What both the page and the pictures show, and takes time to compute.

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
    contents = {PAGE: page(comparison, shown).encode(), **pictures(comparison, shown)}
    written = []
    for name, content in contents.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        written.append(path)
    return written


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
    found = {
        "regret.png": charts.draw_regret(comparison, curves=shown.curves),
        "profiles.png": charts.draw_profiles(comparison, shown.profiles),
        "improvement.png": charts.draw_improvement(comparison, shown.pairs),
        "splits.png": charts.draw_splits(comparison),
    }
    if comparison.group("control"):
        found["controls.png"] = charts.draw_regret(comparison, ("control",), shown.curves)
    for task in comparison.tasks:
        of_task = [trade for trade in shown.trades if trade.task == task]
        if of_task:
            found[f"pareto-{_short(task)}.png"] = draw_fronts(comparison, of_task)
    return {name: png(figure) for name, figure in found.items()}


def page(comparison: Comparison, shown: Shown) -> str:
    """The page, with everything that it needs inside."""
    figures: dict[str, page_figures.Figure] = {}

    def add(name: str, title: str, figure: page_figures.Figure, note: str = "") -> dict[str, str]:
        figures[name] = figure
        return {"name": name, "title": title, "note": note}

    groups = [group for group in GROUPS if comparison.panel(group)]
    regret: dict[str, list[dict[str, str]]] = {}
    for task, scope in comparison.scopes().items():
        regret[task] = [
            add(
                f"regret-{task}-{group}",
                f"{GROUPS[group].capitalize()}, {task or 'all cells'}",
                page_figures.regret_figure(scope, scope.panel(group), shown.curves[task]),
            )
            for group in groups
        ]
    profile_figures = [
        add(
            f"profile-{group}",
            GROUPS[group].capitalize(),
            page_figures.profile_figure(comparison, comparison.panel(group), shown.profiles),
        )
        for group in groups
    ]
    add("splits", "", page_figures.split_figure(comparison))
    front_figures = [
        add(
            f"front-{number}",
            f"{trade.task} on {trade.device}",
            page_figures.front_figure(comparison, trade),
            f"{trade.below:.0%} of all allocations are below the picture.",
        )
        for number, trade in enumerate(shown.trades)
    ]
    chosen = next((figure for figure in regret[""] if figure["name"] == "regret--control"), None)
    control_figures = [chosen, *(f for f in profile_figures if f["name"] == "profile-control")] if chosen else []
    environment = Environment(
        loader=PackageLoader("amed_env.bench", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pieces"] = _pieces
    return environment.get_template("page.html").render(
        suite=comparison.suite,
        agents=comparison.agents,
        band_points=len(comparison.points),
        summary=_summary(comparison),
        left_out=comparison.left_out,
        regret_figures=regret.pop(""),
        regret_by_task=[figure for of_task in regret.values() for figure in of_task],
        regret_table=page_tables.regret_table(comparison),
        task_table=page_tables.task_table(comparison),
        profile_figures=profile_figures,
        matrix=page_tables.matrix(comparison, shown.pairs),
        floor=page_tables.floor_text(comparison),
        split_table=page_tables.split_table(comparison),
        legend=[{**item, "swatch": Markup(item["swatch"])} for item in page_tables.legend(comparison)],
        front_figures=front_figures,
        controls=page_tables.control_table(comparison),
        control_figures=control_figures,
        cell_table=page_tables.cell_table(comparison),
        agent_table=page_tables.agent_table(comparison),
        figures=figures,
        themes=_themes(),
        css=Markup(_agent_colours() + _asset(environment, "page.css")),
        script=Markup(_asset(environment, "page.js")),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
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


def _pieces(name: str) -> list[str]:
    """Parts of a name that stay in one line: it is broken at spaces and after slashes only, as numbers have points."""
    return re.findall(r"[^\s/]*/|[^\s/]+|\s+", name)


def _short(task: str) -> str:
    return task.removeprefix(TABULAR_PREFIX).replace("/", "-")


def _asset(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _themes() -> dict[str, dict[str, Any]]:
    agents = {"light": LIGHT_COLOURS, "dark": DARK_COLOURS}
    return {
        theme: {
            **colours,
            "accent": _ACCENTS[theme],
            "reference": GREYS[theme == "dark"],
            **{str(number): colour for number, colour in enumerate(agents[theme])},
        }
        for theme, colours in _THEMES.items()
    }


def _agent_colours() -> str:
    """Variables of the style sheet for the colours of agents, which the legend of the fronts uses."""

    def rules(colours: tuple[str, ...], grey: str) -> str:
        found = [f"--agent{number}: {colour};" for number, colour in enumerate(colours)]
        return f":root {{ {' '.join(found)} --reference: {grey}; }}\n"

    light, dark = rules(LIGHT_COLOURS, GREYS[0]), rules(DARK_COLOURS, GREYS[1])
    return f"{light}@media (prefers-color-scheme: dark) {{ {dark} }}\n"
