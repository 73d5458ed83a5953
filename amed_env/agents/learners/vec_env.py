"""`AMED/LayerWise-v0` for stable-baselines3: a `VecEnv` that steps all of its environments at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from math import isfinite
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from amed_env.envs.base import budget_option
from amed_env.envs.batch import LayerWiseBatch, RewardOf
from amed_env.envs.layer_wise import LayerWiseEnv
from amed_env.envs.vectorized import shared_attribute
from amed_env.errors import InputError


class LayerWiseVecEnv(VecEnv):
    """N environments of `AMED/LayerWise-v0` without a loop over them, but for the dictionaries at the end of episodes.

    Quality must come from a table (tasks named `tabular/…`) and costs must add up, or the reward must be `predicted`.
    Episodes are reset in the step that ends them, as stable-baselines3 wants it; the information then has
    `terminal_observation`, and `episode` with return and length as `Monitor` gives them. There is no `allocation`;
    `task.allocation(info["choices"])` makes one.

    Args:
        num_envs: N.
        env: An environment that they are like; made of the options by default.
        reward_of: What rewards whole allocations in place of the environment: from int64 (N, L) float64 (N,).
        **options: Those of `LayerWiseEnv`.

    Raises:
        InputError: If many environments cannot be stepped at once; the message says why.
    """

    def __init__(
        self, num_envs: int, env: LayerWiseEnv | None = None, *, reward_of: RewardOf | None = None, **options: Any
    ) -> None:
        self.single = LayerWiseEnv(**options) if env is None else env
        self.batch = LayerWiseBatch(self.single, num_envs, reward_of)
        self.render_mode: str | None = None
        self._actions: npt.NDArray[Any] = np.zeros(0, dtype=np.int64)
        self._rng = np.random.default_rng()
        self._returns = np.zeros(num_envs)
        self._started = perf_counter()
        super().__init__(num_envs, self.single.observation_space, self.single.action_space)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the generator that draws the budgets of all environments at the next reset."""
        self._rng = np.random.default_rng(seed)
        return [seed] * self.num_envs

    def reset(self) -> npt.NDArray[np.float32]:
        """Start N episodes: float32 (N, F).

        Options of `set_options` count for these episodes only: `{"budget": …}` as in `LayerWiseEnv.reset`. Where there
        is no budget the fixed one counts, or one is drawn. `reset_infos` has the `limits` of each.

        Raises:
            InputError: If an option is unknown, or there are not as many dictionaries of options as environments.
            BudgetError: If a budget cannot be met.
        """
        self._begin(self._limits_of_options())
        self._reset_seeds()
        self._reset_options()
        return self.batch.observe()

    def _limits_of_options(self) -> npt.NDArray[np.float64]:
        """(N, 4) limits that the options of each environment ask for."""
        if len(self._options) != self.num_envs:
            raise InputError(
                f"set_options: {len(self._options)} dictionaries for {self.num_envs} environments; "
                "give one for each, or a single dictionary for all."
            )
        budgets = [budget_option(options) for options in self._options]
        has_budget = np.asarray([budget is not None for budget in budgets])
        if not has_budget.any():
            return self.batch.draw_limits(self._rng)
        stand_in = budgets[int(has_budget.argmax())]
        limits = self.batch.limits_of([stand_in if budget is None else budget for budget in budgets])
        return limits if has_budget.all() else np.where(has_budget[:, None], limits, self.batch.draw_limits(self._rng))

    def _begin(self, limits: npt.NDArray[np.float64]) -> None:
        self.batch.start(limits)
        self._returns = np.zeros(self.num_envs)
        columns = {metric: values.tolist() for metric, values in self.batch.limits().items()}
        self.reset_infos = [
            {"limits": {metric: column[row] for metric, column in columns.items() if isfinite(column[row])}}
            for row in range(self.num_envs)
        ]

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep the actions until `step_wait`."""
        self._actions = actions

    def step_wait(
        self,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_], list[dict[str, Any]]]:
        """Observations (N, F), rewards (N,), whether episodes ended (N,), and information."""
        rewards, details = self.batch.step(self._actions)
        self._returns += rewards
        over = self.batch.over
        infos = self._final_infos(details) if over else [{} for _ in range(self.num_envs)]
        if over:
            self._begin(self.batch.draw_limits(self._rng))
        return self.batch.observe(), rewards.astype(np.float32), np.full(self.num_envs, over), infos

    def _final_infos(self, details: dict[str, Any]) -> list[dict[str, Any]]:
        observations, returns = self.batch.observe(), self._returns.tolist()
        length, seconds = self.batch.layers, round(perf_counter() - self._started, 6)
        costs = details.pop("costs", {})
        vectors = {key: details.pop(key) for key in ("choices", "reward_vector") if key in details}
        plain = {key: values.tolist() for key, values in details.items()}
        rows = [dict(zip(plain, values, strict=True)) for values in zip(*plain.values(), strict=True)]
        each = [
            dict(zip(costs, values, strict=True)) for values in zip(*(c.tolist() for c in costs.values()), strict=True)
        ]
        for position, row in enumerate(rows):
            row["terminal_observation"] = observations[position]
            row["TimeLimit.truncated"] = False
            row["episode"] = {"r": returns[position], "l": length, "t": seconds}
            if each:
                row["costs"] = each[position]
            for key, values in vectors.items():
                row[key] = values[position]
        return rows

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """An attribute of each environment that is asked for: that of the environment that all are like.

        Raises:
            AttributeError: If there is none of this name, or it would be another one in each environment.
        """
        return [self._attribute(position, attr_name) for position in self._get_indices(indices)]

    def _attribute(self, position: int, name: str) -> Any:
        if name == "action_masks":
            return partial(self._mask, position)
        return self._rng if name == "np_random" else shared_attribute(self.single, name)

    def _mask(self, position: int) -> npt.NDArray[np.bool_]:
        """What one environment may do now: bool (P,), or (2W,) for `MultiDiscrete`."""
        mask: npt.NDArray[np.bool_] = self.batch.masks()[position]
        return mask

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Refused: the environments share their attributes.

        Raises:
            InputError: Always.
        """
        raise InputError(f"cannot set {attr_name!r}: these environments share their attributes; make them anew.")

    def env_method(
        self, method_name: str, *arguments: Any, indices: int | Iterable[int] | None = None, **keywords: Any
    ) -> list[Any]:
        """`action_masks`, which `MaskablePPO` asks for, or `get_wrapper_attr`, with which callbacks read attributes.

        Raises:
            InputError: If it is another method.
            AttributeError: If there is no such attribute; see `get_attr`.
        """
        if method_name == "get_wrapper_attr":
            return [self._attribute(position, *arguments, **keywords) for position in self._get_indices(indices)]
        if method_name != "action_masks":
            raise InputError(
                f"environments that are stepped together have no method {method_name!r} each; "
                "there are 'action_masks' and 'get_wrapper_attr'."
            )
        masks = self.batch.masks()
        return [masks[position] for position in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        """Whether each is wrapped: in nothing but `Monitor`, so to speak, as its information is there."""
        return [issubclass(wrapper_class, Monitor)] * len(list(self._get_indices(indices)))

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """There are no images."""
        return [None] * self.num_envs
