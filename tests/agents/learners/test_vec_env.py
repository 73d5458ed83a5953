"""The environments of stable-baselines3 that are stepped at once: reset in the same step, information, learning."""

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from small_task import SharedBuffer, formula_task
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from amed_env import SearchSession
from amed_env.agents import make_agent
from amed_env.agents.learners.vec_env import LayerWiseVecEnv
from amed_env.envs import LayerWiseEnv
from amed_env.errors import BudgetError, InputError
from amed_env.problem.objective import FAULT_REWARD

OPTIONS = {"task": "tabular/digits-cnn", "budget": {"latency": 0.5}}


def test_it_equals_single_environments_that_are_reset_in_the_same_step():
    vector = LayerWiseVecEnv(4, **OPTIONS)
    singles = [Monitor(LayerWiseEnv(**OPTIONS)) for _ in range(4)]
    observations = vector.reset()
    np.testing.assert_allclose(observations, [env.reset()[0] for env in singles], rtol=1e-6, atol=1e-7)
    rng = np.random.default_rng(0)
    for step in range(24):
        actions = rng.integers(0, 4, 4)
        observations, rewards, dones, infos = vector.step(actions)
        answers = [env.step(int(action)) for env, action in zip(singles, actions, strict=True)]
        np.testing.assert_allclose(rewards, [a[1] for a in answers], rtol=1e-6, atol=1e-7)
        assert rewards.dtype == np.float32 and dones.tolist() == [a[2] for a in answers]
        expected = [a[0] for a in answers]
        if dones.all():
            for info, single, terminal in zip(infos, [a[4] for a in answers], expected, strict=True):
                np.testing.assert_allclose(info["terminal_observation"], terminal, rtol=1e-6, atol=1e-7)
                assert info["episode"]["r"] == pytest.approx(single["episode"]["r"], abs=2e-6)
                assert info["episode"]["l"] == single["episode"]["l"] == 8
                assert tuple(info["choices"]) == single["choices"] and info["accuracy"] == single["accuracy"]
                assert info["costs"] == pytest.approx(single["costs"])
            expected = [env.reset()[0] for env in singles]
        assert dones.all() == (step % 8 == 7)
        np.testing.assert_allclose(observations, expected, rtol=1e-6, atol=1e-7)


def test_masks_are_those_that_maskable_learners_ask_for():
    vector = LayerWiseVecEnv(3, **OPTIONS)
    vector.reset()
    assert is_masking_supported(vector)
    single = LayerWiseEnv(**OPTIONS)
    single.reset()
    np.testing.assert_array_equal(get_action_masks(vector), [single.action_masks()] * 3)
    assert vector.env_is_wrapped(Monitor) == [True] * 3  # its information is there, which callbacks look for
    assert vector.env_is_wrapped(gym.wrappers.FlattenObservation) == [False] * 3
    with pytest.raises(InputError, match="no method 'render'"):
        vector.env_method("render")
    with pytest.raises(InputError, match="cannot set"):
        vector.set_attr("gamma", 0.5)


def test_a_learner_learns_on_it():
    """More reward after practice than before, on the predicted reward."""
    vector = LayerWiseVecEnv(64, reward="predicted", **OPTIONS)
    model = MaskablePPO("MlpPolicy", vector, n_steps=16, batch_size=256, learning_rate=1e-3, seed=0, device="cpu")
    returns = []

    def note(local, _):
        returns.extend(info["episode"]["r"] for info in local["infos"] if "episode" in info)
        return True

    model.learn(64 * 16 * 12, callback=note)
    first, last = np.mean(returns[:256]), np.mean(returns[-256:])
    assert last > first + 0.2 * abs(first)


def test_seeds_draw_equal_budgets():
    def drawn(seed):
        vector = LayerWiseVecEnv(5, task="tabular/digits-cnn")
        vector.seed(seed)
        return vector.reset()

    np.testing.assert_array_equal(drawn(1), drawn(1))
    assert not np.array_equal(drawn(1), drawn(2))


def test_options_set_the_budgets_of_the_next_episodes_only():
    vector = LayerWiseVecEnv(3, task="tabular/digits-cnn")
    plain = DummyVecEnv([lambda: LayerWiseEnv("tabular/digits-cnn")] * 3)
    for options in (
        {"budget": 0.5},
        [{"budget": 0.5}, {"budget": {"memory": 0.6}}, {"budget": {"latency": np.float64(0.7)}}],
    ):
        vector.set_options(options)
        plain.set_options(options)
        np.testing.assert_allclose(vector.reset(), plain.reset(), rtol=1e-6, atol=1e-7)
        assert [set(info) for info in vector.reset_infos] == [{"limits"}] * 3
        for info, expected in zip(vector.reset_infos, plain.reset_infos, strict=True):
            assert info["limits"] == pytest.approx(expected["limits"])
        actions = np.zeros(3, dtype=np.int64)
        for _ in range(len(vector.single.task.workload)):
            rewards = vector.step(actions)[1]
            np.testing.assert_allclose(rewards, plain.step(actions)[1], rtol=1e-6, atol=1e-7)
        set_before = [info["limits"] for info in plain.reset_infos]
        assert [info["limits"] for info in vector.reset_infos] != set_before  # new ones were drawn
        assert len({info["limits"]["latency_ms"] for info in vector.reset_infos}) == 3


def test_environments_without_an_option_keep_their_own_budget():
    vector = LayerWiseVecEnv(3, **OPTIONS)
    vector.reset()
    fixed = vector.reset_infos[0]["limits"]
    assert fixed == pytest.approx(dict(vector.single.task.limits))
    vector.set_options([{"budget": 0.8}, {}, {"budget": None}])
    vector.reset()
    limits = [info["limits"] for info in vector.reset_infos]
    assert limits[0]["latency_ms"] == pytest.approx(fixed["latency_ms"] * 1.6) and limits[1:] == [fixed, fixed]
    drawing = LayerWiseVecEnv(3, task="tabular/digits-cnn")
    drawing.set_options([{"budget": 0.8}, {}, {}])
    drawing.reset()
    assert len({info["limits"]["latency_ms"] for info in drawing.reset_infos}) == 3


def test_options_that_cannot_be_used_are_refused():
    vector = LayerWiseVecEnv(2, **OPTIONS)
    for options, error, message in (
        ({"nonsense": 1}, InputError, "unknown option 'nonsense'"),
        ([{"budget": 0.5}, {"budgets": 0.5}], InputError, "unknown option 'budgets'"),
        ([{"budget": 0.5}], InputError, "1 dictionaries for 2 environments"),
        ({"budget": 0.01}, BudgetError, "smallest reachable"),
        ({"budget": [0.5, 0.6]}, BudgetError, "budget"),
    ):
        vector.set_options(options)
        with pytest.raises(error, match=message):
            vector.reset()
    vector.set_options()
    vector.reset()


def test_attributes_are_read_as_callbacks_read_them():
    vector = LayerWiseVecEnv(3, task="tabular/digits-cnn")
    vector.set_options([{"budget": 0.35}, {"budget": 0.6}, {"budget": 1.0}])
    vector.reset()
    task = vector.single.task
    assert vector.env_method("get_wrapper_attr", "task") == vector.get_attr("task") == [task] * 3
    assert vector.env_method("get_wrapper_attr", name="gamma", indices=[0, 2]) == [1.0, 1.0]
    for _ in range(6):
        vector.step(np.full(3, 3))
    masks = [method() for method in vector.env_method("get_wrapper_attr", "action_masks")]
    np.testing.assert_array_equal(masks, vector.batch.masks())
    np.testing.assert_array_equal(vector.get_attr("action_masks", 2)[0](), vector.batch.masks()[2])
    assert not np.array_equal(masks[0], masks[2])
    assert vector.has_attr("task") and not vector.has_attr("nonsense") and not vector.has_attr("_limits")
    with pytest.raises(AttributeError, match="nonsense"):
        vector.env_method("get_wrapper_attr", "nonsense")
    with pytest.raises(AttributeError, match="no 'step' each"):
        vector.get_attr("step")


@pytest.mark.parametrize("device", [None, SharedBuffer()])
def test_rewards_of_whole_allocations_are_those_of_the_single_environment(device):
    """What a learner of a search is rewarded with, faults of the evaluator included."""
    task = formula_task(4, {"latency": 0.6}, device=device)
    task.evaluator.fail_on = {task.workload.uniform(2)}
    session = SearchSession(task, 100)
    vector = make_agent("dqn").environment(session, 3)
    single = LayerWiseEnv(formula_task(4, {"latency": 0.6}, device=device))
    rng = np.random.default_rng(0)
    for _ in range(10):
        vector.reset()
        actions = np.vstack([rng.integers(0, 3, (2, 4)), np.zeros((1, 4), dtype=np.int64)])
        actions[:2, 0] = 1
        totals = sum(vector.step(actions[:, layer])[1] for layer in range(4))
        for row in range(2):
            single.reset()
            total = sum(single.step(int(action))[1] for action in actions[row])
            assert totals[row] == pytest.approx(total, abs=1e-5)
        assert totals[2] == pytest.approx(FAULT_REWARD, abs=1e-5)
    assert session.failed(task.workload.uniform(2)) and all("2/2 2/2 2/2 2/2" in fault for fault in session.faults)
