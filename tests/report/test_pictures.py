import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.image import imread
from small_task import BitProportional, SharedBuffer, UnlabelledEvaluator, formula_task

from amed_env import Quality, SearchResult
from amed_env.agents.searchers.baselines import RandomAgent, UniformAgent
from amed_env.report import draw_allocation, draw_pareto, png
from amed_env.report.style import layer_axis, new_figure, picture


def texts(figure):
    return " | ".join(artist.get_text() for artist in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def searched(evaluations=30, report=True, **task):
    result = RandomAgent().search(formula_task(**task), evaluations)
    if report:
        result.add_report()
    return result


def draw_both(result):
    figures = draw_pareto(result), draw_allocation(result)
    for figure in figures:
        picture = imread(io.BytesIO(png(figure)))
        assert picture.ndim == 3 and np.ptp(picture) > 0
    return tuple(map(texts, figures))


def test_what_is_written_in_the_pictures():
    pareto, allocation = draw_both(searched(budget={"latency": 0.6}))
    for text in ("2 bit", "8 bit", "budget, 0.6", "relative to uniform 8 bit", "Pareto front", "float network"):
        assert text in pareto
    for text in ("layer0", "layer3", "bits of weights and activations", "sum 100.0 %", "latency of the layer"):
        assert text in allocation


def test_separate_widths_show_both():
    _, allocation = draw_both(searched(separate=True, budget={"bops": 0.4}))
    assert "weights" in allocation and "activations" in allocation


@pytest.mark.parametrize("layers", [1, 60])
def test_very_short_and_very_long_networks(layers):
    result = searched(layers=layers, harms=[0.01] * layers)
    _, allocation = draw_both(result)
    assert f"layer{layers - 1}" in allocation
    width, height = draw_allocation(result).get_size_inches()
    assert width <= 12 and height / layers >= 0.25


def test_collapsed_networks_do_not_squash_the_picture():
    task = formula_task(layers=5, harms=[0.1, 0.1, 0.1, 0.1, 10.0], budget={"latency": 0.9})
    result = RandomAgent().search(task, 80)
    result.add_report()
    figure = draw_pareto(result)
    low, high = figure.axes[0].get_ylim()
    assert high - low < 25
    below = sum(100 * trial.quality.accuracy < low for trial in result.trials)
    assert below > 0 and f"{below} of {len(result.trials)} lie below" in texts(figure)
    assert low < 100 * result.best.quality.accuracy < high
    assert low < 100 * task.float_quality.accuracy < high


@pytest.mark.parametrize("best", [0.003, 0.00002])
def test_what_is_drawn_at_its_height_has_that_score(best):
    result = searched(evaluator=UnlabelledEvaluator, budget={"latency": 0.6})
    scores = {"uniform-2": 0.01, "uniform-4": best, "uniform-8": 0.00001}
    for name, score in scores.items():
        trial = result.baselines[name]
        result.baselines[name] = replace(trial, quality=replace(trial.quality, score=score))
    result.best = result.baselines["uniform-4"]
    result.trials, result.pareto = [result.best], [result.best]
    figure = draw_pareto(result)
    (squares,) = [line for line in figure.axes[0].lines if line.get_label() == "uniform widths"]
    assert np.allclose(10.0 ** -squares.get_ydata(), best)
    assert "8 bit (1e-05 nats)" in texts(figure) and "2 bit (0.0100 nats)" in texts(figure)


def test_equal_accuracies_give_a_readable_axis():
    figure = draw_pareto(searched(harms=[0.0] * 4))
    low, high = figure.axes[0].get_ylim()
    assert high - low >= 0.5


def test_devices_without_8_bit_without_layers_and_without_a_report():
    class Narrow(BitProportional):
        bits = (2, 4)

    pareto, allocation = draw_both(searched(bits=(2, 4), device=Narrow()))
    assert "latency (ms)" in pareto and "% of this network" in allocation
    pareto, allocation = draw_both(searched(device=SharedBuffer()))
    assert "latency" in pareto and "latency of the layer" not in allocation
    draw_both(searched(report=False))


def test_nothing_feasible_and_nothing_at_all():
    task = formula_task(budget={"latency": 0.3})
    trial = task.measure(task.workload.uniform(8))
    result = SearchResult(task, "none", 0, None, [trial], "latency_ms", [trial], 1, 1, 0.0)
    pareto, allocation = draw_both(result)
    assert "no evaluated allocation is within the budget" in pareto and "no allocation within the budget" in allocation
    result = SearchResult(task, "none", 0, None, [], "latency_ms", [], 0, 1, 0.0)
    assert "nothing was evaluated" in draw_both(result)[0]


def test_a_perfect_network():
    result = UniformAgent().search(formula_task(), 3)
    result.task.__dict__["float_quality"] = Quality(1000, 1000, 0.0)
    low, high = draw_pareto(result).axes[0].get_ylim()
    assert low < 100 <= high


def test_the_test_result_stands_beside_the_search():
    result = searched(budget={"latency": 0.6})
    written = texts(draw_pareto(result))
    assert f"on {result.test['best'].samples:,} unseen samples" in written
    assert f"{100 * result.test['best'].accuracy:.2f}" in written and "answer" in written
    assert "unseen" not in texts(draw_pareto(searched(report=False, budget={"latency": 0.6})))


def test_points_have_bars_of_one_standard_error():
    result = searched(budget={"latency": 0.6})
    best = result.best.quality
    expected = 100 * np.sqrt(best.accuracy * (1 - best.accuracy) / (best.samples - 1))
    segments = [
        path.vertices[:, 1]
        for collection in draw_pareto(result).axes[0].collections
        if isinstance(collection, LineCollection)
        for path in collection.get_paths()
    ]
    lengths = [
        heights.max() - heights.min() for heights in segments if heights.mean() == pytest.approx(100 * best.accuracy)
    ]
    assert lengths and lengths[0] == pytest.approx(2 * expected)


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_dollars_in_names_are_no_formulas(form):
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.set_title(r"task $\nothing{")
    axes.text(0, 0, "x_$^$")
    axes.set_xscale("log")
    layer_axis(axes, [r"a$\frac{1$b", "x_$^$"], "$ms$")
    assert picture(figure, form)
