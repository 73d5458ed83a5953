"""Agents: the protocol, the registry, and the adapters."""

from amed_env.agents.protocol import Agent
from amed_env.agents.registry import AgentInfo, agent_names, list_agents, make_agent, register_agent
from amed_env.agents.result import SearchResult
from amed_env.agents.session import SearchSession

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
