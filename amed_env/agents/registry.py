"""Agents are registered, and made from what a user calls them: a name, an import path, a recipe or a class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from amed_env.agents.built_in import AGENTS, BUILT_IN, agent_names
from amed_env.agents.protocol import Agent
from amed_env.agents.recipe import RECIPE_SUFFIXES, load_recipe
from amed_env.errors import AgentError, AmedError, UnknownNameError
from amed_env.support.registry import import_object

A = TypeVar("A", bound=type[Agent])


def register_agent(name: str) -> Callable[[A], A]:
    """Decorator that registers an `Agent` class under a name; its constructor takes the agent's options by keyword.

    Raises:
        AgentError: If the name is one of this package's, or what is decorated is no subclass of `Agent`.
        InputError: If the name is taken by another class.
    """

    def decorator(decorated: A) -> A:
        if not (isinstance(decorated, type) and issubclass(decorated, Agent)):
            raise AgentError(f"agent {name!r}: {decorated!r} is no subclass of amed_env.Agent.")
        if name in BUILT_IN:
            raise AgentError(f"an agent named {name!r} is part of amed_env; choose another name.")
        AGENTS.register(name, decorated)
        return decorated

    return decorator


def make_agent(spec: str | Agent | type[Agent], /, **options: Any) -> Agent:
    """The agent that a user means.

    Args:
        spec: A name from `amed agents`, `package.module:Class`, the path of a recipe (`agents/dqn.yaml`), an `Agent`
            class or an instance. A class may also be an algorithm that follows stable-baselines3.
        **options: Options of the agent; they take precedence over those of a recipe.

    Raises:
        UnknownNameError: If there is no agent or option of that name.
        AgentError: If it is no `Agent`, cannot be made with these options, or a recipe is malformed.
    """
    if isinstance(spec, str) and is_recipe(spec):
        return _from_recipe(spec, options)
    name: str | None = None
    agent_class: Any = spec
    if isinstance(spec, str):
        name = spec
        if spec in BUILT_IN:
            agent_class = import_object(f"amed_env.agents.{BUILT_IN[spec].place}", "agent class")
        elif ":" in spec:
            agent_class = import_object(spec, "agent class")
        else:
            if spec not in AGENTS:
                raise UnknownNameError("agent", spec, agent_names(), "A class is written package.module:Class.")
            agent_class = AGENTS.get(spec)
    if isinstance(agent_class, Agent):
        return agent_class
    if isinstance(agent_class, type) and not issubclass(agent_class, Agent) and _is_algorithm(agent_class):
        from amed_env.agents.learners.sb3 import SB3Agent  # brings torch, which other agents do not need

        options, agent_class = {"algorithm": agent_class, **options}, SB3Agent
    if not (isinstance(agent_class, type) and issubclass(agent_class, Agent)):
        # The object itself is not shown: what a file of results names may be the environment with its secrets.
        is_class = isinstance(agent_class, type)
        what = (
            f"the class {agent_class.__qualname__}" if is_class else f"an object of type {type(agent_class).__name__}"
        )
        raise AgentError(
            f"{'the agent' if name is None else repr(name)} is {what}; expected a subclass of amed_env.Agent."
        )
    try:
        agent = agent_class(**options)
    except AmedError:
        raise
    except (Exception, SystemExit) as error:
        raise AgentError(
            f"agent {name or agent_class.__name__!r} cannot be made: {type(error).__name__}: {error}."
        ) from error
    if name is not None:
        agent.name = name
        if name in BUILT_IN:
            agent.needs, agent.description = BUILT_IN[name].needs, BUILT_IN[name].description
    elif agent.name == Agent.name:
        agent.name = agent_class.__name__
    return agent


def is_recipe(spec: object) -> bool:
    """Whether a spec of an agent is the path of a recipe."""
    return isinstance(spec, str) and spec.lower().endswith(RECIPE_SUFFIXES)


def _from_recipe(path: str, options: dict[str, Any]) -> Agent:
    recipe = load_recipe(path)
    try:
        agent = make_agent(recipe.algorithm, **{**recipe.options(), **options})
    except AmedError as error:
        raise AgentError(f"{path}: {error}") from error
    agent.name, agent.recipe = Path(path).stem, {**(agent.recipe or {}), **recipe.model_dump()}
    return agent


def _is_algorithm(algorithm: type) -> bool:
    """Whether a class is an algorithm of stable-baselines3, told without importing the library."""
    return any(parent.__module__ == "stable_baselines3.common.base_class" for parent in algorithm.__mro__)
