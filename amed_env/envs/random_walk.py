"""`AMED/RandomWalk-v0`: AMED's own process, a walk from allocation to allocation."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from amed_env.envs.base import AllocationEnv, described
from amed_env.errors import InputError, RenderModeError, SearchEnded, StoreError
from amed_env.evaluation.quality import Quality
from amed_env.evaluation.store import Trial
from amed_env.hardware.protocol import HardwareBackend
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.objective import FAULT_REWARD, TOLERANCE, VIOLATION_PENALTY, final_reward, fits, violation
from amed_env.problem.quality_score import QualityScore, latency_ratio
from amed_env.tasks.task import Task

logger = logging.getLogger(__name__)

WalkReward = Literal["zeta", "score"]
_MOVES_A_LAYER = 4


class RandomWalkEnv(AllocationEnv):
    """Bit allocation as a walk over whole allocations.

    ## Description
    The state is an allocation of all L layers; a step gives one layer another precision and evaluates what it led to.
    After AMED (Kimhi, Rozen, Mendelson, Baskin: arXiv 2205.15437), without training between the moves.

    ## Action space
    `Discrete(L x P)`: `layer * P + choice` gives that layer the precision `choice` of `task.precisions` (narrow ones
    first). To set what a layer has already is to stay. `action_masks()` forbids what would leave the budgets; while
    they are exceeded, whatever does not lower the violation. A forbidden action is replaced by the nearest allowed
    precision of the same layer, or by staying. Where costs do not add up the masks know lower bounds only, and what
    exceeds a budget all the same costs reward.

    ## Observation
    `Box(0, 1, (3 L P + 20,), float32)`: for every layer and precision whether it is set, whether it may be set, and its
    predicted loss; for latency, energy, memory and bops whether it is limited, the limit and the present cost (lower
    bounds where they do not add up) as factors of uniform 8 bit, and how much of the limit is used, four more for every
    further metric that has a budget; then the score of the state (accuracy; exp(-score) of a divergence or loss) and
    exp(-loss), both 0 after a fault, the share of the moves that are left, and whether the budgets hold.

    ## Rewards
    What a move gains. `reward="zeta"`: log10(ζ before / ζ after) of the quality score `quality`; `reward="score"`: the
    change of the score's gain, ln(reference error / error), which is the final reward of the other environments.
    Either way less the growth of the penalty for exceeded budgets; so an episode returns the value of its last
    allocation less that of its first.

    ## Starting state
    Uniform 8 bit but for pinned layers (the widest precision where there is no 8 bit), whether within the budgets or
    not; `reset(options={"start": allocation})` sets another one. Budgets are those of `AMED/LayerWise-v0`.

    ## Termination
    After `moves` steps. A fault of the evaluator or of the device truncates the episode, at the first step if it
    befell the start; its reward is then `objective.FAULT_REWARD`.

    ## Information
    At reset `limits`. Every step: `action_clamped`, `action_taken`, `allocation`, `choices`, `quality` (the score),
    `accuracy` and `loss` (where samples have classes), `costs`, `feasible`, `zeta`, `score`. After a fault: `fault`.

    Args:
        task, device, bits, separate, budget, pin, budget_range, measure: See `AllocationEnv`; `measure` is asked at
            every step.
        moves: Steps of an episode; by default four for every layer.
        reward: `zeta` or `score`.
        quality: The quality score ζ, or its fields; by default `QualityScore()`.
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
        moves: int | None = None,
        reward: WalkReward = "zeta",
        quality: QualityScore | Mapping[str, Any] | None = None,
        measure: Callable[[BitAllocation], Trial] | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(task, device, bits, separate, budget, pin, budget_range, measure)
        if reward not in get_args(WalkReward):
            raise InputError(f"reward {reward!r} is unknown; use one of {', '.join(get_args(WalkReward))}.")
        if moves is not None and (isinstance(moves, bool) or not isinstance(moves, int) or moves < 1):
            raise InputError(f"moves is {moves!r}; give a whole number of at least 1, or None.")
        if render_mode not in (None, "ansi"):
            raise RenderModeError(f"render_mode {render_mode!r} is unknown; use 'ansi' or None.")
        self.reward_kind, self.render_mode = reward, render_mode
        self.quality = quality if isinstance(quality, QualityScore) else QualityScore.of(quality or {})
        layers, choices = len(self.task.workload), len(self.task.precisions)
        self.moves = _MOVES_A_LAYER * layers if moves is None else moves
        self.action_space = spaces.Discrete(layers * choices)
        self.observation_space = spaces.Box(0.0, 1.0, (3 * layers * choices + 4 * len(self.metrics) + 4,), np.float32)
        self._rows = np.arange(layers)
        largest = max(float(self.task.predicted_loss.max()), 1e-6)
        self._predicted = np.log1p(self.task.predicted_loss).ravel() / math.log1p(largest)
        self._choices = self.task.space.start_choices()
        self._left = 0
        self._trial_here: Trial | None = None
        self._fault: str | None = None
        self._allowed = self._find_allowed()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode, and evaluate where it starts.

        Args:
            seed: Seeds the drawing of budgets.
            options: `budget` as in `AMED/LayerWise-v0`; `start`, a `BitAllocation` to start from.

        Raises:
            InputError: If an option is unknown.
            AllocationError: If the start is not made of the task's choices.
            BudgetError: If the budget cannot be met.
        """
        super().reset(seed=seed)
        rest = dict(options or {})
        start = rest.pop("start", None)
        if start is not None and not isinstance(start, BitAllocation):
            raise InputError(f"reset: the option 'start' is {start!r}; give a BitAllocation.")
        choices = self.task.space.start_choices() if start is None else self.task.choices(start)
        unknown = sorted(set(rest) - {"budget"})
        if unknown:
            raise InputError(f"reset: unknown option {', '.join(map(repr, unknown))}; use 'budget' or 'start'.")
        self._draw_limits(rest)
        self._choices, self._left = choices, self.moves
        self._allowed = self._find_allowed()
        self._trial_here, self._fault = self._evaluate()
        return self._observe(), {"limits": dict(self._limits)}

    def _evaluate(self) -> tuple[Trial | None, str | None]:
        """The trial of the present allocation, or None and the fault."""
        try:
            _ = self.task.reference_score  # what the score is compared with
            return self._trial(self.task.allocation(self._choices)), None
        except (SearchEnded, StoreError):
            raise
        except Exception as error:
            logger.warning("the episode is cut off: %s: %s", type(error).__name__, error)
            return None, f"{type(error).__name__}: {error}"

    def _violations(self, totals: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """By how much known costs (M, ...) exceed the limits, as in `objective.violation`: float64 (...)."""
        limits = self._limit_array()
        limited = np.isfinite(limits)
        over = totals[limited] / limits[limited].reshape(-1, *[1] * (totals.ndim - 1)) - 1.0
        return np.asarray(np.where(over > TOLERANCE, over, 0.0).sum(axis=0))

    def _find_allowed(self) -> npt.NDArray[np.bool_]:
        """Moves that stay within the budgets, or that come nearer to them: bool (L, P)."""
        here = self.cost_arrays[:, self._rows, self._choices]
        now = self._violations(here.sum(axis=1))
        after = self._violations(here.sum(axis=1)[:, None, None] - here[:, :, None] + self.cost_arrays)
        allowed = self.task.choosable & (after == 0.0 if now == 0.0 else after < now * (1 - TOLERANCE))
        if not allowed.any():  # budgets that contradict each other, seen from here
            allowed[self._rows, self._choices] = True
        return np.asarray(allowed)

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """What may be done now, as sb3-contrib wants it: bool (L x P,)."""
        return self._allowed.reshape(-1).copy()

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Give one layer another precision; see the class for rewards and information.

        Raises:
            InputError: If the action is not in the action space, or the episode is over.
        """
        if self._left == 0:
            raise InputError("the episode is over; call reset() before the next step().")
        layer, requested = self._move_of(action)
        before = self._trial_here
        taken = int(self._choices[layer])
        if before is not None:
            if self._allowed[layer].any():
                taken = self._nearest_allowed(requested, self._allowed[layer])
            self._choices = self._choices.copy()
            self._choices[layer] = taken
            self._allowed = self._find_allowed()
            self._trial_here, self._fault = self._evaluate()
        info: dict[str, Any] = {
            "action_clamped": taken != requested,
            "action_taken": layer * len(self.task.precisions) + taken,
        }
        trial = self._trial_here
        if before is None or trial is None:
            self._left = 0
            info["fault"] = self._fault
            return self._observe(), FAULT_REWARD, False, True, info
        self._left -= 1
        info |= self._described(trial)
        return self._observe(), self._value(trial) - self._value(before), self._left == 0, False, info

    def _move_of(self, action: Any) -> tuple[int, int]:
        try:
            number = operator.index(action)
        except TypeError:
            number = -1
        if isinstance(action, bool) or not 0 <= number < len(self.task.workload) * len(self.task.precisions):
            raise InputError(f"action {action!r} is not in {self.action_space}.")
        layer, choice = divmod(number, len(self.task.precisions))
        return layer, choice

    def _zeta(self, trial: Trial) -> float:
        ratio = latency_ratio(trial.costs, self.task.reference_cost.metrics)
        return self.quality.zeta_of(trial.quality, ratio)

    def _score(self, trial: Trial) -> float:
        return final_reward(self.task.gain(trial.quality), trial.costs, self._limits)

    def _value(self, trial: Trial) -> float:
        """What an allocation is worth; rewards are differences of it."""
        if self.reward_kind == "score":
            return self._score(trial)
        return -math.log10(self._zeta(trial)) - VIOLATION_PENALTY * violation(trial.costs, self._limits)

    def _described(self, trial: Trial) -> dict[str, Any]:
        return {
            "allocation": trial.allocation,
            "choices": tuple(int(choice) for choice in self._choices),
            **described(trial.quality),
            "costs": dict(trial.costs),
            "feasible": fits(trial.costs, self._limits),
            "zeta": self._zeta(trial),
            "score": self._score(trial),
        }

    def _observe(self) -> npt.NDArray[np.float32]:
        used = self.cost_arrays[:, self._rows, self._choices].sum(axis=1)
        limits, trial = self._limit_array(), self._trial_here
        limited = np.isfinite(limits)
        one_hot = np.zeros(self.task.choosable.shape)
        one_hot[self._rows, self._choices] = 1.0
        values = np.concatenate(
            [
                one_hot.ravel(),
                self._allowed.ravel(),
                self._predicted,
                limited,
                np.where(limited, limits / self.reference, 1.0),
                used / self.reference,
                np.where(limited, used / np.where(limited, limits, 1.0), 0.0),
                (0.0, 0.0) if trial is None else self._seen(trial.quality),
                (self._left / self.moves, float(trial is not None and fits(trial.costs, self._limits))),
            ]
        )
        return np.asarray(np.clip(values, 0.0, 1.0), dtype=np.float32)

    def _seen(self, quality: Quality) -> tuple[float, float]:
        return quality.scored_by.goodness(quality.score), math.exp(-quality.cross_entropy)

    def render(self) -> str | None:
        """The present allocation, a layer a line (mode `ansi`)."""
        if self.render_mode is None:
            return None
        allocation = self.task.allocation(self._choices)
        return "\n".join(f"{name}: {precision}" for name, precision in allocation.items())
