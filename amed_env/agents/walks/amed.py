"""`amed`: AMED's random walk over allocations, led by a table of scores; without training in between.

Kimhi, Rozen, Mendelson, Baskin: AMED, arXiv 2205.15437. The state is a whole allocation. A table S has a score for each
precision of each layer; a Metropolis-Hastings walk, whose stationary law is softmax(S / T), moves on; the quality score
ζ of where it arrives is compared with a moving reference, and the cells of that allocation learn from it.
"""

from __future__ import annotations

from typing import Any

from amed_env.agents.options import parse_agent_options
from amed_env.agents.protocol import Agent
from amed_env.agents.session import SearchSession
from amed_env.agents.walks.metropolis import ScoreTable
from amed_env.agents.walks.options import AmedOptions
from amed_env.agents.walks.walk import AllocationWalk
from amed_env.errors import AgentError
from amed_env.problem.objective import REFERENCE_BITS
from amed_env.tasks.task import Task


class AmedAgent(Agent):
    """AMED's walk: starts at uniform 8 bit and enters only what is within the budgets.

    Args:
        **options: See `AmedOptions`.

    Attributes:
        options: The options.
        scores: The table of the last search, None before the first.

    Raises:
        UnknownNameError: If an option is unknown.
        AgentError: If a value is of the wrong type or out of range.
    """

    name = "amed"
    saw = (
        "kws-dscnn on bops latency=0.4, edge-tpu-like memory=0.55, systolic-32 energy=0.7",
        "digits-cnn on bops latency=0.55, edge-tpu-like memory=0.7, systolic-32 energy=0.4",
    )

    def __init__(self, **options: Any) -> None:
        self.options = parse_agent_options(self.name, AmedOptions, options)
        self.scores: ScoreTable | None = None

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`.

        Raises:
            AgentError: If `pin_ends` is set and the task has no 8 bit.
            BudgetError: If the pinned ends leave the budgets out of reach.
        """
        task = walk_task(self.name, session.task, self.options)
        walk = AllocationWalk(session, task, self.options)
        self.scores = walk.scores
        walk.run()


def walk_task(agent: str, task: Task, options: AmedOptions) -> Task:
    """The task to walk on: the given one, with its ends at 8 bits if the options say so.

    Raises:
        AgentError: If `pin_ends` is set and the task has no 8 bit.
        BudgetError: If the pinned ends leave the budgets out of reach.
    """
    if not options.pin_ends:
        return task
    if REFERENCE_BITS not in task.free_bits:
        raise AgentError(
            f"agent {agent!r}: pin_ends keeps the first and the last layer at {REFERENCE_BITS} bits, but this task "
            f"chooses from {', '.join(map(str, task.free_bits))}; add {REFERENCE_BITS}, or leave pin_ends out."
        )
    names = task.workload.layer_names
    pins = {**dict.fromkeys((names[0], names[-1]), REFERENCE_BITS), **task.pins}
    return task.with_pins(pins)
