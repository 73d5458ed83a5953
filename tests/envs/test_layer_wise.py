"""`AMED/LayerWise-v0`: contract, rewards, masks, budgets and faults."""

import math

import gymnasium as gym
import numpy as np
import pytest
from small_task import SharedBuffer, all_choices, formula_task
from stable_baselines3.common.vec_env import SubprocVecEnv
from warm import warm_context

import amed_env
from amed_env.envs import LayerWiseEnv, VectorReward
from amed_env.envs.base import REWARD_VECTOR
from amed_env.errors import BudgetError, InputError, UnknownNameError

ID = "AMED/LayerWise-v0"


def play(env, choices, **reset):
    """Rewards and last info of an episode with these actions."""
    observation, _ = env.reset(**reset)
    rewards, observations, info, terminated, truncated = [], [observation], {}, False, False
    for action in choices:
        assert not terminated and not truncated
        observation, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        observations.append(observation)
    return rewards, info, np.array(observations), (terminated, truncated)


def test_equal_seeds_give_equal_episodes_and_others_other_budgets():
    def trace(seed):
        env = LayerWiseEnv(formula_task())
        env.action_space.seed(3)
        actions = [env.action_space.sample() for _ in range(4)]
        rewards, info, observations, _ = play(env, actions, seed=seed)
        return rewards, info["costs"], observations.tolist()

    assert trace(1) == trace(1)
    assert trace(1)[2] != trace(2)[2]


def test_an_episode_visits_every_layer_once_and_reports_what_it_did():
    task = formula_task()
    _, info, observations, ended = play(LayerWiseEnv(task), [2, 1, 0, 2], options={"budget": 1.0})
    assert ended == (True, False)
    assert [p.weight_bits for p in info["allocation"].values()] == [8, 4, 2, 8]
    by_hand = sum(layer.macs * bits * 1e-6 for layer, bits in zip(task.workload, [8, 4, 2, 8], strict=True))
    assert info["costs"]["latency_ms"] == pytest.approx(by_hand)
    weights = sum(layer.weight_elements * bits / 8192 for layer, bits in zip(task.workload, [8, 4, 2, 8], strict=True))
    assert info["costs"]["weight_kib"] == pytest.approx(weights)
    assert info["feasible"] and not info["repaired"] and "TimeLimit.truncated" not in info
    assert len(observations) == 5 and observations.dtype == np.float32


def test_the_return_orders_allocations_by_accuracy_and_shaping_does_not_change_it():
    task = formula_task(3)
    shaped, terminal = (LayerWiseEnv(task, reward=kind) for kind in ("shaped", "terminal"))
    float_error = 1 - task.float_quality.accuracy
    for choices in all_choices(task):
        with_shaping, info, _, _ = play(shaped, choices, options={"budget": 1.0})
        without, _, _, _ = play(terminal, choices, options={"budget": 1.0})
        expected = math.log((float_error + 0.01) / (1 - info["accuracy"] + 0.01))
        assert sum(without) == pytest.approx(expected) and without[:-1] == [0.0, 0.0]
        assert sum(with_shaping) == pytest.approx(expected)


def test_shaping_with_a_discount_leaves_the_discounted_return_unchanged():
    task, gamma = formula_task(3), 0.9
    shaped, terminal = (LayerWiseEnv(task, reward=kind, gamma=gamma) for kind in ("shaped", "terminal"))
    for choices in all_choices(task)[::5]:
        values = [
            sum(gamma**t * r for t, r in enumerate(play(env, choices, options={"budget": 1.0})[0]))
            for env in (shaped, terminal)
        ]
        assert values[0] == pytest.approx(values[1])


def test_predicted_rewards_never_evaluate_the_network():
    task = formula_task()
    play(LayerWiseEnv(task, reward="predicted"), [0, 1, 2, 2], options={"budget": 1.0})
    assert task.evaluator.asked == []


def test_an_allocation_is_evaluated_once():
    task = formula_task()
    env = LayerWiseEnv(task)
    for _ in range(3):
        play(env, [2, 2, 2, 2], options={"budget": 1.0})
    assert len([a for a, _ in task.evaluator.asked if next(iter(a.values())).weight_bits == 8]) == 1
    assert {split for _, split in task.evaluator.asked} == {"search"}


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.77, 1.0])
def test_masks_allow_exactly_what_leaves_the_budget_reachable(budget):
    task = formula_task(4, {"latency": budget})
    env = LayerWiseEnv(task)
    table, limit = task.costs["latency_ms"], task.limits["latency_ms"] * (1 + 1e-9)
    every = all_choices(task)
    feasible = every[table[np.arange(4), every].sum(axis=1) <= limit]
    assert len(feasible)

    def walk(prefix):
        env.reset()
        for action in prefix:
            env.step(action)
        possible = {int(row[len(prefix)]) for row in feasible if list(row[: len(prefix)]) == prefix}
        assert set(np.flatnonzero(env.action_masks())) == possible
        if len(prefix) < 3:
            for action in possible:
                walk([*prefix, action])

    walk([])


def test_every_masked_episode_meets_several_budgets_at_once():
    env = gym.make(ID, task="digits-cnn", budget={"latency": 0.45, "memory": 0.45, "energy": 0.4}).unwrapped
    generator = np.random.default_rng(0)
    for _ in range(20):
        env.reset()
        terminated = False
        while not terminated:
            _, _, terminated, _, info = env.step(generator.choice(np.flatnonzero(env.action_masks())))
        assert info["feasible"] and not info["action_clamped"]


def test_a_forbidden_action_becomes_the_nearest_allowed_one():
    env = LayerWiseEnv(formula_task(4, {"latency": 0.25}))  # 2 bits everywhere is the only way
    _, info, _, _ = play(env, [2, 2, 2, 2])
    assert info["action_clamped"] and info["action_taken"] == 0 and info["feasible"]
    env = LayerWiseEnv(formula_task(4, {"latency": 0.5}))
    env.reset()
    for _ in range(4):
        mask = env.action_masks()
        *_, info = env.step(2)
        assert info["action_clamped"] == (not mask[2])
        assert info["action_taken"] == max(np.flatnonzero(mask))


def test_nothing_of_the_last_episode_is_seen_in_the_next():
    env = LayerWiseEnv(formula_task(4, {"latency": 0.8}))
    first = play(env, [0, 0, 0, 0])[2][0]
    play(env, [2, 1, 0, 1])
    assert np.array_equal(first, env.reset()[0])


def test_the_budget_comes_from_reset_then_from_the_environment_then_by_chance():
    fixed = LayerWiseEnv(formula_task(4, {"latency": 0.5}))
    eight_bit = fixed.task.reference_cost["latency_ms"]
    assert fixed.reset()[1]["limits"]["latency_ms"] == pytest.approx(0.5 * eight_bit)
    assert fixed.reset(options={"budget": 0.75})[1]["limits"]["latency_ms"] == pytest.approx(0.75 * eight_bit)
    assert fixed.reset(options={"budget": {"memory": "0.5KiB"}})[1]["limits"] == {"weight_kib": 0.5}
    assert fixed.reset()[1]["limits"]["latency_ms"] == pytest.approx(0.5 * eight_bit)
    drawn = LayerWiseEnv(formula_task(), budget_range={"latency": (0.4, 0.6)})
    ratios = [drawn.reset(seed=seed)[1]["limits"]["latency_ms"] / eight_bit for seed in range(30)]
    assert min(ratios) >= 0.4 and max(ratios) <= 0.6 and np.ptp(ratios) > 0.1


def test_the_budget_is_visible_in_the_observation():
    env = LayerWiseEnv(formula_task())
    loose, tight = (env.reset(options={"budget": value})[0] for value in (0.9, 0.4))
    assert not np.array_equal(loose, tight)


def test_a_number_needs_a_budget_that_it_is_a_value_of():
    env = LayerWiseEnv(formula_task(3), budget_range={})
    with pytest.raises(BudgetError, match="no budget that"):
        env.reset(options={"budget": 0.5})
    env.reset(options={"budget": {"latency": 0.5}})


def test_unreachable_budgets_and_wrong_arguments_are_refused():
    env = LayerWiseEnv(formula_task())
    with pytest.raises(BudgetError, match=r"smallest reachable latency_ms.*latency=0\.25"):
        env.reset(options={"budget": 0.2})
    with pytest.raises(InputError, match="'budgets'"):
        env.reset(options={"budgets": 0.5})
    with pytest.raises(UnknownNameError, match="digits-cnn"):
        gym.make(ID, task="digit-cnn")
    with pytest.raises(InputError, match="terminal"):
        LayerWiseEnv(formula_task(), reward="sparse")
    with pytest.raises(BudgetError, match="not both"):
        LayerWiseEnv(formula_task(budget={"latency": 0.5}), budget_range={"latency": (0.3, 0.5)})
    for action in (3, -1, "two", None, 1.5):
        env.reset()
        with pytest.raises(InputError, match="not in"):
            env.step(action)
    play(env, [2, 2, 2, 2], options={"budget": 1.0})
    with pytest.raises(InputError, match="reset"):
        env.step(0)


def test_costs_that_do_not_add_up_are_repaired_at_the_end():
    task = formula_task(4, {"latency": 0.5}, device=SharedBuffer())
    env = LayerWiseEnv(task)
    _, info, _, _ = play(env, [2, 1, 1, 0])
    assert info["repaired"] and info["feasible"]
    assert [p.weight_bits for p in info["allocation"].values()] == [4, 4, 4, 2]
    assert [p.weight_bits for p in task.allocation(info["choices"]).values()] == [4, 4, 4, 2]
    assert not play(env, [1, 1, 1, 0])[1]["repaired"]


def test_weights_and_activations_can_be_chosen_apart():
    task = formula_task(4, {"latency": 0.5}, separate=True)
    env = LayerWiseEnv(task)
    assert env.action_space == gym.spaces.MultiDiscrete([3, 3])
    assert env.action_masks().shape == (6,)
    _, info, _, _ = play(env, [(0, 2), (1, 1), (0, 0), (1, 2)])
    assert [tuple(p) for p in info["allocation"].values()] == [(2, 8), (4, 4), (2, 2), (4, 8)]


def make_digits():
    return gym.make(ID, task="digits-cnn", device="bitfusion", budget={"latency": 0.5})


def test_runs_in_subprocesses_with_masks():
    environments = SubprocVecEnv([make_digits, make_digits], start_method=warm_context().get_start_method())
    try:
        environments.seed(0)
        environments.reset()
        for _ in range(8):
            masks = np.stack(environments.env_method("action_masks"))
            assert masks.shape == (2, 4) and masks.any(axis=1).all()
            _, rewards, dones, infos = environments.step(masks.argmax(axis=1))
        assert dones.all() and infos[0]["accuracy"] == infos[1]["accuracy"] and rewards[0] == rewards[1]
    finally:
        environments.close()


def test_vector_reward_wrapper():
    env = VectorReward(LayerWiseEnv(formula_task(budget={"latency": 0.5})))
    rewards, info, _, _ = play(env, [1, 1, 1, 1])
    assert all(env.reward_space.contains(reward) for reward in rewards)
    assert not rewards[0].any()
    last = dict(zip(REWARD_VECTOR, rewards[-1], strict=True))
    assert last["score"] == pytest.approx(info["accuracy"])
    assert last["latency"] == pytest.approx(-0.5) and last["memory"] == pytest.approx(-0.5)


def test_accuracy_in_the_info_is_the_true_one_of_digits():
    env = make_digits()
    _, info, _, _ = play(env, [2] * 8)
    task = amed_env.make_task("digits-cnn")
    assert info["accuracy"] == task.quality(task.workload.uniform(4)).accuracy
    assert info["allocation"] == task.workload.uniform(4)
