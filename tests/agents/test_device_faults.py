"""A device that fails leaves a search running: truncated episodes, counted faults, an end after too many in a row."""

import gymnasium as gym
import numpy as np
import pytest
from small_task import all_choices, flaky_task

from amed_env import AmedError
from amed_env.agents import Agent, make_agent
from amed_env.envs import LAYER_WISE, ONE_SHOT
from amed_env.errors import BackendError
from amed_env.problem.objective import FAULT_REWARD


class Everything(Agent):
    """Evaluates all allocations in order and shrugs at faults."""

    def explore(self, session):
        for choices in all_choices(session.task):
            try:
                session.evaluate(session.task.allocation(choices))
            except BackendError:
                continue


@pytest.mark.parametrize("environment", [LAYER_WISE, ONE_SHOT])
def test_a_fault_truncates_the_episode_with_the_defined_reward(environment):
    task = flaky_task()
    env = gym.make(environment, task=task, budget={"latency": 0.9})
    task = env.unwrapped.task
    env.reset(seed=0)
    task.backend.fails = lambda call, allocation: True
    actions = [1, 0, 2] if environment == LAYER_WISE else [np.array([1, 0, 2])]
    for action in actions:
        _, reward, terminated, truncated, info = env.step(action)
    assert (terminated, truncated) == (False, True)
    assert reward == FAULT_REWARD
    assert "the board does not answer" in info["fault"]
    assert task.device_faults.count == 1 and task.device_faults.consecutive == 1
    task.backend.fails = lambda call, allocation: False
    env.reset()
    for action in actions:
        _, _, terminated, truncated, info = env.step(action)
    assert terminated and not truncated and "fault" not in info
    assert task.device_faults.consecutive == 0


def test_single_faults_are_counted_and_the_search_goes_on():
    task = flaky_task()
    broken = {task.allocation([0, 1, 2]), task.allocation([2, 2, 1])}
    task.backend.fails = lambda call, allocation: allocation in broken
    result = Everything().search(task, 27)
    assert len(result.trials) == 25 and len(result.faults) == 2 and not result.gave_up
    assert result.device_faults == 2 and result.device_retries == 0
    assert result.to_json()["device_faults"] == 2


def test_retries_are_counted_apart():
    task = flaky_task()
    task.backend.retries = 1
    task.backend.fails = lambda call, allocation: call % 2 == 1
    result = Everything().search(task, 27)
    assert len(result.trials) == 27 and not result.faults
    assert result.device_faults == 0 and result.device_retries == 27
    assert "0 calls of the device failed for good, 27 were made again" in task.device_faults.summary()


SEARCHERS = ("milp", "pairwise", "local", "annealing", "evolution", "tpe")


@pytest.mark.parametrize("agent", [Everything(), "greedy", "random", "uniform", *SEARCHERS])
def test_a_dead_device_ends_the_search_with_everything_kept(agent):
    task = flaky_task(budget={"latency": 0.6})
    alive = task.backend.calls + 5
    task.backend.fails = lambda call, allocation: call > alive
    result = make_agent(agent).search(task, 27, max_faults=4)
    assert not result.interrupted
    if agent in SEARCHERS:  # which ask for many costs at once
        assert task.backend.calls <= alive + 30
        return
    assert result.gave_up == (agent != "uniform")  # which asks for less
    assert task.device_faults.consecutive <= 4
    assert task.backend.calls <= alive + 4
    if not isinstance(agent, str):
        assert len(result.trials) == 6  # uniform 2 bit was known from the check of the budget


def test_a_learner_stops_on_a_dead_device():
    task = flaky_task(budget={"latency": 0.9})
    task.backend.fails = lambda call, allocation: True
    agent = make_agent("ppo", warm_start_steps=0, n_steps=6, batch_size=6)
    result = agent.search(task, 20, max_faults=5)
    assert result.gave_up and not result.trials and 5 <= task.device_faults.count <= 10


def test_an_agent_that_asks_a_dead_device_itself_ends_with_what_it_found():
    class Asks(Agent):
        def explore(self, session):
            session.evaluate(session.task.workload.uniform(8))
            session.task.backend.fails = lambda call, allocation: True
            session.task.cost(session.task.workload.uniform(4))

    result = Asks().search(flaky_task(), 5)
    assert result.gave_up and len(result.trials) == 1 and "does not answer" in result.faults[0]


@pytest.mark.parametrize("wrong", [0, -3, True, 1.5])
def test_the_number_of_faults_is_a_positive_whole_number(wrong):
    with pytest.raises(AmedError, match="max_faults"):
        Everything().search(flaky_task(), 3, max_faults=wrong)


def test_costs_of_a_slow_device_are_asked_for_once():
    task = flaky_task()
    before = task.backend.calls
    for _ in range(3):
        task.cost(task.allocation([0, 1, 2]))
    assert task.backend.calls == before + 1
