"""`AMED/OneShot-v0`: contract, rewards, masks and repair."""

import math

import numpy as np
import pytest
from small_task import all_choices, formula_task

import amed_env  # noqa: F401 - registers the environments
from amed_env.envs import LayerWiseEnv, OneShotEnv
from amed_env.errors import InputError


def test_rewards_are_those_of_the_layer_wise_walk():
    task = formula_task(3)
    one_shot, layer_wise = OneShotEnv(task), LayerWiseEnv(task, reward="terminal")
    for choices in all_choices(task):
        one_shot.reset(options={"budget": 1.0})
        layer_wise.reset(options={"budget": 1.0})
        _, reward, terminated, truncated, info = one_shot.step(choices)
        for choice in choices:
            walked = layer_wise.step(choice)
        assert (terminated, truncated) == (True, False)
        assert reward == walked[1] and info["allocation"] == walked[4]["allocation"]
        error, float_error = 1 - info["accuracy"], 1 - task.float_quality.accuracy
        assert reward == pytest.approx(math.log((float_error + 0.01) / (error + 0.01)))


def test_masks_forbid_exactly_what_no_other_layer_can_make_up_for():
    task = formula_task(3, {"latency": 0.45})
    env = OneShotEnv(task)
    env.reset()
    every = all_choices(task)
    within = every[task.costs["latency_ms"][np.arange(3), every].sum(axis=1) <= task.limits["latency_ms"] * (1 + 1e-9)]
    possible = np.array([[choice in within[:, layer] for choice in range(3)] for layer in range(3)])
    assert np.array_equal(env.action_masks().reshape(3, 3), possible) and not possible.all()


def test_what_exceeds_the_budget_is_repaired():
    env = OneShotEnv(formula_task(3, {"latency": 0.5}))
    env.reset()
    *_, info = env.step([2, 2, 2])
    assert info["repaired"] and info["feasible"]
    env.reset()
    assert not env.step([0, 0, 0])[4]["repaired"]


def test_wrong_actions_and_a_second_step_are_refused():
    env = OneShotEnv(formula_task(3))
    with pytest.raises(InputError, match="reset"):
        env.step([0, 0, 0])
    env.reset()
    for action in ([0, 0], [0, 0, 3], 1, None):
        with pytest.raises(InputError, match="not in"):
            env.step(action)
    env.step([0, 0, 0])
    with pytest.raises(InputError, match="reset"):
        env.step([0, 0, 0])


def test_the_budget_is_seen():
    env = OneShotEnv(formula_task(3))
    observation, _ = env.reset(options={"budget": {"latency": 0.4, "memory": 0.7}})
    assert observation == pytest.approx([1, 0, 1, 0, 0.4, 1, 0.7, 1])
