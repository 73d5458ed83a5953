"""Continuous control of widths, as in HAQ: DDPG, TD3 and SAC of stable-baselines3."""

from __future__ import annotations

from typing import Any, ClassVar

from amed_env.agents.learners.callbacks import WidthNoise
from amed_env.agents.learners.learners import REPLAY, TUNED_ON
from amed_env.agents.learners.sb3 import SB3Agent
from amed_env.agents.options import number_between


class ContinuousAgent(SB3Agent):
    """A learner whose action is one number a layer; where widths are apart, weights and activations take turns.

    Args:
        noise: Standard deviation of the normal noise that is added to actions, in units of half the range from the
            narrowest to the widest.
        **options: Those of `SB3Agent`.

    Raises:
        AgentError: If the noise is out of range, or masks are asked for: the environment projects instead.
    """

    saw = TUNED_ON
    default_masks = False
    default_noise: ClassVar[float] = 0.5
    default_warm_start_steps = 12_000
    default_environments = 32
    default_practice_environments = 64
    # Least regret on the cells of `TUNED_ON` among candidates of at most 4 CPU seconds (docs/decisions.md, 72).
    defaults: ClassVar[dict[str, Any]] = {
        **REPLAY,
        "learning_rate": 1e-3,
        "gradient_steps": 1,
        "policy_kwargs": {"net_arch": [64, 64], "optimizer_kwargs": {"fused": True}},
    }

    def __init__(self, *, noise: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.noise = number_between("noise", self.default_noise if noise is None else noise, 0.0)

    def _sized(self, steps: int, environments: int) -> dict[str, Any]:
        sized = super()._sized(steps, environments)
        sized.setdefault("action_noise", WidthNoise(self.noise))
        return sized


class DDPGAgent(ContinuousAgent):
    """DDPG, the learner of HAQ."""

    name = "ddpg"
    algorithm = "stable_baselines3:DDPG"


class TD3Agent(ContinuousAgent):
    """TD3."""

    name = "td3"
    algorithm = "stable_baselines3:TD3"


class SACAgent(ContinuousAgent):
    """SAC; its own entropy explores, and noise is added only while it repeats itself."""

    name = "sac"
    algorithm = "stable_baselines3:SAC"
    default_noise = 0.0
    default_environments = 16
    defaults: ClassVar[dict[str, Any]] = {**ContinuousAgent.defaults, "learning_rate": 3e-3}
