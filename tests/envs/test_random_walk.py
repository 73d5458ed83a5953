"""`AMED/RandomWalk-v0`: contract, rewards, masks, faults."""

import itertools
import math

import numpy as np
import pytest
from small_task import SharedBuffer, all_choices, formula_task

import amed_env  # noqa: F401 - registers the environments
from amed_env import Trial
from amed_env.envs import RandomWalkEnv
from amed_env.errors import AllocationError, BudgetError, InputError
from amed_env.problem.objective import FAULT_REWARD

ID = "AMED/RandomWalk-v0"


def test_starts_at_uniform_eight_bit_and_a_move_changes_one_layer():
    env = RandomWalkEnv(formula_task(4), moves=3)
    env.reset(options={"budget": 1.0})
    _, _, terminated, truncated, info = env.step(2 * 3 + 1)  # layer 2 to 4 bits
    assert info["allocation"].key() == "8/8 8/8 4/4 8/8" and info["choices"] == (2, 2, 1, 2)
    assert (terminated, truncated) == (False, False) and info["action_taken"] == 7 and not info["action_clamped"]
    assert info["allocation"] == env.step(2 * 3 + 1)[4]["allocation"]  # to set what is set already is to stay
    assert env.step(0)[2]
    with pytest.raises(InputError, match="reset"):
        env.step(0)


def test_rewards_are_changes_of_the_quality_score_worked_out_by_hand():
    task = formula_task(3, harms=[0.4, 0.8, 0.2])
    env = RandomWalkEnv(task, quality={"loss_weight": 2.0, "latency_weight": 0.5})
    env.reset(options={"budget": 1.0})
    _, reward, _, _, info = env.step(1 * 3 + 0)  # layer 1 to 2 bits
    macs = np.array([layer.macs for layer in task.workload])
    ratio = float((macs * [8, 2, 8]).sum() / (macs * 8).sum())
    before = 2.0 * (0.1 + (0.4 + 0.8 + 0.2) / 256) + 0.5
    after = 2.0 * (0.1 + (0.4 + 0.2) / 256 + 0.8 / 4) + 0.5 * ratio
    assert info["zeta"] == pytest.approx(after, abs=2e-4)
    assert reward == pytest.approx(math.log10(before / after), abs=2e-4)


def test_the_penalty_grows_as_accuracy_falls_below_the_threshold():
    task = formula_task(3)
    plain, strict = (RandomWalkEnv(task, quality={"accuracy_threshold": t}) for t in (None, 0.9))
    ratios = []
    for moves in ([2], [5, 2], [0], [0, 3], [0, 3, 6]):
        zetas = []
        for env in (plain, strict):
            env.reset(options={"budget": 1.0})
            for action in moves:
                info = env.step(action)[4]
            zetas.append(info["zeta"])
        ratios.append((info["accuracy"], zetas[1] / zetas[0]))
    for accuracy, ratio in ratios:
        assert ratio == pytest.approx(1 + 100 * max(0.0, 0.9 - accuracy))
    assert ratios[-1][1] > ratios[-2][1] > 1.0 == ratios[0][1]


def test_an_episode_returns_the_score_of_its_end_less_that_of_its_start():
    task = formula_task(3)
    env = RandomWalkEnv(task, reward="score", moves=5)
    env.reset(options={"budget": 1.0})
    rewards, infos = [], []
    for action in (0, 4, 6, 1, 5):
        *_, info = step = env.step(action)
        rewards.append(step[1])
        infos.append(info)
    errors = [1 - task.quality(a).accuracy for a in (task.workload.uniform(8), infos[-1]["allocation"])]
    assert sum(rewards) == pytest.approx(math.log((errors[0] + 0.01) / (errors[1] + 0.01)))
    assert infos[-1]["allocation"].key() == "4/4 8/8 2/2"


def test_masks_allow_exactly_the_moves_within_the_budget():
    task = formula_task(3, {"latency": 0.5})
    env = RandomWalkEnv(task)
    table, limit = task.costs["latency_ms"], task.limits["latency_ms"] * (1 + 1e-9)
    within = [c for c in all_choices(task) if table[np.arange(3), c].sum() <= limit]
    assert 0 < len(within) < 27
    for choices in within:
        env.reset(options={"start": task.allocation(choices)})
        masks = env.action_masks().reshape(3, 3)
        for layer in range(3):
            for choice in range(3):
                after = choices.copy()
                after[layer] = choice
                assert masks[layer, choice] == (table[np.arange(3), after].sum() <= limit)


def test_above_the_budget_only_what_lowers_the_violation_is_allowed_until_it_holds():
    task = formula_task(4, {"latency": 0.4})
    env = RandomWalkEnv(task, moves=30)
    env.reset(seed=0)
    rng, latency, feasible = np.random.default_rng(0), [math.inf], []
    terminated = False
    while not terminated:
        _, _, terminated, _, info = env.step(int(rng.choice(np.flatnonzero(env.action_masks()))))
        latency.append(info["costs"]["latency_ms"])
        feasible.append(info["feasible"])
    first = feasible.index(True)
    assert first > 0 and all(feasible[first:])
    assert all(a > b for a, b in itertools.pairwise(latency[: first + 2]))


def test_forbidden_moves_become_the_nearest_allowed_one_and_say_so():
    task = formula_task(3, {"latency": 0.3})
    env = RandomWalkEnv(task)
    env.reset(options={"start": task.workload.uniform(2)})
    info = env.step(2)[4]  # layer 0 to 8 bits does not fit
    assert info["action_clamped"] and info["feasible"]
    allowed = [a for a in range(3) if env.action_masks()[a]]
    assert info["action_taken"] in allowed


def test_pinned_layers_never_move():
    env = RandomWalkEnv("tabular/digits-cnn", pin={"first": 8, "last": 3})
    observation, _ = env.reset(seed=0)
    assert env.action_masks().reshape(8, 4)[[0, 7]].sum() <= 2 and observation.min() >= 0
    for action in (0, 7 * 4, 7 * 4 + 3):
        env.step(action)
    allocation = env.task.allocation(env._choices)
    assert allocation["stem"].weight_bits == 8 and allocation["classifier"].weight_bits == 3


def test_what_exceeds_a_budget_of_costs_that_do_not_add_up_costs_reward():
    env = RandomWalkEnv(formula_task(3, {"latency": 0.5}, device=SharedBuffer()), reward="score")
    env.reset()
    rewards = [env.step(layer * 3 + 1) for layer in range(3)]  # every layer to 4 bits: the last one halves the latency
    assert [step[4]["feasible"] for step in rewards] == [False, False, True]
    assert rewards[0][1] < 0 and rewards[2][1] == pytest.approx(
        5.0 + rewards[2][4]["score"] - (rewards[1][4]["score"] + 5.0)
    )


def test_equal_seeds_give_equal_walks_and_others_other_budgets():
    def trace(seed):
        env = RandomWalkEnv(formula_task())
        observation, info = env.reset(seed=seed)
        steps = [env.step(action)[:2] for action in (0, 5, 7, 2)]
        return info["limits"], observation.tolist(), [(o.tolist(), r) for o, r in steps]

    assert trace(1) == trace(1)
    assert trace(1)[0] != trace(2)[0]


def test_faults_truncate_with_a_defined_reward():
    task = formula_task(3)
    task.evaluator.fail_on = {task.allocation([0, 2, 2])}
    env = RandomWalkEnv(task)
    env.reset(options={"budget": 1.0})
    observation, reward, terminated, truncated, info = env.step(0)
    assert (reward, terminated, truncated) == (FAULT_REWARD, False, True) and "NaN" in info["fault"]
    assert env.observation_space.contains(observation)
    with pytest.raises(InputError, match="reset"):
        env.step(0)


def test_a_fault_at_the_start_truncates_the_first_step():
    task = formula_task(3)
    task.evaluator.fail_on = {task.workload.uniform(8)}
    env = RandomWalkEnv(task)
    observation, _ = env.reset(options={"budget": 1.0})
    assert env.observation_space.contains(observation)
    _, reward, terminated, truncated, info = env.step(0)
    assert (reward, terminated, truncated) == (FAULT_REWARD, False, True) and "NaN" in info["fault"]


def test_wrong_arguments_and_options_are_refused():
    task = formula_task(3)
    for options, message in (
        ({"reward": "profit"}, "reward"),
        ({"moves": 0}, "moves"),
        ({"moves": True}, "moves"),
        ({"quality": {"los_weight": 1}}, "loss_weight"),
        ({"quality": {"loss_weight": -1}}, "loss_weight"),
        ({"render_mode": "human"}, "render_mode"),
    ):
        with pytest.raises(InputError, match=message):
            RandomWalkEnv(task, **options)
    env = RandomWalkEnv(task)
    for options, error in (
        ({"speed": 3}, InputError),
        ({"start": [0, 0, 0]}, InputError),
        ({"start": task.workload.uniform(3)}, AllocationError),
        ({"budget": 0.01}, BudgetError),
    ):
        with pytest.raises(error):
            env.reset(options=options)
    env.reset()
    for action in (-1, 9, 0.5, None, True, [0]):
        with pytest.raises(InputError, match="not in"):
            env.step(action)


def test_an_allocation_is_measured_once_and_by_what_is_given():
    asked = []
    task = formula_task(3)

    def measure(allocation) -> Trial:
        asked.append(allocation.key())
        return task.measure(allocation)

    env = RandomWalkEnv(task, measure=measure)
    env.reset(options={"budget": 1.0})
    env.step(0)
    assert asked == ["8/8 8/8 8/8", "2/2 8/8 8/8"]


def test_rendering_tells_every_layer():
    env = RandomWalkEnv(formula_task(2), render_mode="ansi")
    env.reset(options={"budget": 1.0})
    assert env.render() == "layer0: w8a8\nlayer1: w8a8"
    assert RandomWalkEnv(formula_task(2)).render() is None
