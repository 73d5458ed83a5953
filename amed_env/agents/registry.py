"""Agents by name: the ones of this package, registered classes, and plug-ins of other distributions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from amed_env.agents.protocol import Agent
from amed_env.errors import AgentError, AmedError
from amed_env.registry import Registry, import_object

GROUP = "amed_env.agents"
"""Entry-point group in which a distribution announces its agents."""

A = TypeVar("A", bound=type[Agent])

_BUILT_IN = {
    "maskable-ppo": (
        "amed_env.agents.sb3:MaskablePPOAgent",
        "learner",
        "PPO with forbidden actions masked (sb3-contrib); warm start on predicted loss",
    ),
    "ppo": ("amed_env.agents.sb3:PPOAgent", "learner", "PPO (stable-baselines3); forbidden actions are clamped"),
    "dqn": ("amed_env.agents.sb3:DQNAgent", "learner", "DQN (stable-baselines3); forbidden actions are clamped"),
    "uniform": ("amed_env.agents.baselines:UniformAgent", "search", "every uniform width that meets the budget"),
    "random": ("amed_env.agents.baselines:RandomAgent", "search", "random allocations that meet the budget"),
    "greedy": (
        "amed_env.agents.baselines:GreedyAgent",
        "search",
        "single-layer KL sensitivity, best gain per cost until the budget is met",
    ),
    "milp": (
        "amed_env.agents.milp:MilpAgent",
        "search",
        "exact optimum of a proxy (HiGHS), corrected by trials; proxy=kl, fisher, hessian, squared-error",
    ),
    "pairwise": (
        "amed_env.agents.pairwise:PairwiseAgent",
        "search",
        "optimum of a proxy with terms of pairs of layers (CLADO); trials correct the terms",
    ),
    "local": ("amed_env.agents.local:LocalAgent", "search", "best improvement from the proxy's optimum, with restarts"),
    "annealing": ("amed_env.agents.annealing:AnnealingAgent", "search", "simulated annealing within the budget"),
    "evolution": (
        "amed_env.agents.evolution:EvolutionAgent",
        "search",
        "NSGA-II on error and cost, started near the budget; needs pymoo (amed-env[search])",
    ),
    "tpe": (
        "amed_env.agents.tpe:TPEAgent",
        "search",
        "tree-structured Parzen estimator, started near the budget; needs optuna (amed-env[search])",
    ),
}

AGENTS: Registry[Any] = Registry("agent", group=GROUP)
"""Agents registered in this process, and plug-ins; the built-in ones are imported only when asked for."""


@dataclass(frozen=True)
class AgentInfo:
    """An agent in the listing; `error` says why it cannot be used, or is None."""

    name: str
    family: str
    description: str
    source: str
    error: str | None = None


def register_agent(name: str) -> Callable[[A], A]:
    """Decorator that registers an `Agent` class under a name; its constructor takes the agent's options by keyword.

    Raises:
        AgentError: If the name is taken, or what is decorated is no subclass of `Agent`.
    """

    def decorator(decorated: A) -> A:
        if not (isinstance(decorated, type) and issubclass(decorated, Agent)):
            raise AgentError(f"agent {name!r}: {decorated!r} is no subclass of amed_env.Agent.")
        if name in _BUILT_IN:
            raise AgentError(f"an agent named {name!r} is part of amed_env; choose another name.")
        AGENTS.register(name, decorated)
        return decorated

    return decorator


def agent_names() -> list[str]:
    """Names of all agents; nothing is imported for it."""
    return sorted({*_BUILT_IN, *AGENTS.names()})


def make_agent(spec: str | Agent | type[Agent], **options: Any) -> Agent:
    """The agent that a user means.

    Args:
        spec: A name from `amed agents`, `package.module:Class`, an `Agent` class or an instance.
        **options: Options of the agent.

    Raises:
        UnknownNameError: If there is no agent or option of that name.
        AgentError: If it is no `Agent`, or cannot be made with these options.
    """
    name: str | None = None
    found: Any = spec
    if isinstance(spec, str):
        name = spec
        if spec in _BUILT_IN:
            found = import_object(_BUILT_IN[spec][0], "agent class")
        elif ":" in spec:
            found = import_object(spec, "agent class")
        else:
            if spec not in AGENTS:
                from amed_env.errors import UnknownNameError

                raise UnknownNameError("agent", spec, agent_names(), "A class is written package.module:Class.")
            found = AGENTS.get(spec)
    if isinstance(found, Agent):
        return found
    if not (isinstance(found, type) and issubclass(found, Agent)):
        raise AgentError(f"{spec!r} is {found!r}; expected a subclass of amed_env.Agent.")
    try:
        agent = found(**options)
    except AmedError:
        raise
    except Exception as error:
        raise AgentError(
            f"agent {name or found.__name__!r} cannot be made: {type(error).__name__}: {error}."
        ) from error
    if name is not None:
        agent.name = name
    elif agent.name == Agent.name:
        agent.name = found.__name__
    return agent


def list_agents() -> dict[str, AgentInfo]:
    """All agents by name; a plug-in that cannot be imported is listed with its error and hides no other."""
    listing = {}
    for name in agent_names():
        if name in _BUILT_IN:
            _, family, description = _BUILT_IN[name]
            listing[name] = AgentInfo(name, family, description, "built in")
            continue
        try:
            found = AGENTS.get(name)
            lines = (getattr(found, "description", "") or found.__doc__ or "").strip().splitlines()
            listing[name] = AgentInfo(name, getattr(found, "family", "search"), lines[0] if lines else "", "plug-in")
        except (Exception, SystemExit) as error:
            listing[name] = AgentInfo(name, "", "", "plug-in", str(error))
    return listing
