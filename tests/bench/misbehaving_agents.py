"""Agents that misbehave."""

import copy
import os
import pickle
import typing

from amed_env import Agent, BitAllocation


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
            session.evaluate(task.allocation(task.space.uniform_choices(choice)))
        task.quality(task.allocation(task.space.uniform_choices(2)))


class ReadsTest(Agent):
    """Reads the test split past the guard of its task."""

    def explore(self, session):
        task = session.task
        allocation = task.allocation(task.space.uniform_choices(0))
        session.evaluate(allocation)
        task.evaluator.evaluate(allocation, "test")


class OwnSearch(Agent):
    """Is run in a way of its own, in which nobody counts."""

    def search(self, task, evaluations, seed=0, **options):
        return Agent.search(self, task, 10 * evaluations, seed, **options)

    def explore(self, session):
        session.evaluate(session.task.allocation(session.task.space.uniform_choices(0)))


class Unlimited(Agent):
    """Gives itself more evaluations."""

    def explore(self, session):
        session.limit = 10**9
        for row in session.rng.integers(0, 2, (60, len(session.task.workload))):
            session.evaluate(session.task.allocation(row))


class Sneaky(BitAllocation):
    """Says that it is the one that was evaluated first."""

    first = None

    def __hash__(self):
        return hash(Sneaky.first)

    def __eq__(self, other):
        return True


class Disguises(Agent):
    """Asks for others as if they were known."""

    def explore(self, session):
        task = session.task
        Sneaky.first = task.allocation(task.space.uniform_choices(0))
        session.evaluate(Sneaky.first)
        for row in session.rng.integers(0, 2, (30, len(task.workload))):
            task.quality(Sneaky(dict(task.allocation(row))))


class Remembers(Agent):
    """Starts with the best that earlier runs of its process found, and draws what they did not."""

    known: typing.ClassVar = {}

    def explore(self, session):
        task, known = session.task, Remembers.known
        for allocation in sorted(known, key=known.get, reverse=True)[:1]:
            if session.feasible(allocation):
                session.evaluate(allocation)
        while True:
            allocation = task.allocation(session.rng.integers(0, 4, len(task.workload)))
            if session.feasible(allocation) and allocation not in known:
                known[allocation] = session.evaluate(allocation).quality.correct


class Normalises(Agent):
    """Works in place on arrays of its task."""

    def explore(self, session):
        losses = session.task.predicted_loss
        losses -= losses.mean()


class Doubles(Agent):
    """Changes its limits."""

    def explore(self, session):
        for metric in session.task.limits:
            session.task.limits[metric] *= 2
        for choice in range(4):
            session.evaluate(session.task.allocation(session.task.space.uniform_choices(choice)))


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
