"""`amed agents`: learners and searchers, and how far from the optimum the leaderboard saw them."""

from __future__ import annotations

from amed_env.agents.built_in import list_agents
from amed_env.agents.measured import measured_regret
from amed_env.commands.listing import Row, show_rows
from amed_env.commands.options import JsonOption
from amed_env.commands.output import Output


def agents(as_json: JsonOption = False) -> None:
    """List the agents: learners and searchers, shipped and of plug-ins.

    [b]Example:[/b] amed agents
    """
    with Output(as_json) as output:
        show_rows(output, "agents", agent_rows())
        measured = measured_regret()
        if measured is not None:
            output.note(measured.conditions)


def agent_rows() -> list[Row]:
    """Every agent with `name`, `family`, `regret` or None, `needs`, `description`, `source`, and `problem` or None."""
    measured = measured_regret()
    regrets = {} if measured is None else measured.agents
    return [
        {
            "name": i.name,
            "family": i.family,
            "regret": regrets[i.name][0] if i.name in regrets else None,
            "needs": i.needs,
            "description": i.description,
            "source": i.source,
            "problem": i.error,
        }
        for i in list_agents().values()
    ]
