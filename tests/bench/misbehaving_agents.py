"""Agents that misbehave."""

import os

from amed_env import Agent


class Raises(Agent):
    """Evaluates twice, then breaks."""

    def explore(self, session):
        for choice in (0, 0, 1):
            session.evaluate(session.task.allocation(session.task.space.uniform_choices(choice)))
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
        session.evaluate(session.task.allocation(session.task.space.uniform_choices(0)))


class Quits(Agent):
    """Calls sys.exit."""

    def explore(self, session):
        raise SystemExit(4)


class Late(Agent):
    """Asks for one more allocation than the session had, at the very end."""

    def explore(self, session):
        task = session.task
        for choice in (0, 1):
            session.evaluate(task.allocation(task.space.uniform_choices(choice)))
        task.quality(task.allocation(task.space.uniform_choices(2)))


class Unlimited(Agent):
    """Gives itself more evaluations."""

    def explore(self, session):
        session.limit = 10**9
        for row in session.rng.integers(0, 2, (60, len(session.task.workload))):
            session.evaluate(session.task.allocation(row))


class Panics(Agent):
    """Raises what is no Exception, as extensions in other languages do, with an address."""

    def explore(self, session):
        class Panic(BaseException):
            pass

        session.evaluate(session.task.allocation(session.task.space.uniform_choices(0)))
        raise Panic(f"of {object()!r}\nin two lines")


class QuitsAtOnce(Agent):
    """Cannot be made."""

    def __init__(self):
        raise SystemExit(0)

    def explore(self, session):
        pass


class SawNothing(QuitsAtOnce):
    """Says what it saw in no list of texts."""

    saw = None

    def __init__(self):
        pass


class SawText(SawNothing):
    """The same."""

    saw = "the held-out cells"


class Describes(SawNothing):
    """Has a number for a description."""

    saw, description = (), 5


class OfNoFamily(SawNothing):
    """The same."""

    saw, family = (), "rl"
