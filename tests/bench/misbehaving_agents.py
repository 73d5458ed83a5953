"""Agents that misbehave."""

import copy
import os
import pickle

from amed_env import Agent


class Raises(Agent):
    """Evaluates twice, then breaks."""

    def explore(self, session):
        for choice in (0, 0, 1):
            session.evaluate(session.task.allocation(session.task.uniform_choices(choice)))
        raise ZeroDivisionError("no such luck")


class Peeks(Agent):
    """Asks the task itself, and evaluates what it saw there to be best."""

    def explore(self, session):
        task = session.task
        seen = [task.allocation([*row]) for row in session.rng.integers(0, 2, (30, len(task.workload)))]
        session.evaluate(max(seen, key=lambda allocation: task.measure(allocation).quality.accuracy))


class Exits(Agent):
    """Ends its process with the second seed."""

    def explore(self, session):
        if session.seed == 1:
            os._exit(3)
        session.evaluate(session.task.allocation(session.task.uniform_choices(0)))


class Quits(Agent):
    """Calls sys.exit."""

    def explore(self, session):
        raise SystemExit(4)


def _best_first(session, task):
    """Asks a task for everything that the session may evaluate, and tells the session the best of it first."""
    rows = session.rng.integers(0, 2, (200, len(task.workload)))
    drawn = list(dict.fromkeys(task.allocation([*row]) for row in rows))[: session.limit]
    seen = {allocation: task.quality(allocation) for allocation in drawn}
    for allocation in sorted(seen, key=lambda a: (-seen[a].accuracy, seen[a].loss)):
        session.evaluate(allocation)


class Reorders(Agent):
    """Evaluates what it looked at before, the best first."""

    def explore(self, session):
        _best_first(session, session.task)


class Copies(Agent):
    """The same with a deep copy of its task."""

    def explore(self, session):
        _best_first(session, copy.deepcopy(session.task))


class Rebudgets(Agent):
    """The same with its task within another budget."""

    def explore(self, session):
        _best_first(session, session.task.with_budget({"latency": 0.9}))


class Pickles(Agent):
    """The same with a pickled copy of its task's evaluator."""

    def explore(self, session):
        task = copy.copy(session.task)
        task.evaluator = pickle.loads(pickle.dumps(session.task.evaluator))
        _best_first(session, task)


class Late(Agent):
    """Asks for one more allocation than the session had, at the very end."""

    def explore(self, session):
        task = session.task
        for choice in (0, 1):
            session.evaluate(task.allocation(task.uniform_choices(choice)))
        task.quality(task.allocation(task.uniform_choices(2)))


class ReadsTest(Agent):
    """Reads the test split past the guard of its task."""

    def explore(self, session):
        task = session.task
        allocation = task.allocation(task.uniform_choices(0))
        session.evaluate(allocation)
        task.evaluator.evaluate(allocation, "test")
