"""Action masks for algorithms of stable-baselines3 that have none.

The observation of `AMED/LayerWise-v0` has what may be chosen. So a replay buffer that keeps observations keeps the
masks of states and of next states too, and a network that reads them back masks the behaviour policy and the
bootstrapped target alike, without another buffer or training loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib import QRDQN, MaskablePPO
from sb3_contrib.common.maskable.distributions import MaskableDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork

from amed_env.envs.layer_wise import LayerWiseEnv

FORBIDDEN_VALUE = -1e8
"""Value of a forbidden action: below every return, and finite, so that means of quantiles stay numbers."""


@dataclass(frozen=True)
class ObservedMask:
    """Where an observation has the mask.

    Attributes:
        columns: The columns of the observation.
        widths: None for `Discrete`; W for `MultiDiscrete([W, W])`, whose mask has both parts side by side.
    """

    columns: slice
    widths: int | None = None

    @classmethod
    def of(cls, env: LayerWiseEnv) -> ObservedMask:
        """Where the observations of an environment have it."""
        return cls(env.observer.mask_columns, len(env.task.bits) if env.task.separate else None)

    def __call__(self, observations: torch.Tensor) -> torch.Tensor:
        """What may be done: bool (N, P), or (N, 2W)."""
        allowed = observations[:, self.columns] > 0.5
        if self.widths is None:
            return allowed
        grid = allowed.reshape(-1, self.widths, self.widths)
        return torch.cat([grid.any(dim=2), grid.any(dim=1)], dim=1)


class _MaskedQNetwork(QNetwork):
    def __init__(self, mask: ObservedMask, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._mask = mask

    def forward(self, obs: Any) -> torch.Tensor:
        return super().forward(obs).masked_fill(~self._mask(obs), FORBIDDEN_VALUE)


class MaskedDQNPolicy(DQNPolicy):
    """DQN's policy; online and target network give forbidden actions `FORBIDDEN_VALUE`.

    Args:
        mask: Where observations have the mask.
    """

    def __init__(self, *arguments: Any, mask: ObservedMask, **keywords: Any) -> None:
        self._mask = mask  # the networks are made in the constructor
        super().__init__(*arguments, **keywords)

    def make_q_net(self) -> QNetwork:
        """See `DQNPolicy`."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return _MaskedQNetwork(self._mask, **arguments).to(self.device)


class _MaskedQuantileNetwork(QuantileNetwork):
    def __init__(self, mask: ObservedMask, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._mask = mask

    def forward(self, obs: Any) -> torch.Tensor:
        forbidden = ~self._mask(obs)[:, None, :]
        return super().forward(obs).masked_fill(forbidden, FORBIDDEN_VALUE)


class MaskedQRDQNPolicy(QRDQNPolicy):
    """QR-DQN's policy; every quantile of a forbidden action is `FORBIDDEN_VALUE`.

    Args:
        mask: Where observations have the mask.
    """

    def __init__(self, *arguments: Any, mask: ObservedMask, **keywords: Any) -> None:
        self._mask = mask
        super().__init__(*arguments, **keywords)

    def make_quantile_net(self) -> QuantileNetwork:
        """See `QRDQNPolicy`."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return _MaskedQuantileNetwork(self._mask, **arguments).to(self.device)


class MaskedActorCriticPolicy(MaskableActorCriticPolicy):
    """Policy of A2C and PPO whose distribution has forbidden actions masked, while it acts and while it is trained.

    Args:
        mask: Where observations have the mask.
        use_sde: Accepted because the algorithms give it; state-dependent exploration is for continuous actions.
    """

    def __init__(self, *arguments: Any, mask: ObservedMask, use_sde: bool = False, **keywords: Any) -> None:
        self._mask = mask
        super().__init__(*arguments, **keywords)

    def forward(
        self, obs: torch.Tensor, deterministic: bool = False, action_masks: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `MaskableActorCriticPolicy`; the masks are read from the observations."""
        return super().forward(obs, deterministic, self._mask(obs).numpy())

    def evaluate_actions(
        self, obs: torch.Tensor, actions: torch.Tensor, action_masks: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """See `MaskableActorCriticPolicy`; the masks are read from the observations."""
        return super().evaluate_actions(obs, actions, self._mask(obs))

    def get_distribution(self, obs: Any, action_masks: Any = None) -> MaskableDistribution:
        """See `MaskableActorCriticPolicy`; the masks are read from the observations."""
        return super().get_distribution(obs, self._mask(obs).numpy())


class MaskedExploration:
    """What a value-based algorithm does by chance, restricted to what may be done.

    Attributes:
        least_exploration: Share of random actions below which the algorithm's own schedule does not bring it.
    """

    least_exploration = 0.0

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[npt.NDArray[Any], Any]:
        """See `DQN.predict`."""
        algorithm = cast(Any, self)
        prediction: tuple[npt.NDArray[Any], Any] = algorithm.policy.predict(
            observation, state, episode_start, deterministic
        )
        chosen, state = prediction
        # Each environment by itself: those that are at the same layer would otherwise all do the same.
        rate = max(algorithm.exploration_rate, self.least_exploration)
        by_chance = np.random.rand(len(np.atleast_2d(observation))) < rate
        if deterministic or not by_chance.any():
            return chosen, state
        random = self._random_actions(np.atleast_2d(observation))
        if algorithm.policy.is_vectorized_observation(observation):
            return np.where(by_chance, random, chosen), state
        return random[0], state

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        algorithm = cast(Any, self)
        if algorithm.num_timesteps < learning_starts:
            chosen = self._random_actions(algorithm._last_obs)
        else:
            chosen, _ = self.predict(algorithm._last_obs)
        return chosen, chosen

    def _random_actions(self, observations: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        # The library seeds NumPy's global generator and draws its own random actions by it.
        mask = cast(Any, self).policy_kwargs["mask"](torch.as_tensor(observations)).numpy()
        return np.asarray([np.random.choice(np.flatnonzero(allowed)) for allowed in mask])


_POLICIES: dict[type[Any], tuple[tuple[type[Any], ...], type[Any]]] = {
    DQN: ((MaskedExploration,), MaskedDQNPolicy),
    QRDQN: ((MaskedExploration,), MaskedQRDQNPolicy),
    A2C: ((), MaskedActorCriticPolicy),
    PPO: ((), MaskedActorCriticPolicy),
}


def masks_itself(algorithm: type[Any]) -> bool:
    """Whether an algorithm asks the environment for its masks."""
    return issubclass(algorithm, MaskablePPO)


def masked(algorithm: type[Any]) -> type[Any] | None:
    """The algorithm with masks: a subclass whose `MlpPolicy` takes the argument `mask`, or None if there is none."""
    for known, (mixins, policy) in _POLICIES.items():
        if issubclass(algorithm, known):
            attributes = {"policy_aliases": {"MlpPolicy": policy}, "__doc__": f"{algorithm.__name__} with masks."}
            return type(f"Masked{algorithm.__name__}", (*mixins, algorithm), attributes)
    return None
