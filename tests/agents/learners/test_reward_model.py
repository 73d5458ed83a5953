"""The learned model of the reward: a Gaussian process against textbook formulas, and what it can and cannot learn."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, spearmanr

from amed_env.agents.learners.reward_model import RewardModel

WIDTHS = np.log2([[2.0], [4.0], [8.0]])
LAYERS = 4


def grid():
    return np.array(np.meshgrid(*[range(3)] * LAYERS)).reshape(LAYERS, -1).T


def interacting(choices):
    """A layer's own effect, and two layers that must not be narrow together; nothing of it is in the prior."""
    return 0.5 * choices[:, 0] - 0.2 * choices[:, 3] - 2.0 * (choices[:, 1] == 0) * (choices[:, 2] == 0)


def fitted(count=40, targets=interacting, rates=True, seed=0):
    rng = np.random.default_rng(seed)
    choices = grid()[rng.permutation(3**LAYERS)]
    model = RewardModel(WIDTHS, LAYERS)
    rewards = targets(choices)
    prior = np.zeros(len(choices))
    model.fit(choices[:count], prior[:count], rewards[:count], rates=rates)
    return model, choices, prior, rewards


def test_it_learns_interactions_of_layers_from_half_of_all_allocations():
    model, choices, prior, rewards = fitted()
    mean, deviation = model.predict(choices[40:], prior[40:])
    assert spearmanr(mean, rewards[40:]).statistic > 0.95
    assert np.abs(mean - rewards[40:]).mean() < 0.25 * rewards.std()
    assert (np.abs(mean - rewards[40:]) < 3.5 * deviation).mean() > 0.9


def test_it_cannot_learn_rewards_that_are_shuffled():
    """The negative control of the test above."""
    shuffle = np.random.default_rng(1).permutation(3**LAYERS)
    model, choices, prior, rewards = fitted(targets=lambda choices: interacting(choices)[shuffle])
    mean, _ = model.predict(choices[40:], prior[40:])
    assert abs(spearmanr(mean, rewards[40:]).statistic) < 0.5


def test_mean_and_deviation_are_those_of_the_joint_normal_distribution():
    """Conditioning by the full covariance matrix of trials and candidates, written out pair by pair."""
    rng = np.random.default_rng(2)
    choices = grid()[rng.permutation(3**LAYERS)[:9]]
    prior, rewards = rng.normal(size=9), rng.normal(size=9)
    model = RewardModel(WIDTHS, LAYERS)
    model.fit(choices[:6], prior[:6], rewards[:6], rates=False)
    mean, deviation = model.predict(choices[6:], prior[6:])
    rate, noise = np.exp(-1.0), np.exp(-3.0) + 1e-4
    scaled = (prior - prior[:6].mean()) / prior[:6].std()
    covariance = np.zeros((9, 9))
    for i in range(9):
        for j in range(9):
            octaves = [abs(WIDTHS[a, 0] - WIDTHS[b, 0]) for a, b in zip(choices[i], choices[j], strict=True)]
            additive = np.mean([np.exp(-rate * octave) for octave in octaves])
            covariance[i, j] = np.exp(-rate * sum(octaves)) + additive + scaled[i] * scaled[j]
    seen = covariance[:6, :6] + noise * np.eye(6)
    gain = covariance[6:, :6] @ np.linalg.inv(seen)
    centre, unit = rewards[:6].mean(), rewards[:6].std()
    np.testing.assert_allclose(mean, centre + gain @ (rewards[:6] - centre), rtol=1e-9)
    expected = np.diag(covariance[6:, 6:] - gain @ covariance[:6, 6:])
    np.testing.assert_allclose(deviation, unit * np.sqrt(expected), rtol=1e-9)
    assert model.spread == pytest.approx(unit)


def test_fitting_the_rates_makes_the_trials_more_likely():
    def likelihood(rates):
        model, choices, prior, rewards = fitted(rates=rates)
        scaled = (rewards[:40] - rewards[:40].mean()) / rewards[:40].std()
        covariance = model._covariance(choices[:40], choices[:40], prior[:40], prior[:40]) + model._noise * np.eye(40)
        return multivariate_normal(np.zeros(40), covariance).logpdf(scaled)

    assert likelihood(True) > likelihood(False) + 5


def test_equal_rewards_and_a_constant_prior_are_no_error():
    model = RewardModel(WIDTHS, LAYERS)
    model.fit(grid()[:5], np.zeros(5), np.ones(5), rates=True)
    mean, deviation = model.predict(grid(), np.zeros(len(grid())))
    np.testing.assert_allclose(mean, 1.0)
    assert np.isfinite(deviation).all()
