"""A worked custom agent: start from the predicted optimum, change one or two layers at a time, keep what helps.

amed search digits-cnn --agent agents.hill_climbing:HillClimbing --budget latency=0.5 --evaluations 100 --out runs/own
"""

from amed_env import Agent, SearchSession
from amed_env.tasks.repair import repair


class HillClimbing(Agent):
    """First-improvement hill climbing in the feasible region.

    Args:
        changes: Layers that one move changes at most.
    """

    description = "first-improvement hill climbing from the predicted optimum"

    def __init__(self, changes: int = 2) -> None:
        self.changes = changes

    def explore(self, session: SearchSession) -> None:
        """Climb until the evaluations are used up or the neighbourhood has nothing new."""
        task, rng = session.task, session.rng
        widest = task.space.uniform_choices(task.space.free_choices[-1])
        start = repair(task, widest, task.limits) if task.limits else widest
        if start is None:
            return
        current, best = start, session.evaluate(task.allocation(start))
        failures = 0
        while failures < 1_000:
            candidate = current.copy()
            layers = rng.choice(len(candidate), size=rng.integers(1, self.changes + 1), replace=False)
            candidate[layers] = rng.integers(len(task.precisions), size=len(layers))
            candidate = task.nearest_choosable(candidate)  # pinned layers stay as they are
            allocation = task.allocation(candidate)
            if session.knows(allocation) or not task.feasible(task.cost(allocation).metrics):
                failures += 1
                continue
            failures = 0
            trial = session.evaluate(allocation)
            if (trial.quality.accuracy, -trial.quality.loss) > (best.quality.accuracy, -best.quality.loss):
                current, best = candidate, trial
