"""Learners by name: algorithms of stable-baselines3 with hyperparameters for short episodes and few evaluations."""

from __future__ import annotations

from typing import Any, ClassVar

from amed_env.agents.learners.sb3 import SB3Agent
from amed_env.agents.session import SearchSession
from amed_env.errors import AgentError

_FUSED: dict[str, Any] = {"optimizer_kwargs": {"fused": True}}
"""Adam in one call for all weights."""

_EPISODES: dict[str, Any] = {
    "gae_lambda": 0.95,
    "ent_coef": 0.005,
    "policy_kwargs": {"optimizer_kwargs": {"fused": True, "eps": 1e-5}},
}
"""What learners have in common that collect whole episodes."""

REPLAY: dict[str, Any] = {"buffer_size": 50_000, "learning_starts": 100, "batch_size": 256, "train_freq": 1}
"""What learners have in common that learn from a replay buffer."""

TUNED_ON = (
    "kws-dscnn on bops latency=0.4, edge-tpu-like memory=0.55, systolic-32 energy=0.7",
    "digits-cnn on bops latency=0.55, edge-tpu-like memory=0.7, systolic-32 energy=0.4",
)
"""Tasks, devices and budgets on which `benchmarks/tune_agents.py` chose the defaults of learners: least regret after
100 and 500 evaluations among candidates of at most 4 CPU seconds (docs/decisions.md, 72)."""


class _OnPolicyAgent(SB3Agent):
    """Learners that collect whole episodes before each update."""

    saw = TUNED_ON
    default_warm_start_steps = 30_000
    default_environments = 16
    default_practice_environments = 64
    minibatches: ClassVar[int] = 2
    """Parts that the episodes of an update are divided into; 0 for an algorithm that does not divide them."""

    def _sized(self, steps: int, environments: int) -> dict[str, Any]:
        sized = super()._sized(steps, environments)
        sized.setdefault("n_steps", steps)  # an episode in every environment
        if self.minibatches:
            sized.setdefault("batch_size", max(2, sized["n_steps"] * environments // self.minibatches))
        return sized


class PPOAgent(_OnPolicyAgent):
    """PPO; forbidden actions are clamped by the environment unless `masks` is set."""

    name = "ppo"
    algorithm = "stable_baselines3:PPO"
    default_masks = False
    defaults: ClassVar[dict[str, Any]] = {
        **_EPISODES,
        "learning_rate": 3e-3,
        "n_epochs": 4,
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
    default_environments = 8
    default_practice_environments = 32
    minibatches = 0
    defaults: ClassVar[dict[str, Any]] = {
        **_EPISODES,
        "learning_rate": 2e-3,
        "use_rms_prop": False,
        "normalize_advantage": True,
    }


class DQNAgent(SB3Agent):
    """DQN with masked behaviour and target. One width for weights and activations only."""

    name = "dqn"
    saw = TUNED_ON
    algorithm = "stable_baselines3:DQN"
    default_masks = True
    default_warm_start_steps = 20_000
    default_environments = 16
    default_practice_environments = 64
    defaults: ClassVar[dict[str, Any]] = {
        **REPLAY,
        "learning_rate": 2e-3,
        "gradient_steps": 4,
        "target_update_interval": 500,
        "exploration_initial_eps": 0.3,
        "exploration_fraction": 0.5,
        "exploration_final_eps": 0.1,
        "policy_kwargs": _FUSED,
    }

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`.

        Raises:
            AgentError: If weights and activations are chosen apart, which DQN's single discrete action cannot.
        """
        if session.task.separate:
            raise AgentError(
                f"{self.name} needs one discrete action, but this task chooses weights and activations apart; use "
                "ppo or maskable-ppo, or leave them tied."
            )
        super().explore(session)


class QRDQNAgent(DQNAgent):
    """QR-DQN (quantile regression) with masked behaviour and target."""

    name = "qr-dqn"
    algorithm = "sb3_contrib:QRDQN"
    defaults: ClassVar[dict[str, Any]] = {
        **DQNAgent.defaults,
        "batch_size": 128,
        "gradient_steps": 3,
        "policy_kwargs": {"n_quantiles": 25, **_FUSED},
    }
