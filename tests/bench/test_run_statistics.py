"""Statistics of runs: against scipy, against sums by hand, and on cases whose answer is known."""

import itertools

import numpy as np
import pytest
from scipy import stats

from amed_env.bench.run_statistics import (
    bootstrap,
    difference,
    improvement,
    interquartile_mean,
    mean_score,
    performance_profile,
    probability_of_improvement,
)
from amed_env.errors import InputError


def scores(runs, tasks, seed=0):
    return np.random.default_rng(seed).normal(size=(runs, tasks))


@pytest.mark.parametrize(("runs", "tasks"), [(1, 1), (2, 3), (5, 4), (10, 7), (3, 1)])
def test_interquartile_mean_is_the_trimmed_mean_of_scipy(runs, tasks):
    values = scores(runs, tasks)
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25, axis=None))


def test_interquartile_mean_by_hand_and_its_robustness():
    values = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    assert interquartile_mean(values) == 4.5  # of 3, 4, 5, 6
    values[3, 1] = 1e9
    assert interquartile_mean(values) == 4.5
    assert mean_score(values) > 1e8


def test_profiles_count_runs_above_each_threshold():
    values = np.array([[0.0, 0.5], [1.0, 0.5]])
    np.testing.assert_array_equal(performance_profile(values, [-1, 0, 0.25, 0.5, 1]), [1, 0.75, 0.75, 0.25, 0])
    larger = scores(6, 5)
    levels = np.linspace(-2, 2, 9)
    by_hand = [sum(v > level for v in larger.ravel().tolist()) / 30 for level in levels]
    np.testing.assert_allclose(performance_profile(larger, levels), by_hand)


def test_probability_of_improvement_is_mann_whitneys_u():
    first, second = scores(6, 4, 1).round(1), scores(5, 4, 2).round(1)
    by_scipy = [stats.mannwhitneyu(first[:, t], second[:, t]).statistic / 30 for t in range(4)]
    assert probability_of_improvement(first, second) == pytest.approx(np.mean(by_scipy))
    by_hand = [
        np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(first[:, t], second[:, t])])
        for t in range(4)
    ]
    assert probability_of_improvement(first, second) == pytest.approx(np.mean(by_hand))


def test_known_probabilities():
    low, high = scores(4, 3), scores(4, 3) + 100
    assert probability_of_improvement(high, low) == 1 and probability_of_improvement(low, high) == 0
    assert probability_of_improvement(low, low) == 0.5
    sure = improvement(high, low, resamples=50)
    assert (sure.value, sure.low, sure.high) == (1, 1, 1)


def test_a_bootstrap_of_two_runs_against_all_draws():
    values = np.array([[0.0, 10.0], [1.0, 30.0]])
    # Each task draws two runs of two: the mean of a task is its lower, middle or upper value with 1/4, 1/2, 1/4.
    exact = [
        (a + b + c + d) / 4
        for a, b in itertools.product([0, 1], repeat=2)
        for c, d in [(10, 10), (10, 30), (30, 10), (30, 30)]
    ]
    found = bootstrap(values, mean_score, resamples=20_000, confidence=0.8, seed=3)
    assert found.value == 10.25
    assert (found.low, found.high) == tuple(np.percentile(exact, [10, 90], method="inverted_cdf"))


def test_the_interval_of_a_difference_covers_it_and_excludes_zero_where_agents_differ():
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(200):
        first, second = rng.normal(1.0, 1.0, (20, 3)), rng.normal(0.4, 2.0, (25, 3))
        found = difference(first, second, resamples=200, confidence=0.9, seed=trial)
        assert found.value == pytest.approx(first.mean(axis=0).mean() - second.mean(axis=0).mean())
        hits += bool(found.low <= 0.6 <= found.high)
    assert 0.8 < hits / 200 < 0.97
    low, high = scores(8, 3), scores(8, 3) + 100
    assert difference(high, low).low > 99 and difference(low, high).high < -99
    same = difference(low, low, interquartile_mean)
    assert same.low < same.value == 0 < same.high
    with pytest.raises(InputError, match="same ones"):
        difference([[1.0, 2.0]], [[1.0]])


def test_strata_are_kept_apart():
    # Tasks differ by a million, runs within a task hardly: drawing across tasks would give a wide interval.
    values = np.array([0.0, 1e6, 2e6]) + scores(8, 3) * 1e-3
    found = bootstrap(values, mean_score, resamples=300)
    assert found.high - found.low < 0.01
    assert found.low <= found.value <= found.high


def test_intervals_hold_the_true_value_about_as_often_as_they_say():
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        found = bootstrap(rng.normal(size=(20, 3)), mean_score, resamples=200, confidence=0.9, seed=trial)
        hits += bool(found.low <= 0 <= found.high)
    assert 0.8 < hits / 200 < 0.97


def test_intervals_are_seeded_and_shrink_with_more_runs():
    values = scores(6, 3)
    first, again, other = (bootstrap(values, resamples=200, seed=seed) for seed in (1, 1, 2))
    assert (first.low, first.high) == (again.low, again.high) != (other.low, other.high)
    few, many = (bootstrap(scores(runs, 3), resamples=400) for runs in (5, 200))
    assert many.high - many.low < few.high - few.low


def test_bands_of_profiles_surround_them():
    levels = [-1.0, 0.0, 1.0]
    found = bootstrap(scores(10, 4), lambda sample: performance_profile(sample, levels), resamples=300)
    np.testing.assert_array_equal(found.value, performance_profile(scores(10, 4), levels))
    assert found.low.shape == (3,) and (found.low <= found.value).all() and (found.value <= found.high).all()


@pytest.mark.parametrize("bad", [[1.0, 2.0], [[]], [[float("nan")]], [["a"]], [[1.0], [1.0, 2.0]]])
def test_bad_scores_are_refused(bad):
    with pytest.raises(InputError, match="scores"):
        interquartile_mean(bad)


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="confidence"):
        bootstrap([[1.0]], confidence=1.0)
    with pytest.raises(InputError, match="resamples"):
        bootstrap([[1.0]], resamples=0)
    with pytest.raises(InputError, match="same ones"):
        probability_of_improvement([[1.0, 2.0]], [[1.0]])
    with pytest.raises(InputError, match="give \\(runs, tasks\\)"):
        bootstrap(np.zeros((2, 2, 2)))
