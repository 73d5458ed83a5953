"""Which agents there are: the ones of this package in a table, registered classes, and plug-ins.

Nothing of an agent is imported to list it, nor torch, so that `amed agents` comes at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amed_env.support.registry import Registry

GROUP = "amed_env.agents"
"""Entry-point group in which a distribution announces its agents."""


@dataclass(frozen=True)
class BuiltIn:
    """A built-in agent, described without importing it, as learners bring torch.

    Attributes:
        place: `module:Class` below `amed_env.agents`.
        description: One line.
        needs: What it needs beyond any task and the bare package; empty for nothing.
    """

    place: str
    description: str
    needs: str = "sensitivities"

    @property
    def family(self) -> str:
        """`learner` or `search`, by its room."""
        return "learner" if self.place.startswith(("learners.", "policy.")) else "search"


BUILT_IN = {
    "maskable-ppo": BuiltIn(
        "learners.learners:MaskablePPOAgent",
        "PPO with forbidden actions masked (sb3-contrib); warm start on predicted loss",
    ),
    "ppo": BuiltIn("learners.learners:PPOAgent", "PPO (stable-baselines3); forbidden actions are clamped"),
    "a2c": BuiltIn("learners.learners:A2CAgent", "A2C (stable-baselines3) with a masked policy"),
    "dqn": BuiltIn(
        "learners.learners:DQNAgent",
        "DQN (stable-baselines3), behaviour and target masked",
        needs="sensitivities, tied widths",
    ),
    "qr-dqn": BuiltIn(
        "learners.learners:QRDQNAgent",
        "QR-DQN (sb3-contrib), behaviour and target masked",
        needs="sensitivities, tied widths",
    ),
    "ddpg": BuiltIn(
        "learners.continuous:DDPGAgent",
        "DDPG (stable-baselines3), one continuous action a layer as in HAQ, projected on the budget",
    ),
    "td3": BuiltIn("learners.continuous:TD3Agent", "TD3 (stable-baselines3), continuous actions as ddpg"),
    "sac": BuiltIn("learners.continuous:SACAgent", "SAC (stable-baselines3), continuous actions as ddpg"),
    "model-ppo": BuiltIn(
        "learners.model_based:ModelPPOAgent",
        "PPO with masks on a learned model of the reward; the most hopeful of what it proposes is evaluated",
    ),
    "policy": BuiltIn(
        "policy.agent:PolicyAgent",
        "a goal-conditioned policy, trained beforehand: an instant answer for any budget, then samples",
        needs="sensitivities, a budget",
    ),
    "uniform": BuiltIn("searchers.baselines:UniformAgent", "every uniform width that meets the budget", needs=""),
    "random": BuiltIn("searchers.baselines:RandomAgent", "random allocations that meet the budget", needs=""),
    "greedy": BuiltIn(
        "searchers.baselines:GreedyAgent", "single-layer KL sensitivity, best gain per cost until the budget is met"
    ),
    "amed": BuiltIn(
        "walks.amed:AmedAgent", "AMED's random walk: learned scores, Metropolis-Hastings (arXiv 2205.15437)", needs=""
    ),
    "amed-released": BuiltIn(
        "walks.amed_released:AmedReleasedAgent",
        "the faults of AMED's released code, for comparison with amed only",
        needs="",
    ),
    "milp": BuiltIn(
        "searchers.milp:MilpAgent",
        "exact optimum of a proxy (HiGHS), corrected by trials; proxy=kl, fisher, hessian, squared-error",
    ),
    "pairwise": BuiltIn(
        "searchers.pairwise:PairwiseAgent",
        "optimum of a proxy with terms of pairs of layers (CLADO); trials correct the terms",
    ),
    "local": BuiltIn("searchers.local:LocalAgent", "best improvement from the proxy's optimum, with restarts"),
    "annealing": BuiltIn("searchers.annealing:AnnealingAgent", "simulated annealing within the budget"),
    "evolution": BuiltIn(
        "searchers.evolution:EvolutionAgent",
        "NSGA-II (pymoo) on error and cost, started near the budget",
        needs="sensitivities, amed-env[search]",
    ),
    "tpe": BuiltIn(
        "searchers.tpe:TPEAgent",
        "tree-structured Parzen estimator (optuna), started near the budget",
        needs="sensitivities, amed-env[search]",
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


def agent_names() -> list[str]:
    """Names of all agents; nothing is imported for it."""
    return sorted({*BUILT_IN, *AGENTS.names()})


def list_agents() -> dict[str, AgentInfo]:
    """All agents by name; a plug-in that cannot be imported is listed with its error and hides no other."""
    listing = {}
    for name in agent_names():
        if name in BUILT_IN:
            agent = BUILT_IN[name]
            listing[name] = AgentInfo(name, agent.family, agent.needs, agent.description, "built in")
            continue
        try:
            plugin = AGENTS.get(name)
            lines = (getattr(plugin, "description", "") or plugin.__doc__ or "").strip().splitlines()
            family, needs = getattr(plugin, "family", "search"), str(getattr(plugin, "needs", ""))
            listing[name] = AgentInfo(name, family, needs, lines[0] if lines else "", "plug-in")
        except (Exception, SystemExit) as error:
            listing[name] = AgentInfo(name, "", "", "", "plug-in", str(error))
    return listing
