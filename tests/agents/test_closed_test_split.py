"""While an agent searches, the test split is closed to it, whatever it makes of its task; afterwards it is open."""

import pytest
from small_task import formula_task

from amed_env import make_agent
from amed_env.agents import Agent
from amed_env.errors import InputError
from amed_env.hardware import load_device


def reads_test(task):
    """Whether the test split can be asked for."""
    try:
        task.quality(task.uniform(4), "test")
    except InputError as error:
        assert "read by the final report only" in str(error)
        return False
    return True


class Curious(Agent):
    """Tries to read the test split by all that can be made of a task, before and after another agent's search."""

    def explore(self, session):
        task = session.task
        self.made = [task, task.with_budget({"latency": 0.9}), task.with_device(load_device("bops"))]
        self.made.append(task.with_pins({"first": 8}))
        self.before = [reads_test(made) for made in self.made]
        make_agent("greedy").search(task, 2)
        self.after = [reads_test(made) for made in self.made]
        session.evaluate(task.uniform(4))


class Fails(Agent):
    """Raises in the middle of its search."""

    def explore(self, session):
        raise ZeroDivisionError


def test_the_test_split_is_closed_during_a_search_and_open_after_it():
    task = formula_task(budget={"latency": 0.9})
    earlier = task.with_budget({"latency": 0.95})
    agent = Curious()
    agent.search(task, 3)
    assert agent.before == agent.after == [False] * 4
    assert all(reads_test(made) for made in [*agent.made, earlier])


def test_a_search_that_fails_leaves_the_test_split_open():
    task = formula_task()
    with pytest.raises(ZeroDivisionError):
        Fails().search(task, 3)
    assert reads_test(task)
