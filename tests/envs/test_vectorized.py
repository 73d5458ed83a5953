"""Many environments at once are what each is alone, step by step."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from small_task import SharedBuffer, formula_task

import amed_env
from amed_env import make_task
from amed_env.agents.learners.vec_env import LayerWiseVecEnv
from amed_env.envs import LayerWiseEnv, LayerWiseVectorEnv
from amed_env.envs.batch import LayerWiseBatch
from amed_env.errors import BudgetError, InputError

ID = "AMED/LayerWise-v0"
COUNT = 7
VARIANTS = [
    {"budget": {"latency": 0.5}},
    {"budget": {"latency": 0.6, "memory": 0.5}, "reward": "terminal"},
    {"device": "mpic", "reward": "shaped", "gamma": 0.9, "budget": {"latency": 0.5}},
    {"reward": "predicted", "budget": {"energy": 0.6}},
    {"bits": (2, 8), "pin": {"first": 8, "depthwise": 3}, "budget": {"bops": 0.4}},
]


def compare(vector, singles, rng, episodes=3):
    """Step both with the same actions, forbidden ones among them, and compare everything."""
    for episode in range(episodes):
        for step in range(len(vector.task.workload)):
            masks = [env.action_masks() for env in singles]
            np.testing.assert_array_equal(vector.action_masks(), masks)
            actions = rng.integers(0, vector.single_action_space.n, COUNT)
            observations, rewards, terminated, truncated, info = vector.step(actions)
            answers = [env.step(int(action)) for env, action in zip(singles, actions, strict=True)]
            np.testing.assert_allclose(observations, [a[0] for a in answers], rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(rewards, [a[1] for a in answers], rtol=1e-9, atol=1e-12)
            assert terminated.tolist() == [a[2] for a in answers] and not truncated.any()
            last = step == len(vector.task.workload) - 1
            assert terminated.all() == last
            infos = [a[4] for a in answers]
            assert set(infos[0]) - {"allocation"} == {key for key in info if not key.startswith("_")}
            for key in set(infos[0]) - {"allocation", "costs"}:
                np.testing.assert_allclose(info[key], [i[key] for i in infos], rtol=1e-9, err_msg=key)
                assert info[f"_{key}"].all()
            if "costs" in infos[0]:
                for metric in infos[0]["costs"]:
                    np.testing.assert_allclose(info["costs"][metric], [i["costs"][metric] for i in infos])
                assert vector.task.allocation(info["choices"][2]) == infos[2]["allocation"]
        if episode == episodes - 1:
            return
        # Next-step autoreset: these actions are ignored.
        observations, rewards, terminated, truncated, info = vector.step(np.full(COUNT, 99))
        first = [env.reset()[0] for env in singles]
        np.testing.assert_allclose(observations, first, rtol=1e-6, atol=1e-7)
        assert not rewards.any() and not terminated.any() and not truncated.any()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_each_of_many_is_what_it_is_alone(options):
    vector = LayerWiseVectorEnv(COUNT, task="tabular/digits-cnn", **options)
    singles = [LayerWiseEnv("tabular/digits-cnn", **options) for _ in range(COUNT)]
    observations, info = vector.reset(seed=0)
    first = [env.reset()[0] for env in singles]
    np.testing.assert_allclose(observations, first, rtol=1e-6, atol=1e-7)
    for metric, limit in singles[0].task.limits.items():
        np.testing.assert_array_equal(info["limits"][metric], limit)
    compare(vector, singles, np.random.default_rng(5))


def test_practice_on_the_predicted_reward_needs_no_table():
    for device in (None, SharedBuffer()):
        task = formula_task(4, {"memory": 0.6}, device)
        vector = LayerWiseVectorEnv(COUNT, task=task, reward="predicted")
        singles = [LayerWiseEnv(task, reward="predicted") for _ in range(COUNT)]
        vector.reset(seed=0)
        for env in singles:
            env.reset()
        compare(vector, singles, np.random.default_rng(1))
    assert task.evaluator.asked == []


def test_budgets_that_contradict_each_other_are_repaired_likewise():
    """Two metrics with opposite cheapest widths: the mask cannot promise anything, and the repair is needed."""

    class Opposed(amed_env.HardwareBackend):
        name = "opposed"

        def layer_cost(self, layer, precision):
            return {"latency_ms": 10.0 - precision.weight_bits}

    task = amed_env.make_task("tabular/digits-cnn", device=Opposed(), budget={"latency": "36ms", "memory": 0.62})
    vector = LayerWiseVectorEnv(COUNT, task=task)
    singles = [LayerWiseEnv(task) for _ in range(COUNT)]
    vector.reset(seed=0)
    for env in singles:
        env.reset()
    compare(vector, singles, np.random.default_rng(3), episodes=4)
    rng, repaired = np.random.default_rng(0), 0
    vector.reset()
    for _ in range(20):
        for _ in range(8):
            *_, info = vector.step(rng.integers(0, 4, COUNT))
        repaired += info["repaired"].sum()
        assert info["feasible"].all()
        vector.step(np.zeros(COUNT, dtype=int))
    assert repaired > 0


def test_drawn_budgets_are_seeded_and_each_counts():
    vector = LayerWiseVectorEnv(COUNT, task="tabular/digits-cnn", budget_range={"latency": (0.35, 0.9)})
    env = LayerWiseEnv("tabular/digits-cnn", budget_range={"latency": (0.35, 0.9)})
    _, info = vector.reset(seed=11)
    drawn = seeding.np_random(11)[0].uniform(0.35, 0.9, COUNT)
    reference = env.task.reference_cost["latency_ms"]
    np.testing.assert_allclose(info["limits"]["latency_ms"], drawn * reference)
    assert not np.array_equal(vector.reset()[1]["limits"]["latency_ms"], info["limits"]["latency_ms"])
    np.testing.assert_array_equal(vector.reset(seed=11)[1]["limits"]["latency_ms"], info["limits"]["latency_ms"])
    singles = [LayerWiseEnv("tabular/digits-cnn", budget_range={"latency": (0.35, 0.9)}) for _ in range(COUNT)]
    observations, _ = vector.reset(options={"budget": drawn})
    first = [env.reset(options={"budget": float(factor)})[0] for env, factor in zip(singles, drawn, strict=True)]
    np.testing.assert_allclose(observations, first, rtol=1e-6, atol=1e-7)
    compare(vector, singles, np.random.default_rng(0), episodes=1)


def test_make_vec_gives_these_environments():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vector = gym.make_vec(ID, num_envs=3, task="tabular/digits-cnn", budget={"latency": 0.5})
    assert isinstance(vector, LayerWiseVectorEnv) and vector.spec.id == ID
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observations, _ = vector.reset(seed=0)
    assert vector.observation_space.contains(observations) and vector.num_envs == 3
    observations, rewards, *_ = vector.step(vector.action_space.sample())
    assert vector.observation_space.contains(observations) and rewards.shape == (3,)
    vector.close()


def test_make_vec_steps_other_tasks_one_after_the_other():
    task = formula_task(4, {"latency": 0.6})
    vector = gym.make_vec(ID, num_envs=3, task=task, reward="terminal")
    assert isinstance(vector, SyncVectorEnv)
    vector.reset(seed=0)
    for _ in range(4):
        *_, info = vector.step(np.array([0, 1, 0]))
    assert info["accuracy"].shape == (3,) and {env.task for env in vector.envs} == {task}


def test_what_is_measured_by_a_function_of_ones_own_is_stepped_one_after_the_other():
    task, asked = make_task("tabular/digits-cnn", budget={"latency": 0.5}), []

    def measure(allocation):
        asked.append(allocation)
        return task.measure(allocation)

    with pytest.raises(InputError, match="evaluated by `measure`"):
        LayerWiseVecEnv(3, task=task, measure=measure)
    environments = gym.make_vec("AMED/LayerWise-v0", num_envs=3, task=task, measure=measure)
    environments.reset(seed=0)
    for _ in range(8):
        environments.step(np.array([3, 0, 1]))
    assert len(asked) == 3


def test_everything_is_drawn_from_one_seed():
    def trace(seed):
        vector = LayerWiseVectorEnv(3, task="tabular/digits-cnn")
        rng = np.random.default_rng(0)
        found = [vector.reset(seed=seed)[0]]
        return np.array(found + [vector.step(rng.integers(0, 4, 3))[0] for _ in range(20)])

    np.testing.assert_array_equal(trace(1), trace(1))
    assert not np.array_equal(trace(1), trace(2))


def test_a_list_of_seeds_makes_one_generator():
    vector = gym.make_vec(ID, num_envs=4, task="tabular/digits-cnn")

    def drawn(seed):
        return vector.reset(seed=seed)[1]["limits"]["latency_ms"].tolist()

    first = drawn([1, 2, 3, 4])
    assert len(set(first)) == 4 and first == drawn([1, 2, 3, 4]) == drawn((1, 2, 3, 4)) == drawn(np.arange(1, 5))
    assert first not in (drawn([1, 2, 3, 5]), drawn([4, 3, 2, 1]), drawn(1))
    drawn(7)
    some = drawn([1, None, 3, None])
    assert some != drawn([1, None, 3, None])  # None goes on from the generator before
    drawn(7)
    assert some == drawn([1, None, 3, None])
    drawn(7)
    second = drawn(None)
    drawn(7)
    assert second == drawn([None] * 4)
    assert LayerWiseVectorEnv(1, task="tabular/digits-cnn").reset(seed=[0])[1]["limits"]["latency_ms"].shape == (1,)


def test_each_environment_is_asked_as_in_a_sync_vector_env():
    options = {"task": "tabular/digits-cnn", "budget_range": {"latency": (0.35, 1.0)}}
    vector = gym.make_vec(ID, num_envs=3, **options)
    plain = SyncVectorEnv([lambda: LayerWiseEnv(**options)] * 3)
    vector.reset(options={"budget": [0.35, 0.6, 1.0]})
    for env, factor in zip(plain.envs, (0.35, 0.6, 1.0), strict=True):
        env.reset(options={"budget": factor})
    for _ in range(6):
        vector.step(np.full(3, 3))
        for env in plain.envs:
            env.step(3)
    masks = vector.call("action_masks")
    assert isinstance(masks, tuple) and len({mask.tobytes() for mask in masks}) > 1
    np.testing.assert_array_equal(masks, plain.call("action_masks"))
    np.testing.assert_array_equal(vector.get_attr("action_masks"), masks)
    assert vector.get_attr("task") == vector.call("task") == (vector.task,) * 3
    assert vector.get_attr("ranges") == plain.get_attr("ranges") and vector.get_attr("gamma") == (1.0,) * 3
    assert vector.call("budgets_of", 0.5) == plain.call("budgets_of", 0.5)
    assert vector.get_attr("np_random") == (vector.np_random,) * 3
    for environments in (vector, plain):
        with pytest.raises(AttributeError, match="nonsense"):
            environments.get_attr("nonsense")
        with pytest.raises(AttributeError, match="nonsense"):
            environments.call("nonsense", 1)
    for name in ("step", "reset", "render", "_limits"):
        with pytest.raises(AttributeError, match=f"no '{name}' each"):
            vector.call(name)


def test_what_cannot_be_done_is_refused():
    with pytest.raises(InputError, match="evaluated, not looked up"):
        LayerWiseVectorEnv(2, task=formula_task())
    with pytest.raises(InputError, match="do not add up"):
        LayerWiseVectorEnv(2, task=amed_env.make_task("tabular/digits-cnn", device=SharedBuffer()))
    with pytest.raises(InputError, match="number of environments"):
        LayerWiseBatch(LayerWiseEnv("tabular/digits-cnn"), 0)
    vector = LayerWiseVectorEnv(2, task="tabular/digits-cnn")
    with pytest.raises(InputError, match="reset"):
        vector.step(np.zeros(2, dtype=int))
    with pytest.raises(InputError, match="unknown option 'budgets'"):
        vector.reset(options={"budgets": 0.5})
    with pytest.raises(InputError, match="3 seeds for 2 environments"):
        vector.reset(seed=[1, 2, 3])
    for seed in ([1, -2], [1, 0.5], [1, "2"]):
        with pytest.raises(InputError, match="whole number of at least 0"):
            vector.reset(seed=seed)
    with pytest.raises(BudgetError, match="3 budgets for 2"):
        vector.reset(options={"budget": [0.5, 0.6, 0.7]})
    with pytest.raises(BudgetError, match="smallest reachable"):
        vector.reset(options={"budget": [0.5, 0.01]})
    vector.reset()
    for actions in ([0, 4], [-1, 0], [0], [0.5, 1.0], [[0, 0], [0, 0]]):
        with pytest.raises(InputError, match="actions"):
            vector.step(actions)


def test_weights_and_activations_apart():
    task = formula_task(4, separate=True)
    vector = LayerWiseVectorEnv(3, task=task, reward="predicted", budget={"memory": 0.6})
    env = LayerWiseEnv(task, reward="predicted", budget={"memory": 0.6})
    vector.reset(seed=0)
    env.reset()
    for action in ([2, 0], [1, 1], [0, 2], [2, 2]):
        np.testing.assert_array_equal(vector.action_masks()[1], env.action_masks())
        observations, rewards, *_ = vector.step(np.array([[0, 0], action, [1, 0]]))
        observation, reward, *_ = env.step(action)
        np.testing.assert_allclose(observations[1], observation, rtol=1e-6, atol=1e-7)
        assert rewards[1] == pytest.approx(reward)
