"""Budgets on metrics that only one device has: masks, observations, rewards, vector environments, agents' walks."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from layerwise_devices import BoundedDataflow, Dataflow, DeclaringSets
from small_task import FormulaEvaluator

import amed_env
from amed_env import Task
from amed_env.agents import make_agent
from amed_env.agents.learners.vec_env import LayerWiseVecEnv
from amed_env.envs import LayerWiseEnv, OneShotEnv, RandomWalkEnv, VectorReward
from amed_env.envs.features import METRICS
from amed_env.errors import BudgetError, UnknownNameError
from amed_env.problem.objective import parse_budgets

SETS = [[(2, 2), (4, 4), (8, 8)], [(4, 8), (8, 8)], [(8, 8)], [(2, 2), (8, 8)]]


def luts_task(budget, device=None):
    device = DeclaringSets(SETS) if device is None else device
    return Task("formula", FormulaEvaluator(4), device, budgets=parse_budgets(budget))


@pytest.mark.parametrize("kind", [LayerWiseEnv, OneShotEnv, RandomWalkEnv])
def test_observations_have_a_place_for_it(kind):
    plain, limited = kind(luts_task(None)), kind(luts_task({"luts": 0.8}))
    assert plain.metrics == METRICS and limited.metrics == (*METRICS, "luts")
    assert limited.observation_space.shape > plain.observation_space.shape
    again = kind(luts_task({"latency": 0.8}))
    assert again.observation_space == plain.observation_space
    check_env(limited, skip_render_check=True)


def test_masks_keep_it():
    task = luts_task({"luts": 0.7})
    env = LayerWiseEnv(task)
    for seed in range(10):
        env.action_space.seed(seed)
        env.reset(seed=seed)
        done = False
        while not done:
            *_, done, _, info = env.step(env.action_space.sample())
        assert info["feasible"] and not info["repaired"]
        assert info["costs"]["luts"] <= task.limits["luts"] * (1 + 1e-9)
        assert info["reward_vector"].shape == (5,)


def test_budgets_are_drawn_from_a_range_of_it():
    task = luts_task(None)
    env = LayerWiseEnv(task, budget_range={"luts": (0.6, 0.9)})
    limits = {env.reset(seed=seed)[1]["limits"]["luts"] for seed in range(5)}
    reference = task.reference_cost["luts"]
    assert len(limits) == 5 and all(0.6 * reference <= limit <= 0.9 * reference for limit in limits)
    assert env.reset(options={"budget": {"luts": "450 LUT"}})[1]["limits"] == {"luts": 450.0}
    assert env.reset(options={"budget": 0.75})[1]["limits"] == {"luts": 0.75 * reference}
    vector = LayerWiseVecEnv(3, LayerWiseEnv(task, reward="predicted", budget_range={"luts": (0.6, 0.9)}))
    vector.seed(0)
    vector.reset()
    assert len({info["limits"]["luts"] for info in vector.reset_infos}) == 3
    vector.set_options({"budget": {"luts": 0.8}})
    vector.reset()
    assert vector.reset_infos[0]["limits"] == {"luts": pytest.approx(0.8 * reference)}


def test_a_reset_cannot_add_what_observations_have_no_place_for():
    env = LayerWiseEnv(luts_task({"latency": 0.9}))
    with pytest.raises(BudgetError, match="made without a budget on luts"):
        env.reset(options={"budget": {"luts": 0.8}})
    with pytest.raises(UnknownNameError, match="did you mean 'luts'"):
        env.reset(options={"budget": {"lutz": 0.8}})


@pytest.mark.parametrize("device", [Dataflow(), BoundedDataflow()])
def test_where_costs_do_not_add_up(device):
    task = luts_task({"luts": 0.6, "frame_time": 0.95}, device)
    for env in (LayerWiseEnv(task, reward="terminal"), OneShotEnv(task), VectorReward(LayerWiseEnv(task))):
        env.action_space.seed(0)
        for seed in range(5):
            env.reset(seed=seed)
            done = False
            while not done:
                *_, done, _, info = env.step(env.action_space.sample())
            assert info["feasible"]
            assert info["costs"]["frame_time"] <= task.limits["frame_time"] * (1 + 1e-9)
    # One that knows what look-up tables add up to masks what no other layer could make up for.
    tight = luts_task({"luts": 0.35}, device)
    forbidden = ~LayerWiseEnv(tight).action_masks() & tight.choosable[0]
    assert forbidden.any() == isinstance(device, BoundedDataflow)


def test_the_walk_of_amed_never_exceeds_it():
    task = luts_task({"luts": 0.7})
    result = make_agent("amed").search(task, 15, 0)
    assert result.trials and all(task.feasible(trial.costs) for trial in result.trials)
    assert result.pareto_metric == "luts"


def test_a_budget_beyond_reach_is_refused_with_what_is_reachable():
    with pytest.raises(BudgetError, match=r"no allocation meets luts=0.1 on 'sets': the smallest reachable luts is 3"):
        luts_task({"luts": 0.1})
    task = amed_env.make_task("tabular/digits-cnn", device="eyeriss-ws", budget={"cycles": 1.0, "compute_cycles": 1.0})
    assert set(task.limits) == {"cycles", "compute_cycles"}
    assert np.isfinite(list(task.limits.values())).all()
