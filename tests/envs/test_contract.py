"""What Gymnasium, Stable-Baselines3 and pickle ask of every environment."""

import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from small_task import formula_task
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check
from stable_baselines3.common.env_util import make_vec_env

from amed_env.envs import LAYER_WISE, ONE_SHOT, RANDOM_WALK, ContinuousWidths, LayerWiseEnv
from amed_env.errors import InputError

ENVIRONMENTS = (LAYER_WISE, ONE_SHOT, RANDOM_WALK)
VARIANTS = [(environment, options) for environment in ENVIRONMENTS for options in (
    {},
    {"budget": {"latency": 0.5}},
    {"budget": {"latency": 0.7, "memory": 0.9}, "pin": {"first": 8, "last": 8}},
    {"budget_range": {"energy": (0.6, 0.9)}, "device": "eyeriss-ws"},
    {"task": formula_task(3, {"memory": 0.5}, separate=True)},
)]  # fmt: skip
VARIANTS += [
    (LAYER_WISE, {"reward": "terminal", "task": "digits-cnn", "bits": (2, 4, 6, 8)}),
    (LAYER_WISE, {"reward": "predicted", "budget": {"energy": 0.7}, "device": "systolic-32"}),
    (RANDOM_WALK, {"reward": "score", "moves": 5}),
]


@pytest.mark.parametrize(("environment", "options"), VARIANTS, ids=str)
def test_passes_the_checks_of_gymnasium_and_sb3(environment, options):
    env = gym.make(environment, **{"task": "tabular/digits-cnn", **options}).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*render.*")
        gymnasium_check(env)
        sb3_check(env)


@pytest.mark.parametrize("separate", [False, True])
def test_continuous_actions_pass_the_checks_of_gymnasium(separate):
    task = formula_task(3, {"latency": 0.5}, separate=separate)
    gymnasium_check(ContinuousWidths(LayerWiseEnv(task)), skip_render_check=True)


def test_registered_id_also_resolves_with_its_module():
    env = gym.make(f"amed_env:{LAYER_WISE}", task="digits-cnn", device="bitfusion", budget={"latency": 0.5})
    assert isinstance(env.unwrapped, LayerWiseEnv)
    assert env.spec.id == LAYER_WISE and env.spec.max_episode_steps is None


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_stable_baselines3_makes_it_from_its_id(environment):
    """It asks for pictures first, and goes on without them after a TypeError."""
    environments = make_vec_env(environment, n_envs=2, seed=0)
    assert environments.reset().shape[0] == 2
    PPO("MlpPolicy", environment, n_steps=16, batch_size=8)
    with pytest.raises(InputError, match="render_mode 'rgb_array' is unknown"):
        gym.make(LAYER_WISE, render_mode="rgb_array")


@pytest.mark.parametrize("environment", [LAYER_WISE, RANDOM_WALK])
def test_pickled_environments_go_on_alike(environment):
    env = gym.make(environment, task=formula_task(), budget={"latency": 0.9})
    env.reset(seed=5)
    env.step(2)
    twin = pickle.loads(pickle.dumps(env))
    for action in (1, 0, 2):
        mine, theirs = env.step(action), twin.step(action)
        assert np.array_equal(mine[0], theirs[0]) and mine[1:4] == theirs[1:4]
    assert mine[4]["allocation"] == theirs[4]["allocation"]
