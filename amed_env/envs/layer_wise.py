"""`AMED/LayerWise-v0`: choose the precision of one layer after the other."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from amed_env.envs.base import AllocationEnv
from amed_env.envs.features import EpisodeState, Observer
from amed_env.errors import InputError, RenderModeError
from amed_env.evaluation.store import Trial
from amed_env.hardware.costs import RAM
from amed_env.hardware.protocol import HardwareBackend
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.constraints import allowed_choices
from amed_env.problem.objective import potential, shaping
from amed_env.tasks.task import Task

RewardKind = Literal["shaped", "terminal", "predicted"]


class LayerWiseEnv(AllocationEnv):
    """Bit allocation as a walk through the layers of a network.

    ## Description
    One episode visits the L layers of the task's network in order and sets the precision of each.

    ## Action space
    `Discrete(P)`, the number of a precision in `task.precisions`: of all layers together, narrow ones first. With
    `separate=True`,
    `MultiDiscrete([W, W])`: the width of weights and that of activations. `action_masks()` tells what leaves the budget
    reachable (for `MultiDiscrete` each part by itself), of what the layer may choose on the device; of a pinned layer
    only its own precision. A forbidden action is replaced by the nearest allowed one.

    ## Observation
    `Box(0, 1, (F,), float32)`: the layer (kind, log sizes, shares, kernel, stride, weight spread), its predicted loss
    and costs at every precision (lower bounds where costs do not add up over the layers), the budgets, what is used and
    left of them, the last choice, and the mask.

    ## Rewards
    At the end the true reward: ln(float error / error) on the search split, less a penalty for an exceeded budget. With
    `reward="shaped"` every step adds gamma x Φ(s') - Φ(s) of the predicted loss, which leaves the optimum unchanged;
    `"terminal"` does not; `"predicted"` replaces the true reward by -ln(1 + predicted loss) and never evaluates.

    ## Starting state
    No layer is decided. The budget is `budget` if given; else `reset(options={"budget": 0.6})` (or a mapping) sets it;
    else it is drawn uniformly from `budget_range`.

    ## Termination
    After the last layer. A fault of the evaluator or of the device truncates the episode; its reward is then
    `objective.FAULT_REWARD`. `task.device_faults` counts those of the device.

    ## Information
    Every step: `action_clamped`, `action_taken`. At the end: `allocation`, `choices`, `quality` (the score), `accuracy`
    and `loss` (where samples have classes), `costs`, `feasible`, `repaired`, `score` (the final reward),
    `reward_vector` (see `envs.base.REWARD_VECTOR`). After a fault: `fault`.

    Args:
        task, device, bits, separate, budget, pin, budget_range, measure: See `AllocationEnv`.
        reward: `shaped`, `terminal` or `predicted`.
        gamma: Discount of the shaping; give the learner's own.
        render_mode: `ansi`, or None.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - Gymnasium declares it as an instance variable

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
        reward: RewardKind = "shaped",
        gamma: float = 1.0,
        measure: Callable[[BitAllocation], Trial] | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(task, device, bits, separate, budget, pin, budget_range, measure)
        if reward not in get_args(RewardKind):
            raise InputError(f"reward {reward!r} is unknown; use one of {', '.join(get_args(RewardKind))}.")
        if not 0 < gamma <= 1:
            raise InputError(f"gamma is {gamma}; it must be above 0 and at most 1.")
        if render_mode not in (None, "ansi"):
            raise RenderModeError(f"render_mode {render_mode!r} is unknown; use 'ansi' or None.")
        self.reward_kind, self.gamma, self.render_mode = reward, gamma, render_mode
        self.observer = Observer(self.task, self.cost_arrays, self.rest, self.reference)
        self._state = self._fresh_state()
        self._allowed = self._find_allowed()
        widths = len(self.task.bits)
        self.action_space = (
            spaces.MultiDiscrete([widths, widths]) if self.task.separate else spaces.Discrete(len(self.task.precisions))
        )
        self.observation_space = spaces.Box(0.0, 1.0, (self.observer.size,), np.float32)

    def _fresh_state(self) -> EpisodeState:
        return EpisodeState(0, [], np.zeros(len(self.metrics)), self._limit_array())

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seeds the drawing of budgets.
            options: `{"budget": 0.6}` for the first budget of the environment, or `{"budget": {"latency": 0.6}}`.

        Raises:
            InputError: If an option is unknown.
            BudgetError: If the budget cannot be met.
        """
        super().reset(seed=seed)
        self._draw_limits(options)
        self._state = self._fresh_state()
        self._allowed = self._find_allowed()
        return self._observe(), {"limits": dict(self._limits)}

    def _find_allowed(self) -> npt.NDArray[np.bool_]:
        """(P,) what may be chosen now; the least bad where nothing fits any more."""
        state = self._state
        if state.step >= len(self.task.workload):
            return np.ones(len(self.task.precisions), dtype=bool)
        here, rest = self.cost_arrays[:, state.step], self.rest[:, state.step + 1]
        choosable = self.task.choosable[state.step]
        allowed = allowed_choices(state.used, here, rest, state.limits, choosable)
        if RAM in self._limits:
            allowed &= self.task.device_costs.memory_allowed(state.choices, self._limits[RAM])
        if not allowed.any():
            # Only where budgets contradict each other in this layer; the final repair has the last word.
            limited = np.isfinite(state.limits)
            over = (state.used[limited, None] + here[limited] + rest[limited, None]) / state.limits[limited, None]
            allowed[np.where(choosable, over.max(axis=0), np.inf).argmin()] = True
        return allowed

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """What may be done now, as sb3-contrib wants it: bool (P,), or (2W,) for `MultiDiscrete`."""
        if not self.task.separate:
            return self._allowed.copy()
        grid = self._allowed.reshape(len(self.task.bits), len(self.task.bits))
        return np.concatenate([grid.any(axis=1), grid.any(axis=0)])

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Set the precision of the current layer; see the class for rewards and information.

        Raises:
            InputError: If the action is not in the action space, or the episode is over.
        """
        state = self._state
        if state.step >= len(self.task.workload):
            raise InputError("the episode is over; call reset() before the next step().")
        requested = self._choice_of(action)
        choice = requested if self._allowed[requested] else self._nearest_allowed(requested, self._allowed)
        before = potential(state.predicted_loss)
        state.used = state.used + self.cost_arrays[:, state.step, choice]
        state.predicted_loss += float(self.task.predicted_loss[state.step, choice])
        state.choices.append(choice)
        state.step += 1
        self._allowed = self._find_allowed()
        info: dict[str, Any] = {"action_clamped": choice != requested, "action_taken": choice}
        terminated, truncated, reward = state.step == len(self.task.workload), False, 0.0
        if terminated:
            if self.reward_kind == "predicted":
                reward = potential(state.predicted_loss)
            else:
                reward, truncated = self._finish(state.choices, info)
            terminated = not truncated
        if self.reward_kind == "shaped" and not truncated:
            after = 0.0 if terminated else potential(state.predicted_loss)
            reward += shaping(before, after, self.gamma)
        return self._observe(), float(reward), terminated, truncated, info

    def _choice_of(self, action: Any) -> int:
        if type(action) is int and not self.task.separate and 0 <= action < len(self.task.precisions):
            return action
        try:
            valid = self.action_space.contains(np.asarray(action) if self.task.separate else operator.index(action))
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise InputError(f"action {action!r} is not in {self.action_space}.")
        if self.task.separate:
            weight, activation = (int(part) for part in action)
            return weight * len(self.task.bits) + activation
        return int(action)

    def _observe(self) -> npt.NDArray[np.float32]:
        return self.observer.observe(self._state, self._allowed)

    def render(self) -> str | None:
        """The layers decided so far, a line each (mode `ansi`)."""
        if self.render_mode is None:
            return None
        names = self.task.workload.layer_names
        lines = [f"{name}: {self.task.precisions[c]}" for name, c in zip(names, self._state.choices, strict=False)]
        return "\n".join([*lines, *(f"{name}: -" for name in names[len(lines) :])])
