import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amed_env.problem.objective import FAULT_REWARD, VIOLATION_PENALTY
from amed_env.problem.score import DIVERGENCE, LOSS, TOP_1, Score, score_named

FRACTIONS = st.floats(0, 1)
MORE, LESS = Score("more", "more", True), Score("less", "less", False)
VALUES = {TOP_1: FRACTIONS, DIVERGENCE: st.floats(0, 20), LOSS: st.floats(0, 20), LESS: st.floats(0, 1e6)}


@pytest.mark.parametrize("score", [*VALUES, MORE], ids=lambda score: score.name)
@given(st.data())
def test_what_is_better_gains_more(score, data):
    values = VALUES.get(score, st.floats(-1e6, 1e6))
    first, second, reference = data.draw(values), data.draw(values), data.draw(values)
    worse, better = sorted((first, second), key=score.order, reverse=True)
    assert score.gain(worse, reference) <= score.gain(better, reference)
    assert score.goodness(worse) <= score.goodness(better) and score.error(worse) >= score.error(better)
    assert score.gain(reference, reference) == 0
    assert math.isfinite(score.gain(first, reference))


@given(FRACTIONS, FRACTIONS)
def test_the_gain_of_an_accuracy_is_the_log_ratio_of_smoothed_errors(accuracy, reference):
    assert TOP_1.gain(accuracy, reference) == math.log((1.0 - reference + 0.01) / (1.0 - accuracy + 0.01))


def test_the_gain_of_a_divergence_is_its_log_ratio_while_it_is_small():
    assert DIVERGENCE.gain(0.02, 0.001) == pytest.approx(math.log(0.011 / 0.03), abs=0.01)
    assert DIVERGENCE.gain(0.0, 0.0) == 0


@pytest.mark.parametrize("score", [TOP_1, DIVERGENCE, LOSS], ids=lambda score: score.name)
def test_a_fault_is_worse_than_any_network_and_no_quality_pays_for_twice_the_budget(score):
    best, worst = (1.0, 0.0) if score.higher_is_better else (0.0, 1e9)
    assert score.gain(worst, best) > FAULT_REWARD
    assert score.gain(best, best) - VIOLATION_PENALTY < score.gain(worst, best)


def test_values_of_no_known_end_are_compared_with_the_reference():
    assert LESS.gain(20.0, 10.0) == pytest.approx(math.log(10.1 / 20.1))
    assert LESS.gain(2000.0, 1000.0) == pytest.approx(LESS.gain(20.0, 10.0))
    assert MORE.gain(8.0, 10.0) == pytest.approx(-0.2)
    assert MORE.gain(-12.0, -10.0) == pytest.approx(-0.2)


def test_values_are_shown_with_their_unit():
    assert TOP_1.text(0.881) == "88.10 %" and TOP_1.label == "accuracy (%)" and TOP_1.shown(0.5) == 50
    assert DIVERGENCE.text(0.01234) == "0.0123 nats" and DIVERGENCE.shown(0.5) == 0.5
    assert LESS.text(123.456) == "123.5" and LESS.label == "less"


def test_a_name_in_a_file_gives_the_score_back():
    assert score_named("divergence", False) is DIVERGENCE
    other = score_named("somebody's", True)
    assert other.higher_is_better and other.name == "somebody's"
