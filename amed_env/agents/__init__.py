"""Agents: the protocol, the registry, and the adapters.

What brings devices and tasks with it is imported when it is asked for, so that `amed agents` comes at once.
"""

from typing import TYPE_CHECKING

from amed_env.agents.built_in import AgentInfo, agent_names, list_agents
from amed_env.support.lazy import lazy_names

if TYPE_CHECKING:
    from amed_env.agents.protocol import Agent
    from amed_env.agents.registry import make_agent, register_agent
    from amed_env.agents.result import SearchResult
    from amed_env.agents.session import SearchSession

_LAZY = {
    "Agent": "amed_env.agents.protocol",
    "SearchResult": "amed_env.agents.result",
    "SearchSession": "amed_env.agents.session",
    "make_agent": "amed_env.agents.registry",
    "register_agent": "amed_env.agents.registry",
}

__all__ = [
    "Agent",
    "AgentInfo",
    "SearchResult",
    "SearchSession",
    "agent_names",
    "list_agents",
    "make_agent",
    "register_agent",
]

__getattr__ = lazy_names(__name__, _LAZY)
