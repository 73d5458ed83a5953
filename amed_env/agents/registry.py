"""Agents by name: the ones of this package, registered classes, and plug-ins of other distributions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from amed_env.agents.protocol import Agent
from amed_env.agents.recipe import RECIPE_SUFFIXES, load_recipe
from amed_env.errors import AgentError, AmedError
from amed_env.support.registry import Registry, import_object

GROUP = "amed_env.agents"
"""Entry-point group in which a distribution announces its agents."""

A = TypeVar("A", bound=type[Agent])


@dataclass(frozen=True)
class _BuiltIn:
    """A built-in agent, described without importing it: learners bring torch. A test compares with the class."""

    path: str
    family: str
    needs: str
    description: str


_BUILT_IN = {
    "maskable-ppo": _BuiltIn(
        "amed_env.agents.learners.learners:MaskablePPOAgent",
        "learner",
        "sensitivities",
        "PPO with forbidden actions masked (sb3-contrib); warm start on predicted loss",
    ),
    "ppo": _BuiltIn(
        "amed_env.agents.learners.learners:PPOAgent",
        "learner",
        "sensitivities",
        "PPO (stable-baselines3); forbidden actions are clamped",
    ),
    "a2c": _BuiltIn(
        "amed_env.agents.learners.learners:A2CAgent",
        "learner",
        "sensitivities",
        "A2C (stable-baselines3) with a masked policy",
    ),
    "dqn": _BuiltIn(
        "amed_env.agents.learners.learners:DQNAgent",
        "learner",
        "sensitivities, tied widths",
        "DQN (stable-baselines3), behaviour and target masked",
    ),
    "qr-dqn": _BuiltIn(
        "amed_env.agents.learners.learners:QRDQNAgent",
        "learner",
        "sensitivities, tied widths",
        "QR-DQN (sb3-contrib), behaviour and target masked",
    ),
    "ddpg": _BuiltIn(
        "amed_env.agents.learners.continuous:DDPGAgent",
        "learner",
        "sensitivities",
        "DDPG (stable-baselines3), one continuous action a layer as in HAQ, projected on the budget",
    ),
    "td3": _BuiltIn(
        "amed_env.agents.learners.continuous:TD3Agent",
        "learner",
        "sensitivities",
        "TD3 (stable-baselines3), continuous actions as ddpg",
    ),
    "sac": _BuiltIn(
        "amed_env.agents.learners.continuous:SACAgent",
        "learner",
        "sensitivities",
        "SAC (stable-baselines3), continuous actions as ddpg",
    ),
    "model-ppo": _BuiltIn(
        "amed_env.agents.learners.model_based:ModelPPOAgent",
        "learner",
        "sensitivities",
        "PPO with masks on a learned model of the reward; the most hopeful of what it proposes is evaluated",
    ),
    "policy": _BuiltIn(
        "amed_env.agents.policy.agent:PolicyAgent",
        "learner",
        "sensitivities, a budget",
        "a goal-conditioned policy, trained beforehand: an instant answer for any budget, then samples",
    ),
    "uniform": _BuiltIn(
        "amed_env.agents.searchers.baselines:UniformAgent",
        "search",
        "",
        "every uniform width that meets the budget",
    ),
    "random": _BuiltIn(
        "amed_env.agents.searchers.baselines:RandomAgent",
        "search",
        "",
        "random allocations that meet the budget",
    ),
    "greedy": _BuiltIn(
        "amed_env.agents.searchers.baselines:GreedyAgent",
        "search",
        "sensitivities",
        "single-layer KL sensitivity, best gain per cost until the budget is met",
    ),
    "amed": _BuiltIn(
        "amed_env.agents.walks.amed:AmedAgent",
        "search",
        "",
        "AMED's random walk: learned scores, Metropolis-Hastings (arXiv 2205.15437)",
    ),
    "amed-released": _BuiltIn(
        "amed_env.agents.walks.amed_released:AmedReleasedAgent",
        "search",
        "",
        "the faults of AMED's released code, for comparison with amed only",
    ),
    "milp": _BuiltIn(
        "amed_env.agents.searchers.milp:MilpAgent",
        "search",
        "sensitivities",
        "exact optimum of a proxy (HiGHS), corrected by trials; proxy=kl, fisher, hessian, squared-error",
    ),
    "pairwise": _BuiltIn(
        "amed_env.agents.searchers.pairwise:PairwiseAgent",
        "search",
        "sensitivities",
        "optimum of a proxy with terms of pairs of layers (CLADO); trials correct the terms",
    ),
    "local": _BuiltIn(
        "amed_env.agents.searchers.local:LocalAgent",
        "search",
        "sensitivities",
        "best improvement from the proxy's optimum, with restarts",
    ),
    "annealing": _BuiltIn(
        "amed_env.agents.searchers.annealing:AnnealingAgent",
        "search",
        "sensitivities",
        "simulated annealing within the budget",
    ),
    "evolution": _BuiltIn(
        "amed_env.agents.searchers.evolution:EvolutionAgent",
        "search",
        "sensitivities, amed-env[search]",
        "NSGA-II (pymoo) on error and cost, started near the budget",
    ),
    "tpe": _BuiltIn(
        "amed_env.agents.searchers.tpe:TPEAgent",
        "search",
        "sensitivities, amed-env[search]",
        "tree-structured Parzen estimator (optuna), started near the budget",
    ),
}

AGENTS: Registry[Any] = Registry("agent", group=GROUP)
"""Agents registered in this process, and plug-ins; the built-in ones are imported only when asked for."""


@dataclass(frozen=True)
class AgentInfo:
    """An agent in the listing; `error` says why it cannot be used, or is None."""

    name: str
    family: str
    needs: str
    description: str
    source: str
    error: str | None = None


def register_agent(name: str) -> Callable[[A], A]:
    """Decorator that registers an `Agent` class under a name; its constructor takes the agent's options by keyword.

    Raises:
        AgentError: If the name is one of this package's, or what is decorated is no subclass of `Agent`.
        InputError: If the name is taken by another class.
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
    found: Any = spec
    if isinstance(spec, str):
        name = spec
        if spec in _BUILT_IN:
            found = import_object(_BUILT_IN[spec].path, "agent class")
        elif ":" in spec:
            found = import_object(spec, "agent class")
        else:
            if spec not in AGENTS:
                from amed_env.errors import UnknownNameError

                raise UnknownNameError("agent", spec, agent_names(), "A class is written package.module:Class.")
            found = AGENTS.get(spec)
    if isinstance(found, Agent):
        return found
    if isinstance(found, type) and not issubclass(found, Agent) and _is_algorithm(found):
        from amed_env.agents.learners.sb3 import SB3Agent

        options, found = {"algorithm": found, **options}, SB3Agent
    if not (isinstance(found, type) and issubclass(found, Agent)):
        # The object itself is not shown: what a file of results names may be the environment with its secrets.
        is_class = isinstance(found, type)
        what = f"the class {found.__qualname__}" if is_class else f"an object of type {type(found).__name__}"
        raise AgentError(
            f"{'the agent' if name is None else repr(name)} is {what}; expected a subclass of amed_env.Agent."
        )
    try:
        agent = found(**options)
    except AmedError:
        raise
    except (Exception, SystemExit) as error:
        raise AgentError(
            f"agent {name or found.__name__!r} cannot be made: {type(error).__name__}: {error}."
        ) from error
    if name is not None:
        agent.name = name
    elif agent.name == Agent.name:
        agent.name = found.__name__
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


def _is_algorithm(found: type) -> bool:
    """Whether a class is an algorithm of stable-baselines3, told without importing the library."""
    return any(parent.__module__ == "stable_baselines3.common.base_class" for parent in found.__mro__)


def list_agents() -> dict[str, AgentInfo]:
    """All agents by name; a plug-in that cannot be imported is listed with its error and hides no other."""
    listing = {}
    for name in agent_names():
        if name in _BUILT_IN:
            agent = _BUILT_IN[name]
            listing[name] = AgentInfo(name, agent.family, agent.needs, agent.description, "built in")
            continue
        try:
            found = AGENTS.get(name)
            lines = (getattr(found, "description", "") or found.__doc__ or "").strip().splitlines()
            family, needs = getattr(found, "family", "search"), str(getattr(found, "needs", ""))
            listing[name] = AgentInfo(name, family, needs, lines[0] if lines else "", "plug-in")
        except (Exception, SystemExit) as error:
            listing[name] = AgentInfo(name, "", "", "", "plug-in", str(error))
    return listing
