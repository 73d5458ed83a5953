"""What all environments of this package share: the task, budgets of episodes, and the true reward of an allocation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from amed_env.envs.features import METRICS
from amed_env.errors import BudgetError, InputError, SearchEnded, StoreError
from amed_env.evaluation.quality import Quality
from amed_env.evaluation.store import Trial
from amed_env.hardware.protocol import HardwareBackend
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.constraints import least_rest
from amed_env.problem.objective import (
    BUDGET_METRICS,
    FAULT_REWARD,
    Budget,
    final_reward,
    fits,
    metric_of,
    parse_budgets,
)
from amed_env.tasks.make import DEFAULT_DEVICE, make_task
from amed_env.tasks.repair import repair
from amed_env.tasks.task import Task

logger = logging.getLogger(__name__)

REWARD_VECTOR = ("score", *BUDGET_METRICS)
"""Components of `info["reward_vector"]`: the score (minus it, where less is better), then minus each cost relative to
uniform 8 bit."""
_REMEMBERED_TRIALS = 20_000


def described(quality: Quality) -> dict[str, float]:
    """What `info` has of a quality: `quality` (its score); `accuracy` and `loss` where samples have classes."""
    values = {"quality": quality.score}
    if quality.correct is not None:
        values["accuracy"] = quality.accuracy
    if quality.loss is not None:
        values["loss"] = quality.loss
    return values


def _names(budget_range: object) -> list[str]:
    return [name for name in budget_range if isinstance(name, str)] if isinstance(budget_range, Mapping) else []


def budget_option(options: Mapping[str, Any] | None) -> Any:
    """The budget in the options of `reset`, or None.

    Raises:
        InputError: If there is another option.
    """
    unknown = sorted(map(repr, set(options or {}) - {"budget"}))
    if unknown:
        raise InputError(f"reset: unknown option {', '.join(unknown)}; the only one is 'budget'.")
    return (options or {}).get("budget")


class AllocationEnv(gym.Env[npt.NDArray[np.float32], Any]):
    """Base of the environments; its arguments are those of every one of them.

    Args:
        task: A task, or the name of one.
        device: Device of a task that is given by name.
        bits: Widths of a task that is given by name.
        separate: Whether weights and activations are chosen apart, for a task that is given by name.
        budget: Fixed budgets, `{"latency": 0.5}`; None draws one for every episode unless the task has its own.
        pin: Layers that keep a width, `{"first": 8, "last": 8}`, for a task that is given by name.
        budget_range: Budget name to smallest and largest factor of the 8-bit cost to draw from; by default latency (or
            the first of the usual metrics that the device has) from the smallest reachable to 1.
        measure: What evaluates a whole allocation; by default the task itself, each allocation only once unless its
            network is in training.

    Attributes:
        task: The task.
        metrics: The M metrics that count: `features.METRICS`, and those of further budgets that it is made with.
        cost_arrays: (M, L, P) costs in their order; lower bounds where they do not add up.
        reference: (M,) cost of the uniform 8-bit network.
        rest: (M, L + 1) the least that the layers from t on can cost.
        ranges: Budget name to the smallest and largest factor that is drawn; empty where budgets are fixed.
    """

    def __init__(
        self,
        task: str | Task,
        device: str | Path | HardwareBackend | None,
        bits: Sequence[int] | None,
        separate: bool,
        budget: Mapping[str, str | float] | Sequence[str] | None,
        pin: Mapping[str, Any] | Sequence[str] | None,
        budget_range: Mapping[str, tuple[float, float]] | None,
        measure: Callable[[BitAllocation], Trial] | None,
    ) -> None:
        if isinstance(task, Task):
            if device is not None or bits is not None or separate or pin is not None:
                raise InputError(
                    "device, bits, separate and pin belong to the task; give them to make_task, or give the task "
                    "by its name."
                )
            self.task = task if budget is None else task.with_budget(budget)
        else:
            self.task = make_task(
                task,
                device=DEFAULT_DEVICE if device is None else device,
                bits=bits,
                separate=separate,
                budget=budget,
                pin=pin,
            )
        self._widths = np.asarray(self.task.precisions, dtype=float)
        asked = [*self.task.limits, *(metric_of(name) for name in _names(budget_range))]
        self.metrics = tuple(dict.fromkeys((*METRICS, *asked)))
        self._measure = measure
        self._trials: dict[BitAllocation, Trial] = {}
        self.cost_arrays, self.reference = self._cost_arrays()
        self.rest = least_rest(self.cost_arrays, self.task.choosable)
        self.ranges = self._budget_ranges(budget_range)
        self._limits: dict[str, float] = dict(self.task.limits)

    def _cost_arrays(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(M, L, P) costs and (M,) reference; what a device does not report costs nothing.

        Where costs do not add up these are lower bounds, so that the mask forbids only what nothing can make up for.
        """
        empty = np.zeros((len(self.task.workload), len(self.task.precisions)))
        costs = np.stack([self.task.device_costs.least_table.get(metric, empty) for metric in self.metrics])
        known = self.task.reference_cost.metrics
        reference = [
            known.get(metric) or float(table.max(axis=1).sum()) or 1.0
            for metric, table in zip(self.metrics, costs, strict=True)
        ]
        return costs, np.asarray(reference)

    def _budget_ranges(self, budget_range: Mapping[str, tuple[float, float]] | None) -> dict[str, tuple[float, float]]:
        if self.task.budgets:
            if budget_range is not None:
                raise BudgetError("give either a fixed budget or a budget_range, not both.")
            return {}
        smallest = dict(zip(BUDGET_METRICS, self.rest[:, 0] / self.reference, strict=False))
        if budget_range is None:
            name = next((name for name in BUDGET_METRICS if smallest[name] > 0), "memory")
            known = self.task.device_costs.smallest_known(BUDGET_METRICS[name])
            least = smallest[name] if known is None else known / self._reference_of(name)
            least = float(least) * (1 + 1e-6)  # so that rounding leaves it reachable
            return {name: (min(1.0, least), max(1.0, least))} if least <= 1 else {name: (least, least)}
        if not isinstance(budget_range, Mapping):
            raise BudgetError(f"budget_range is {budget_range!r}; give a mapping such as {{'latency': (0.3, 0.9)}}.")
        ranges = {}
        for name, pair in budget_range.items():
            if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
                raise BudgetError(f"budget_range {name}: {pair!r} is no range; give the smallest and the largest.")
            low, high = pair
            Budget(name, high)
            if not 0 < low <= high:
                raise BudgetError(f"budget_range {name}: ({low}, {high}) is no range; give 0 < smallest <= largest.")
            self.task.resolve_limits([Budget(name, low)])
            ranges[name] = (float(low), float(high))
        return ranges

    def _draw_limits(self, options: dict[str, Any] | None) -> None:
        """Set the limits of an episode: from the options of `reset`, else the fixed ones, else by chance.

        Raises:
            InputError: If an option is unknown.
            BudgetError: If the budget cannot be met.
        """
        budget = budget_option(options)
        if budget is not None:
            self._limits = self.limits_of(budget)
        elif self.ranges:
            drawn = {name: self.np_random.uniform(low, high) for name, (low, high) in self.ranges.items()}
            self._limits = {metric_of(name): value * self._reference_of(name) for name, value in drawn.items()}
        else:
            self._limits = dict(self.task.limits)

    def _reference_of(self, name: str) -> float:
        """What factors of a budget refer to."""
        return float(self.reference[self.metrics.index(metric_of(name))])

    def _limit_array(self) -> npt.NDArray[np.float64]:
        """(M,) limits in the order of `metrics`; infinity where there is none."""
        return np.asarray([self._limits.get(metric, np.inf) for metric in self.metrics])

    def limits_of(self, budget: Any) -> dict[str, float]:
        """Limits by metric from the option of `reset`; see `budgets_of`.

        Raises:
            BudgetError: If it is malformed, cannot be met, or is on a metric that observations have no place for.
        """
        limits = self.task.resolve_limits(self.budgets_of(budget))
        for metric in limits:
            if metric not in self.metrics:
                raise BudgetError(
                    f"this environment was made without a budget on {metric}, so its observations have no place for "
                    "one; name it in budget or budget_range."
                )
        return limits

    def budgets_of(self, budget: Any) -> tuple[Budget, ...]:
        """Budgets from the option of `reset`: a mapping, or a number for the environment's first budget.

        Raises:
            BudgetError: If a number is given for an environment without any budget, or a budget is malformed.
        """
        if isinstance(budget, Mapping):
            return parse_budgets(budget)
        names = [known.name for known in self.task.budgets] or list(self.ranges)
        if not names:
            raise BudgetError(f"this environment has no budget that {budget!r} could be a value of; name it.")
        return parse_budgets({names[0]: budget})

    def true_reward(self, choices: Sequence[int], limits: Mapping[str, float]) -> float:
        """The reward of a whole allocation, evaluated as at the end of an episode; `FAULT_REWARD` after a fault.

        Args:
            choices: (L,) numbers of precisions.
            limits: Limits of that episode, by metric.
        """
        self._limits = dict(limits)
        return self._finish(choices, {})[0]

    def _finish(self, requested: Sequence[int], info: dict[str, Any]) -> tuple[float, bool]:
        """The true reward of a whole allocation, and whether a fault cut the episode off; `info` gets the details."""
        try:
            choices, info["repaired"] = self.within_limits(self.task.nearest_choosable(requested))
            trial = self._trial(self.task.allocation(choices))
            gain = self.task.gain(trial.quality)
        except (SearchEnded, StoreError):
            raise
        except Exception as error:
            logger.warning("the episode is cut off: %s: %s", type(error).__name__, error)
            info["fault"] = f"{type(error).__name__}: {error}"
            return FAULT_REWARD, True
        reward = final_reward(gain, trial.costs, self._limits)
        ratios = [trial.costs.get(metric, 0.0) / self.reference[column] for column, metric in enumerate(METRICS)]
        info |= {
            "allocation": trial.allocation,
            "choices": tuple(int(c) for c in choices),
            **described(trial.quality),
            "costs": dict(trial.costs),
            "feasible": fits(trial.costs, self._limits),
            "score": reward,
            "reward_vector": np.asarray([-trial.quality.order[0], *(-ratio for ratio in ratios)], dtype=np.float32),
        }
        return reward, False

    def within_limits(self, choices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], bool]:
        """The allocation that an episode with these choices would be scored by, and whether it was repaired."""
        if all(metric in self.task.costs for metric in self._limits):
            rows = np.arange(len(choices))
            costs = {metric: float(table[rows, choices].sum()) for metric, table in self.task.costs.items()}
        else:
            costs = dict(self.task.cost(self.task.allocation(choices)).metrics)
        if fits(costs, self._limits):
            return choices, False
        repaired = repair(self.task, choices, self._limits)
        return (choices, False) if repaired is None else (repaired, True)

    def _nearest_allowed(self, requested: int, allowed: npt.NDArray[np.bool_]) -> int:
        """The precision itself if it is allowed (P,), else the nearest that is; of two equally near the narrower."""
        distance = np.abs(self._widths - self._widths[requested]).sum(axis=1)
        return int(np.where(allowed, distance, np.inf).argmin())

    @property
    def measures_itself(self) -> bool:
        """Whether allocations are evaluated by a function that was given, and not by the task."""
        return self._measure is not None

    def _trial(self, allocation: BitAllocation) -> Trial:
        if self._measure is not None:
            return self._measure(allocation)
        if self.task.evaluator.learns:
            return self.task.measure(allocation)
        if allocation not in self._trials:
            if len(self._trials) >= _REMEMBERED_TRIALS:
                self._trials.clear()
            self._trials[allocation] = self.task.measure(allocation)
        return self._trials[allocation]
