"""Continuous actions: which width a number stands for, whose turn it is, and what the budget makes of it."""

import numpy as np
import pytest
from small_task import formula_task

from amed_env.envs import ContinuousWidths, LayerWiseEnv
from amed_env.errors import InputError


def make(layers=4, budget={"latency": 1.0}, separate=False, **options):  # noqa: B006 - it is not changed
    return ContinuousWidths(LayerWiseEnv(formula_task(layers, budget, separate=separate), **options))


@pytest.mark.parametrize(
    ("number", "bits"), [(-1, 2), (-0.34, 2), (-0.32, 4), (0.32, 4), (0.34, 8), (1, 8), (-7, 2), (7, 8)]
)
def test_the_range_is_divided_evenly_among_the_widths(number, bits):
    env = make(1)
    env.reset()
    _, _, terminated, _, info = env.step(np.array([number], dtype=np.float32))
    assert terminated and [p.weight_bits for p in info["allocation"].values()] == [bits]


def test_weights_and_activations_take_turns():
    env = make(2, separate=True, reward="terminal")
    first, _ = env.reset()
    assert first.shape == env.observation_space.shape and first[-2:].tolist() == [0, 0]
    second, reward, terminated, _, _ = env.step(np.array([1.0]))  # weights of the first layer: 8
    assert second[-2] == 1 and second[-1] == pytest.approx(5 / 6) and reward == 0 and not terminated
    np.testing.assert_array_equal(second[:-2], first[:-2])
    third, *_ = env.step(np.array([-1.0]))  # its activations: 2
    assert third[-2:].tolist() == [0, 0] and not np.array_equal(third[:-2], first[:-2])
    env.step(np.array([0.0]))
    _, _, terminated, _, info = env.step(np.array([1.0]))
    assert terminated and info["allocation"].key() == "8/2 4/8"


@pytest.mark.parametrize("separate", [False, True])
def test_whatever_is_asked_for_is_projected_on_the_budget(separate):
    env = make(5, {"latency": 0.4}, separate, reward="terminal")
    env.action_space.seed(0)
    clamped = 0
    for _ in range(30):
        env.reset()
        over = False
        while not over:
            _, _, over, _, info = env.step(env.action_space.sample())
            clamped += info.get("action_clamped", 0)
        assert info["feasible"] and not info["repaired"]
    assert clamped > 10


def test_a_new_episode_begins_with_weights_even_if_the_last_was_left_between():
    env = make(2, separate=True)
    first, _ = env.reset()
    env.step(np.array([1.0]))
    again, _ = env.reset()
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("action", [np.array([np.nan]), np.array([0.1, 0.2]), 0.3, np.array([[0.1]])])
def test_what_is_no_single_number_is_refused(action):
    env = make()
    env.reset()
    with pytest.raises(InputError, match="finite number"):
        env.step(action)
