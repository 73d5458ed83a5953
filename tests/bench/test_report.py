"""The report: its pictures, and its page, which needs nothing else."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread
from result_samples import CELLS, write
from typer.testing import CliRunner

from amed_env import pareto_front
from amed_env.bench import charts, page_tables
from amed_env.bench.curves import compare, read_folder
from amed_env.bench.estimates import beats_all, curves_of, profiles_of
from amed_env.bench.fronts import draw_fronts, trades_of
from amed_env.bench.marks import marks_of, spread, unspread
from amed_env.bench.report import _pieces, report
from amed_env.bench.run_statistics import Estimate, interquartile_mean
from amed_env.cli import app

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
def curves(comparison):
    return curves_of(comparison)


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


def test_regret_is_drawn_on_a_logarithmic_axis_with_units_and_names(comparison, curves):
    figure = charts.draw_regret(comparison, curves)
    assert len(figure.axes) == 3 and all(axes.get_xscale() == "log" for axes in figure.axes)
    found = texts(figure)
    for text in ("regret (accuracy points)", "distinct evaluations", "95 % bootstrap interval", "climber", "negative"):
        assert text in found
    for axes in figure.axes:  # random stands in every panel
        assert "random" in [text.get_text() for text in axes.texts]
        assert axes.collections  # intervals


def test_curves_show_the_regret_of_the_runs(comparison, curves):
    figure = charts.draw_regret(comparison, curves, groups=("search",))
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


def test_nothing_is_drawn_above_the_truth_between_computed_points(comparison, curves):
    (axes,) = charts.draw_regret(comparison, curves, groups=("search",)).axes
    for agent, line in zip(comparison.panel("search"), axes.lines, strict=True):
        for point, regrets in zip(range(1, 61), agent.regrets_after(np.arange(1, 61)), strict=True):
            assert drawn_at(line, point) == float(interquartile_mean(regrets))


def test_profiles_show_the_count_of_runs(comparison):
    rng = np.random.default_rng(1)
    agents = [replace(agent, final=rng.integers(0, 30, (3, 3)) * 0.2) for agent in comparison.agents]
    changed = replace(comparison, agents=tuple(agents))
    axes = charts.draw_profiles(changed, profiles_of(changed)).axes[0]
    for agent, line in zip(changed.panel("learner"), axes.lines, strict=True):
        for number in range(60):  # at every multiple of 0.1, which is at and between the regrets
            regret = number / 10 + 1e-6
            assert drawn_at(line, regret) == pytest.approx(100 * (agent.final <= regret).mean())
        assert line.get_xdata()[-1] == axes.get_xlim()[1]


def test_titles_are_within_narrow_pictures(comparison):
    for count in (1, 2, 3):
        few = replace(comparison, agents=comparison.agents[:count], truths=comparison.truths)
        figures = [
            charts.draw_improvement(few, beats_all(few.agents)),
            charts.draw_profiles(few, profiles_of(few)),
            charts.draw_splits(few),
            charts.draw_regret(few, curves_of(few), groups=("search",) if few.panel("search") else ("learner",)),
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


def test_the_page_needs_nothing_else_and_shows_every_picture_with_its_description(written, comparison):
    page = written[0].read_text()
    own = re.sub(r'src="data:image/png;base64,[^"]*"', "", page)
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#|data:)", own)
    assert not any(text in own for text in ("@import", "url(", "<script"))
    shown = re.findall(r'<img width="(\d+)" src="data:image/png;base64,([^"]*)" alt="([^"]+)">', page)
    assert {base64.b64decode(content) for _, content, _ in shown} == {path.read_bytes() for path in written[1:]}
    for width, content, alt in shown:
        pixels = imread(io.BytesIO(base64.b64decode(content))).shape[1]
        assert int(width) == round(pixels / 1.5) and "table" in alt  # it says where the numbers are
    assert "Not compared: <b>unfinished</b>, 1 of 9 runs are missing." in own
    assert "&lt;b&gt;odd&lt;/b&gt; &amp; " in own and "<b>odd" not in own
    words = " ".join(own.split())
    assert "whether the runs replay is what <code>amed bench validate</code> says" in words
    assert "not the difference of the two means" in words and "the worse one of the two in the middle" in words
    text = re.sub(r"<[^>]+>", "", words)
    assert "as it must be" in text and "development cells of tiny" in text and "exact optimum" in text
    for number in comparison.checkpoints():
        assert f'<th scope="col">{number}</th>' in own


def test_tables_have_the_numbers_of_the_pictures(comparison, curves):
    rows = page_tables.regret_table(comparison, curves)["rows"][1:]
    last = {row["name"]: row["cells"][-1]["value"] for row in rows}
    assert last == {agent.name: f"{float(interquartile_mean(agent.final)):.2f}" for agent in comparison.agents}
    pairs = beats_all(comparison.agents)
    table = page_tables.pair_table(comparison, pairs)
    assert table["heads"][1:] == [row["name"] for row in table["rows"]]
    assert table["rows"][0]["cells"][1]["value"] == f"{100 * pairs.value[0, 1]:.0f}"
    trade = trades_of(comparison)[0]
    row = next(row for row in page_tables.front_table(trade)["rows"] if row["name"] == "random")
    cost, accuracy = trade.found["random"][1]
    assert row["cells"][1] == page_tables._plain(f"{accuracy:.2f}", f"cost {cost:.3f}")


def test_the_command(tmp_path):
    write(tmp_path, "random", CELLS[:1], seeds=1, evaluations=5)
    result = CliRunner().invoke(app, ["bench", "report", str(tmp_path), "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0 and (tmp_path / "out" / "report.html").is_file()
    assert "report.html" in result.stdout
    empty = CliRunner().invoke(app, ["bench", "report", str(tmp_path / "nothing")])
    assert empty.exit_code == 2 and "has no result files" in empty.stderr
