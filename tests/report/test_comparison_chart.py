"""Allocations of several devices below each other: every width at its place, and only those of one network."""

import pytest

from amed_env import BitAllocation
from amed_env.errors import InputError
from amed_env.report import png
from amed_env.report.comparison_chart import draw_comparison


def result(device, widths, *, network="net", budget="latency", agent="greedy", relative=None):
    layers = {f"layer{i}": pair if isinstance(pair, tuple) else (pair, pair) for i, pair in enumerate(widths)}
    best = {
        "allocation": BitAllocation(layers or {"none": (8, 8)}).to_json(network),
        "search": {"accuracy": 0.9125},
        "costs": {"latency_ms": 0.25, "energy_uj": 12.0},
        "relative_costs": {"latency": 0.493} if relative is None else relative,
    }
    return {
        "network": network,
        "device": device,
        "agent": agent,
        "budgets": {budget: {"value": 0.5, "relative": True}},
        "best": best if widths else None,
    }


def texts(figure):
    return {(round(text.get_position()[0]), round(text.get_position()[1])): text.get_text() for text in cells(figure)}


def cells(figure):
    return figure.axes[0].texts


def test_every_width_stands_at_its_layer_and_device():
    figure = draw_comparison([result("first", [8, 4, 2]), result("second", [3, (4, 8), 8])])
    assert texts(figure) == {(0, 0): "8", (1, 0): "4", (2, 0): "2", (0, 1): "3", (1, 1): "4/8", (2, 1): "8"}
    (image,) = figure.axes[0].images
    shown = image.get_array()
    assert shown[0].tolist() == [8, 4, 2]
    assert shown[1].tolist() == [3, pytest.approx(32**0.5), 8]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["layer0", "layer1", "layer2"]
    assert png(figure).startswith(b"\x89PNG")


def test_rows_say_device_accuracy_and_cost():
    documents = [result("first", [8, 4]), result("second", [8, 8], relative={}), result("third", [])]
    labels = [label.get_text() for label in draw_comparison(documents).axes[0].get_yticklabels()]
    assert labels == ["first\n91.25 %, latency 0.493", "second\n91.25 %, latency 0.25 ms", "third\nnothing found"]


def test_the_title_says_what_all_have_in_common():
    same = draw_comparison([result("first", [8]), result("second", [4])]).get_suptitle()
    assert "latency=0.5" in same and "greedy" in same
    apart = draw_comparison([result("a", [8]), result("b", [4], budget="energy", agent="dqn")]).get_suptitle()
    assert "latency" not in apart and "greedy" not in apart


def test_equal_widths_and_empty_results_can_be_drawn():
    assert len(cells(draw_comparison([result("first", [8, 8]), result("second", [8, 8])]))) == 4
    assert not cells(draw_comparison([result("first", [])]))


@pytest.mark.parametrize(
    "documents", [[], [result("a", [8]), result("b", [8, 8])], [result("a", [8]), result("b", [8], network="other")]]
)
def test_results_of_different_networks_are_refused(documents):
    with pytest.raises(InputError):
        draw_comparison(documents)
