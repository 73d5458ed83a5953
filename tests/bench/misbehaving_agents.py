"""Agents that misbehave."""

import os

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
