import json
import math

import numpy as np
import pytest

from amed_env.evaluation.verdict import Estimate, compared_score, judge
from amed_env.problem.score import DIVERGENCE, TOP_1, Score


def answers(right, wrong):
    """One for each right answer, zero for each wrong one."""
    return np.concatenate([np.ones(right), np.zeros(wrong)]).astype(np.float32)


def test_an_estimate_is_mean_and_standard_error():
    values = np.array([1.0, 2.0, 3.0, 6.0])
    deviation = math.sqrt(((values - 3) ** 2).sum() / 3)
    found = Estimate.of(values)
    assert found.value == 3.0 and found.error == pytest.approx(deviation / 2)
    assert Estimate.of(np.ones(1)) == Estimate(1.0, 0.0)


def test_differences_are_paired():
    chosen, uniform = answers(90, 10), answers(85, 15)  # wrong on the same ten, and on five more
    verdict = judge(TOP_1, chosen, uniform, 4, chosen)
    assert verdict.over_uniform.value == pytest.approx(0.05)
    unpaired = math.hypot(verdict.chosen.error, Estimate.of(uniform).error)
    assert verdict.over_uniform.error == pytest.approx(math.sqrt(0.05 * 0.95 / 99)) and unpaired > 0.04
    assert verdict.over_float == Estimate(0.0, 0.0) and verdict.better_than_uniform


def test_a_gain_that_is_known():
    verdict = judge(TOP_1, answers(881, 119), answers(827, 173), 4)
    assert verdict.sentence() == (
        "on 1,000 unseen samples: 88.1 % ± 1.0; "
        + "5.4 ± 0.7 points above the best uniform width within the budget (4 bit)."
    )


def test_a_gain_that_is_none():
    generator = np.random.default_rng(0)
    chosen, uniform = (generator.random(1000) < 0.9 for _ in range(2))
    verdict = judge(TOP_1, chosen, uniform, 4)
    assert not verdict.better_than_uniform
    assert "no better than uniform 4 bit (" in verdict.sentence() and verdict.sentence().endswith("): take that.")
    worse = judge(TOP_1, answers(80, 20), answers(90, 10), 3).sentence()
    assert "no better than uniform 3 bit (−10.0 ± 3.0): take that" in worse
    same = judge(TOP_1, answers(80, 20), answers(80, 20), 3).sentence()
    assert "no better than uniform 3 bit (+0.0 ± 0.0): take that" in same


def test_less_is_better_where_it_is():
    generator = np.random.default_rng(0)
    uniform = generator.exponential(0.05, 4000)
    verdict = judge(DIVERGENCE, 0.5 * uniform, uniform, 4, np.zeros(4000))
    assert verdict.over_uniform.value == pytest.approx(0.5 * uniform.mean()) and verdict.over_float is None
    assert "divergence 0.0255 ± 0.0004 nats; 0.0255 ± 0.0004 nats below the best" in verdict.sentence()


def test_without_a_uniform_width_within_the_budget():
    verdict = judge(TOP_1, answers(9, 1))
    assert verdict.better_than_uniform is None and "no uniform width is within the budget" in verdict.sentence()
    document = json.loads(json.dumps(verdict.to_json()))
    assert document["chosen"]["value"] == pytest.approx(0.9) and document["over_uniform"] is None


def test_what_is_compared_has_values_of_single_samples_everywhere():
    f1 = Score("macro-f1", "macro F1", True, "%", "fraction")
    both = {"top-1": answers(1, 1), "divergence": answers(1, 1)}
    assert compared_score(DIVERGENCE, (f1, TOP_1), {"best": both, "float": both}) == TOP_1
    only = {"divergence": answers(1, 1)}
    assert compared_score(DIVERGENCE, (f1, TOP_1), {"best": both, "float": only}) == DIVERGENCE
    assert compared_score(f1, (f1,), {"best": {}, "float": {}}) is None
