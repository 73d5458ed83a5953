"""The report: its pictures, and its page in a real browser without any network."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from browser import PATIENCE_MS, launched
from matplotlib.image import imread
from result_samples import CELLS, write
from typer.testing import CliRunner

from amed_env import pareto_front
from amed_env.bench import charts, page_figures, page_tables
from amed_env.bench.curves import compare, read_folder
from amed_env.bench.estimates import curves_of, profiles_of
from amed_env.bench.fronts import draw_fronts, trades_of
from amed_env.bench.marks import marks_of, spread, unspread
from amed_env.bench.report import _pieces, report
from amed_env.bench.run_statistics import Estimate, interquartile_mean
from amed_env.cli import app
from amed_env.report import png

CHOSEN = (CELLS[0], CELLS[1], CELLS[2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    size = {"cells": CHOSEN, "seeds": 3, "evaluations": 60}
    write(folder, "random", **size)
    write(folder, "climber", climb=0.6, **size)
    write(folder, "learner", climb=0.3, family="learner", saw=("development cells of tiny",), **size)
    write(folder, "control/learner-inverted", climb=0.9, invert=True, family="learner", **size)
    write(folder, "<b>odd</b> & 'name'", climb=0.2, family="learner", **size)
    write(folder, "unfinished", drop=1, **size)
    return folder


@pytest.fixture(scope="module")
def comparison(folder):
    return compare(read_folder(folder))


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    return report(folder, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def browser():
    yield from launched()


def texts(figure):
    found = " | ".join(artist.get_text() for artist in figure.findobj(lambda artist: hasattr(artist, "get_text")))
    return found.replace("\N{NO-BREAK SPACE}", " ")


def test_every_picture_is_written_once_and_shows_something(written):
    names = [path.name for path in written]
    assert names[0] == "report.html" and len(set(names)) == len(names)
    assert {"regret.png", "profiles.png", "improvement.png", "splits.png", "controls.png"} <= set(names)
    assert "pareto-digits-cnn.png" in names
    for path in written[1:]:
        picture = imread(io.BytesIO(path.read_bytes()))
        assert picture.ndim == 3 and np.ptp(picture) > 0


def test_regret_is_drawn_on_a_logarithmic_axis_with_units_and_names(comparison):
    figure = charts.draw_regret(comparison)
    assert len(figure.axes) == 3 and all(axes.get_xscale() == "log" for axes in figure.axes)
    found = texts(figure)
    for text in ("regret (accuracy points)", "distinct evaluations", "95 % bootstrap interval", "climber", "negative"):
        assert text in found
    for axes in figure.axes:  # random stands in every panel
        assert "random" in [text.get_text() for text in axes.texts]
        assert axes.collections  # intervals
    assert png(figure)[:4] == b"\x89PNG"


def test_curves_show_the_regret_of_the_runs(comparison):
    figure = charts.draw_regret(comparison, ("search",))
    (axes,) = figure.axes
    names = [text.get_text() for text in sorted(axes.texts, key=lambda text: text.xy[1])]
    ends = {agent.name: np.sort(agent.final.reshape(-1)) for agent in comparison.panel("search")}
    drawn = sorted(float(line.get_ydata()[-1]) for line in axes.lines)
    assert drawn == pytest.approx(sorted(values[2:-2].mean() for values in ends.values()))  # 9 runs: 2 off either end
    assert len(names) == len(ends)


def drawn_at(line, position):
    """What a line of steps shows at a position."""
    assert line.get_drawstyle() == "steps-post"
    return line.get_ydata()[np.searchsorted(line.get_xdata(), position, side="right") - 1]


def test_nothing_is_drawn_above_the_truth_between_computed_points(comparison):
    (axes,) = charts.draw_regret(comparison, ("search",)).axes
    page = page_figures.regret_figure(comparison, comparison.panel("search"), curves_of(comparison))
    lines = [trace for trace in page["data"] if "name" in trace]
    for agent, line, trace in zip(comparison.panel("search"), axes.lines, lines, strict=True):
        assert trace["line"]["shape"] == "hv"
        for point, regrets in zip(range(1, 61), agent.regrets_after(np.arange(1, 61)), strict=True):
            truth = float(interquartile_mean(regrets))
            assert drawn_at(line, point) == truth
            assert trace["y"][np.searchsorted(trace["x"], point, "right") - 1] == pytest.approx(spread(truth), abs=1e-4)
        for value, low, high, point in trace["customdata"]:
            assert low - 1e-3 <= drawn_at(line, point) <= high + 1e-3 and value <= drawn_at(line, point) + 1e-3


def test_profiles_show_the_count_of_runs(comparison):
    rng = np.random.default_rng(1)
    agents = [replace(agent, final=rng.integers(0, 30, (3, 3)) * 0.2) for agent in comparison.agents]
    changed = replace(comparison, agents=tuple(agents))
    axes = charts.draw_profiles(changed).axes[0]
    page = page_figures.profile_figure(changed, changed.panel("learner"), profiles_of(changed))
    lines = [trace for trace in page["data"] if "name" in trace]
    for agent, line, trace in zip(changed.panel("learner"), axes.lines, lines, strict=True):
        for number in range(60):  # at every multiple of 0.1, which is at and between the regrets
            regret = number / 10 + 1e-6
            counted = 100 * (agent.final <= regret).mean()
            assert drawn_at(line, regret) == pytest.approx(counted)
            position = np.searchsorted(trace["x"], float(spread(regret)) + 1e-5, side="right") - 1
            assert trace["y"][position] == pytest.approx(counted, abs=1e-4)
        assert line.get_xdata()[-1] == axes.get_xlim()[1]


def test_titles_are_within_narrow_pictures(comparison):
    for count in (1, 2, 3):
        few = replace(comparison, agents=comparison.agents[:count], truths=comparison.truths)
        figures = [
            charts.draw_improvement(few),
            charts.draw_profiles(few),
            charts.draw_splits(few),
            charts.draw_regret(few, ("search",) if few.panel("search") else ("learner",)),
            draw_fronts(few, trades_of(few)[:1]),
        ]
        for figure in figures:
            figure.set_dpi(150)  # that of the files; where lines break depends on it
            figure.draw_without_rendering()  # lays it out
            extent = figure._suptitle.get_window_extent()
            assert extent.x0 >= 0 and extent.x1 <= figure.bbox.width and extent.y1 <= figure.bbox.height + 1
            highest = max(axes.get_tightbbox().y1 for axes in figure.axes)
            assert highest <= extent.y0 + 1


def test_labels_are_moved_apart_but_keep_their_order():
    moved = charts.apart([1.0, 1.0, 1.05, 3.0], 0.2, 0.0)
    assert (np.diff(moved) >= 0.2 - 1e-9).all() and moved[3] == 3.0
    assert abs(moved[:3].mean() - np.mean([1.0, 1.0, 1.05])) < 1e-9
    assert charts.apart([0.0, 0.0], 0.5, 0.0).tolist() == [0.0, 0.5]
    assert charts.apart([], 0.5, 0.0).size == 0


def test_the_scale_of_regrets_has_a_zero_and_can_be_inverted():
    values = np.array([0, 0.05, 0.1, 1, 10, 90])
    assert spread(0) == 0 and (np.diff(spread(values)) > 0).all()
    assert unspread(spread(values)) == pytest.approx(values)


def test_marks_tell_all_agents_apart(comparison):
    agents = [
        replace(comparison.agents[0], header=comparison.agents[0].header.model_copy(update={"agent": name}))
        for name in ["random", *(f"agent{number}" for number in range(13)), "control/a", "control/b"]
    ]
    marks = marks_of(replace(comparison, agents=tuple(agents)))
    assert len(set(marks.values())) == len(marks) == 16


def test_fronts_hold_every_allocation_and_the_true_front(comparison):
    trades = trades_of(comparison)
    assert [(trade.device, trade.metric, trade.budgets) for trade in trades] == [
        ("bit-serial", "latency_ms", (0.3, 0.6)),
        ("mpic", "weight_kib", (0.3,)),
    ]
    for trade, number in zip(trades, (0, 2), strict=True):
        task = comparison.truths[number].task.with_budget(None)
        assert trade.counts.sum() == round(4**8 * (1 - trade.below))
        front = pareto_front(task, metric=trade.metric)
        assert trade.front[:, 1] == pytest.approx([100 * trial.quality.accuracy for trial in front])
        reference = task.reference_cost[trade.metric]
        for name, found in trade.found.items():
            for budget, (cost, accuracy) in zip(trade.budgets, found, strict=True):
                assert cost <= budget * (1 + 1e-9), name
                affordable = [t for t in front if t.costs[trade.metric] <= cost * reference * (1 + 1e-9)]
                assert accuracy <= 100 * affordable[-1].quality.accuracy + 1e-9, name
                assert trade.accuracy_edges[0] <= accuracy <= trade.accuracy_edges[-1]


def test_of_an_even_number_of_runs_the_lower_median_is_shown(comparison):
    agent = comparison.find("random")
    two = replace(agent, rows=agent.rows[:2], final=agent.final[:2])
    (trade, _) = trades_of(replace(comparison, agents=(two,)))
    truth = comparison.truths[0]
    assert trade.found["random"][0, 1] == min(float(truth.accuracy(row)) for row in two.rows[:, 0])


def test_zero_has_no_sign():
    small = Estimate(np.float64(-0.001), np.float64(-0.2), np.float64(0.004), 0.95)
    assert page_tables._estimate(small, signed=True) == page_tables._plain("0.00", "-0.20 to 0.00")
    assert page_tables._estimate(small)["value"] == "0.00"
    assert page_tables._estimate(replace(small, value=np.float64(0.5)), signed=True)["value"] == "+0.50"


def test_names_are_broken_at_spaces_and_after_slashes_only():
    name = "tabular/digits-cnn on bit-serial within latency=0.45"
    assert _pieces(name) == ["tabular/", "digits-cnn", " ", "on", " ", "bit-serial", " ", "within", " ", "latency=0.45"]
    assert "".join(_pieces("a//b c")) == "a//b c"


def test_figures_are_what_plotly_takes(comparison):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    curves, profiles = curves_of(comparison), profiles_of(comparison)
    figures = [
        page_figures.regret_figure(comparison, comparison.panel("search"), curves),
        page_figures.profile_figure(comparison, comparison.panel("learner"), profiles),
        page_figures.split_figure(comparison),
        page_figures.front_figure(comparison, trades_of(comparison)[0]),
    ]

    def coloured(part):
        if isinstance(part, str):
            return "#123456" if part.startswith("@") else part
        if isinstance(part, dict):
            return {name: coloured(value) for name, value in part.items()}
        return [coloured(value) for value in part] if isinstance(part, list) else part

    for figure in figures:
        made = graph_objects.Figure(coloured(figure))
        assert len(made.data) == len(figure["data"])


def test_the_page_needs_nothing_else(written, comparison):
    page = written[0].read_text()
    own = page.replace(re.search(r"<script>(.{1000000,}?)</script>", page, re.DOTALL).group(1), "")
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#|data:)", own) and "@import" not in own and "url(" not in own
    assert "Not compared: <b>unfinished</b>, 1 of 9 runs are missing." in own
    assert "&lt;b&gt;odd&lt;/b&gt; &amp; " in own and "<b>odd" not in own
    words = " ".join(own.split())
    assert "whether the runs replay is what <code>amed bench validate</code> says" in words
    assert "not the difference of the two means" in words and "the worse one of the two in the middle" in words
    shown = re.sub(r"<[^>]+>", "", words)
    assert "as it must be" in shown and "development cells of tiny" in shown and "exact optimum" in shown
    for number in comparison.checkpoints():
        assert f'<th scope="col">{number}</th>' in own


def opened(browser, page, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 760}, offline=True, color_scheme=scheme)
    context.set_default_timeout(PATIENCE_MS)
    tab, problems, requests = context.new_page(), [], []
    tab.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(page.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    for place in tab.query_selector_all(".plot"):
        place.scroll_into_view_if_needed()
        tab.wait_for_function("place => place.querySelector('.main-svg')", arg=place)
    return context, tab, problems, requests


@pytest.mark.slow
@pytest.mark.xdist_group("browser")
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (390, "light"), (1280, "light")])
def test_the_page_in_a_browser_without_network(browser, written, width, scheme):
    context, tab, problems, requests = opened(browser, written[0], width, scheme)
    assert problems == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    widest = tab.evaluate("document.documentElement.scrollWidth")
    assert widest <= width
    plots = tab.evaluate(
        "[...document.querySelectorAll('.plot')].map(p => p.querySelector('.main-svg').getBoundingClientRect().width)"
    )
    assert len(plots) >= 9 and all(250 < plot <= width for plot in plots)
    lines = tab.evaluate("document.querySelectorAll('.plot')[0].querySelectorAll('.scatterlayer path.js-line').length")
    assert lines >= 3
    broken = "piece => piece.getBoundingClientRect().height > 2 * parseFloat(getComputedStyle(piece).fontSize)"
    assert tab.evaluate(f"[...document.querySelectorAll('.piece:not(.long)')].filter({broken}).length") == 0
    assert tab.evaluate("document.querySelectorAll('.piece').length") > 30
    covered = tab.evaluate("""
        [...document.querySelectorAll('.plot')].filter(place => {
            const [title, legend] = ['.xtitle', '.legend'].map(part => place.querySelector(part));
            return title && legend && title.getBoundingClientRect().bottom > legend.getBoundingClientRect().top + 1;
        }).length
    """)
    assert covered == 0
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 128) == (scheme == "dark")
    assert tab.evaluate("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)") >= 12
    context.close()


def test_the_command(folder, tmp_path):
    result = CliRunner().invoke(app, ["bench", "report", str(folder), "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0 and (tmp_path / "out" / "report.html").is_file()
    assert "report.html" in result.stdout
    empty = CliRunner().invoke(app, ["bench", "report", str(tmp_path / "nothing")])
    assert empty.exit_code == 2 and "has no result files" in empty.stderr
