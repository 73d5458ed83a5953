"""Learners by name: algorithms of stable-baselines3 with hyperparameters for short episodes and few evaluations."""

from __future__ import annotations

from typing import Any, ClassVar

from amed_env.agents.sb3 import SB3Agent
from amed_env.agents.session import SearchSession
from amed_env.errors import AgentError
from amed_env.task import Task


class _OnPolicyAgent(SB3Agent):
    """Learners that collect whole episodes before each update."""

    default_warm_start_steps = 40_000
    episodes_per_update: ClassVar[int] = 16
    has_batches: ClassVar[bool] = True

    def _sized(self, steps: int, environments: int) -> dict[str, Any]:
        sized = super()._sized(steps, environments)
        if "n_steps" not in sized:
            # Practice has many environments of a few episodes each, the search one environment of as many.
            sized["n_steps"] = steps * (4 if environments > 1 else self.episodes_per_update)
        if self.has_batches:
            sized.setdefault("batch_size", max(2, sized["n_steps"] * environments // 4))
        return sized


class PPOAgent(_OnPolicyAgent):
    """PPO; forbidden actions are clamped by the environment unless `masks` is set."""

    name = "ppo"
    algorithm = "stable_baselines3:PPO"
    default_masks = False
    defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 1e-3,
        "n_epochs": 8,
        "gae_lambda": 0.95,
        "ent_coef": 0.005,
        "max_grad_norm": 0.5,
    }


class MaskablePPOAgent(_OnPolicyAgent):
    """PPO whose policy never proposes what would break the budget."""

    name = "maskable-ppo"
    algorithm = "sb3_contrib:MaskablePPO"
    defaults: ClassVar[dict[str, Any]] = PPOAgent.defaults


class A2CAgent(_OnPolicyAgent):
    """A2C with a masked policy."""

    name = "a2c"
    algorithm = "stable_baselines3:A2C"
    default_masks = True
    episodes_per_update = 4
    has_batches = False
    defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 2e-3,
        "gae_lambda": 0.95,
        "ent_coef": 0.005,
        "use_rms_prop": False,
        "normalize_advantage": True,
    }


class DQNAgent(SB3Agent):
    """DQN with masked behaviour and target. One width for weights and activations only."""

    name = "dqn"
    algorithm = "stable_baselines3:DQN"
    default_masks = True
    default_warm_start_steps = 25_000  # a step of DQN costs several times one of PPO
    defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 5e-4,
        "buffer_size": 50_000,
        "learning_starts": 100,
        "batch_size": 64,
        "train_freq": 4,
        "gradient_steps": 1,
        "target_update_interval": 500,
        "exploration_initial_eps": 0.3,
        "exploration_fraction": 0.5,
        "exploration_final_eps": 0.1,
    }

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`.

        Raises:
            AgentError: If weights and activations are chosen apart, which DQN's single discrete action cannot.
        """
        _require_one_action(self.name, session.task)
        super().explore(session)


class QRDQNAgent(DQNAgent):
    """QR-DQN (quantile regression) with masked behaviour and target."""

    name = "qr-dqn"
    algorithm = "sb3_contrib:QRDQN"
    defaults: ClassVar[dict[str, Any]] = {**DQNAgent.defaults, "policy_kwargs": {"n_quantiles": 25}}


def _require_one_action(agent: str, task: Task) -> None:
    if task.separate:
        raise AgentError(
            f"{agent} needs one discrete action, but this task chooses weights and activations apart; use "
            "ppo or maskable-ppo, or leave them tied."
        )
