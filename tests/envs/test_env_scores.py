"""Environments on scores of which less is better, and on samples without labels."""

import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from small_task import BitProportional, UnlabelledEvaluator, formula_task

from amed_env import Task, load_device, make_task
from amed_env.envs.batch import LayerWiseBatch
from amed_env.envs.layer_wise import LayerWiseEnv
from amed_env.envs.wrappers import VectorReward
from amed_env.evaluation.table import TableEvaluator

IDS = ["AMED/LayerWise-v0", "AMED/RandomWalk-v0", "AMED/OneShot-v0"]


def unlabelled():
    return formula_task(budget={"latency": 0.6}, evaluator=UnlabelledEvaluator)


def with_divergence(score):
    """The shipped table with divergences that are made up."""
    table = make_task("tabular/digits-cnn").evaluator.table
    drawn = np.random.default_rng(0).exponential(0.1, len(table)).astype(np.float16)
    evaluator = TableEvaluator(replace(table, divergence={"search": drawn, "test": drawn}), score=score)
    return Task("digits", evaluator, load_device(BitProportional()), (2, 3, 4, 8)).with_budget({"latency": 0.5})


@pytest.mark.parametrize("name", IDS)
def test_environments_work_without_labels(name):
    check_env(gym.make(name, task=unlabelled()).unwrapped, skip_render_check=True)


def test_the_last_reward_is_the_log_ratio_to_8_bit():
    task = unlabelled()
    env = LayerWiseEnv(task, reward="terminal")
    env.reset(seed=0)
    for _ in range(4):
        _, reward, terminated, _, info = env.step(1)
    assert terminated and info["quality"] == task.quality(info["allocation"]).score
    assert "accuracy" not in info and "loss" not in info
    reference = task.quality(task.workload.uniform(8)).score
    assert task.reference_score == reference
    ratio = (1 - math.exp(-reference) + 0.01) / (1 - math.exp(-info["quality"]) + 0.01)
    assert reward == pytest.approx(math.log(ratio))
    assert info["reward_vector"][0] == pytest.approx(-info["quality"])


@pytest.mark.parametrize("task", [unlabelled(), with_divergence("metric")], ids=["less", "more"])
def test_vectors_are_in_their_space(task):
    env = VectorReward(LayerWiseEnv(task))
    env.reset(seed=0)
    for _ in task.workload:
        _, vector, _, _, _ = env.step(0)
        assert env.reward_space.contains(vector)


@pytest.mark.parametrize("score", ["divergence", "loss", "metric"])
def test_many_episodes_at_once_are_what_each_is_alone(score):
    task = with_divergence(score)
    env = LayerWiseEnv(task, reward="terminal")
    batch = LayerWiseBatch(env, 6)
    batch.start(batch.draw_limits(np.random.default_rng(0)))
    actions = np.random.default_rng(1).integers(0, 4, (8, 6))
    for row in actions:
        rewards, info = batch.step(row)
    for episode in range(6):
        env.reset(seed=0)
        for action in actions[:, episode]:
            _, reward, _, _, alone = env.step(int(action))
        assert rewards[episode] == pytest.approx(reward, abs=1e-12)
        for name in ("quality", "accuracy", "loss"):
            assert info[name][episode] == pytest.approx(alone[name])
        assert info["reward_vector"][episode] == pytest.approx(alone["reward_vector"])
