"""Continuous actions for many environments equal those of single ones; noise can be changed while it is used."""

import numpy as np
import pytest
from small_task import formula_task

from amed_env.agents.learners.callbacks import WidthNoise
from amed_env.agents.learners.vec_continuous import ContinuousVecEnv
from amed_env.agents.learners.vec_env import LayerWiseVecEnv
from amed_env.envs import ContinuousWidths, LayerWiseEnv


@pytest.mark.parametrize("separate", [False, True])
def test_many_environments_equal_single_ones(separate):
    def environment():
        return LayerWiseEnv(formula_task(3, {"latency": 0.5}, separate=separate), reward="predicted")

    vector = ContinuousVecEnv(LayerWiseVecEnv(4, environment()))
    singles = [ContinuousWidths(environment()) for _ in range(4)]
    assert vector.action_space == singles[0].action_space
    assert vector.observation_space == singles[0].observation_space
    np.testing.assert_allclose(vector.reset(), [env.reset()[0] for env in singles], rtol=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(18):
        actions = rng.uniform(-1.2, 1.2, (4, 1)).astype(np.float32)
        observations, rewards, dones, infos = vector.step(actions)
        answers = [env.step(action) for env, action in zip(singles, actions, strict=True)]
        np.testing.assert_allclose(rewards, [a[1] for a in answers], rtol=1e-5)
        assert dones.tolist() == [a[2] for a in answers]
        expected = [a[0] for a in answers]
        if dones.all():
            np.testing.assert_allclose([info["terminal_observation"] for info in infos], expected, rtol=1e-6)
            expected = [env.reset()[0] for env in singles]
        np.testing.assert_allclose(observations, expected, rtol=1e-6)


def test_noise_has_the_deviation_that_was_set_last():
    np.random.seed(0)
    noise = WidthNoise(0.5)
    before = [float(noise()[0]) for _ in range(2_000)]
    noise.deviation = 0.1
    after = [float(noise()[0]) for _ in range(2_000)]
    assert np.std(before) == pytest.approx(0.5, rel=0.1) and np.std(after) == pytest.approx(0.1, rel=0.1)
    assert noise().shape == (1,) and noise().dtype == np.float32
