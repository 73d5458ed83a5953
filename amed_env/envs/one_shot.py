"""`AMED/OneShot-v0`: the whole allocation in one action, a bandit for comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from amed_env.envs.base import AllocationEnv
from amed_env.errors import InputError
from amed_env.evaluation.store import Trial
from amed_env.hardware.protocol import HardwareBackend
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.constraints import allowed_choices, least_choosable
from amed_env.tasks.task import Task


class OneShotEnv(AllocationEnv):
    """Bit allocation as a single decision.

    ## Description
    One step sets the precision of all L layers.

    ## Action space
    `MultiDiscrete([P] * L)`: for every layer the number of a precision in `task.precisions` (narrow ones first).
    `action_masks()` forbids what no choice of the other layers could make up for; what still exceeds the budget is
    repaired with as few changes as possible, and `info["repaired"]` says so. Pinned layers keep their precision
    whatever is chosen for them, and what a layer cannot have is replaced by the nearest that it can.

    ## Observation
    `Box(0, 1, (8,), float32)`: for latency, energy, memory and bops whether it is limited, then the limit as a factor
    of the uniform 8-bit cost (1 where there is none); two more for every further metric that has a budget.

    ## Rewards
    ln(float error / error) on the search split, less a penalty for an exceeded budget.

    ## Starting state, termination, information
    Budgets, faults and the information at the end are those of `AMED/LayerWise-v0`. The only step ends the episode.

    Args:
        task, device, bits, separate, budget, pin, budget_range, measure: See `AllocationEnv`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium declares it as an instance variable

    def __init__(
        self,
        task: str | Task = "digits-cnn",
        *,
        device: str | Path | HardwareBackend | None = None,
        bits: Sequence[int] | None = None,
        separate: bool = False,
        budget: Mapping[str, str | float] | Sequence[str] | None = None,
        pin: Mapping[str, Any] | Sequence[str] | None = None,
        budget_range: Mapping[str, tuple[float, float]] | None = None,
        measure: Callable[[BitAllocation], Trial] | None = None,
    ) -> None:
        super().__init__(task, device, bits, separate, budget, pin, budget_range, measure)
        self._over = True
        self.action_space = spaces.MultiDiscrete([len(self.task.precisions)] * len(self.task.workload))
        self.observation_space = spaces.Box(0.0, 1.0, (2 * len(self.reference),), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode; seed and options are those of `AMED/LayerWise-v0`.

        Raises:
            InputError: If an option is unknown.
            BudgetError: If the budget cannot be met.
        """
        super().reset(seed=seed)
        self._draw_limits(options)
        self._over = False
        return self._observe(), {"limits": dict(self._limits)}

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """For every layer what the cheapest choice of all others leaves possible: bool (L x P,)."""
        least = least_choosable(self.cost_arrays, self.task.choosable)
        limits = self._limit_array()
        masks = []
        for layer in range(least.shape[1]):
            others = least.sum(axis=1) - least[:, layer]
            here, choosable = self.cost_arrays[:, layer], self.task.choosable[layer]
            masks.append(allowed_choices(np.zeros_like(others), here, others, limits, choosable))
        return np.concatenate(masks)

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Set all precisions; see the class for reward and information.

        Raises:
            InputError: If the action is not in the action space, or the episode is over.
        """
        if self._over:
            raise InputError("the episode is over; call reset() before the next step().")
        choices = np.asarray(action)
        if not self.action_space.contains(choices):
            raise InputError(f"action {action!r} is not in {self.action_space}.")
        self._over = True
        info: dict[str, Any] = {}
        reward, truncated = self._finish([int(choice) for choice in choices], info)
        return self._observe(), float(reward), not truncated, truncated, info

    def _observe(self) -> npt.NDArray[np.float32]:
        limits = self._limit_array()
        limited = np.isfinite(limits)
        ratios = np.where(limited, limits, self.reference) / self.reference
        return np.asarray(np.clip(np.concatenate([limited, ratios]), 0.0, 1.0), dtype=np.float32)
