"""Many episodes of `AMED/LayerWise-v0` at once, without a loop over them.

All episodes have as many steps as the network has layers, so they are always at the same layer, and a step is a few
operations on arrays of all episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from amed_env.envs.base import REWARD_VECTOR
from amed_env.envs.features import METRICS, BatchState
from amed_env.envs.layer_wise import LayerWiseEnv
from amed_env.errors import BudgetError, InputError
from amed_env.problem.objective import TOLERANCE, VIOLATION_PENALTY, metric_of
from amed_env.tasks.repair import repair

FloatArray = npt.NDArray[np.float64]
RewardOf = Callable[[npt.NDArray[np.int64]], FloatArray]


def why_not(env: LayerWiseEnv) -> str | None:
    """Why many episodes of an environment cannot be stepped at once, or None if they can."""
    if env.reward_kind == "predicted":
        return None
    if env.measures_itself:
        return "allocations are evaluated by `measure`, one after the other"
    if env.task.evaluator.complete_table() is None:
        return f"the quality of {env.task.network!r} is evaluated, not looked up"
    if any(metric not in env.task.costs for metric in env.metrics if metric not in METRICS):
        return "a budget is on what does not add up over the layers"
    if not env.task.capabilities.additive:
        return f"the costs of {env.task.device!r} do not add up over the layers"
    return None


class LayerWiseBatch:
    """N episodes that are stepped together.

    Args:
        env: The environment whose episodes they are; it is asked for its task, budgets, rewards and spaces.
        count: N.
        reward_of: What rewards whole allocations in place of the environment: from int64 (N, L) float64 (N,).

    Raises:
        InputError: If the task's quality is not in a table (unless the reward is `predicted`), or costs do not add up.
    """

    def __init__(self, env: LayerWiseEnv, count: int, reward_of: RewardOf | None = None) -> None:
        reason = None if reward_of is not None else why_not(env)
        if reason is not None:
            raise InputError(
                f"{reason}; take a task whose name begins with 'tabular/', reward='predicted', or a vector environment "
                "that steps one environment after the other (gymnasium.vector.SyncVectorEnv)."
            )
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"the number of environments is {count!r}; give a whole number of at least 1.")
        self.env, self.task, self.count = env, env.task, count
        self.layers, self.choices = env.task.choosable.shape
        self._costs = np.ascontiguousarray(env.cost_arrays.transpose(1, 2, 0))  # (L, P, M)
        self._rest = np.ascontiguousarray(env.rest.T)  # (L + 1, M)
        widths = np.asarray(self.task.precisions, dtype=np.float64)
        self._distance = np.abs(widths[:, None] - widths).sum(axis=2)
        self._rows = np.arange(count)
        self._reward_of = reward_of
        if env.reward_kind != "predicted" and reward_of is None:
            self._prepare_lookups()
        self.start(np.full((count, len(env.metrics)), np.inf))

    def _prepare_lookups(self) -> None:
        table = self.task.evaluator.complete_table()
        assert table is not None  # `why_not` has looked
        columns = np.asarray([table.precisions.index(precision) for precision in self.task.precisions])
        self._row_parts = columns[:, None] * table.strides  # (P, G)
        self._correct, self._loss = table.correct["search"], table.loss["search"]
        self._samples = table.float_quality["search"].samples
        score, reference = self.task.score, self.task.reference_score
        self._scores = table.scores("search", score)
        # There are few different scores, and each of them is as exact as in the environment itself.
        different, which = np.unique(self._scores, return_inverse=True)
        self._gains = np.asarray([score.gain(float(value), reference) for value in different])[which]
        self._all_costs = {metric: np.asarray(values) for metric, values in self.task.costs.items()}

    def start(self, limits: FloatArray) -> None:
        """Begin N episodes.

        Args:
            limits: (N, M) limits in the order of the environment's `metrics`; infinity where there is none.
        """
        shape = (self.count, self.layers)
        self.state = BatchState(0, np.zeros(shape, dtype=np.int64), np.zeros_like(limits), limits, np.zeros(self.count))
        self._limited = np.flatnonzero(np.isfinite(limits).any(axis=0))
        self._tolerant = limits[:, self._limited] * (1 + TOLERANCE)
        self._allowed = self._find_allowed()

    def draw_limits(self, rng: np.random.Generator) -> FloatArray:
        """(N, M) limits of new episodes: the fixed ones, or drawn from the environment's ranges."""
        metrics = self.env.metrics
        limits = np.full((self.count, len(metrics)), np.inf)
        for metric, limit in self.task.limits.items():
            limits[:, metrics.index(metric)] = limit
        for name, (low, high) in self.env.ranges.items():
            column = metrics.index(metric_of(name))
            limits[:, column] = rng.uniform(low, high, self.count) * self.env.reference[column]
        return limits

    def limits_of(self, budget: Any) -> FloatArray:
        """(N, M) limits from the option of `reset`: one budget for all, or a sequence of N budgets.

        Raises:
            BudgetError: If there are not as many as episodes, or one cannot be met.
        """
        several = isinstance(budget, list | tuple | np.ndarray)
        budgets = list(budget) if several else [budget]
        if several and len(budgets) != self.count:
            raise BudgetError(f"{len(budgets)} budgets for {self.count} environments; give one for each, or one.")
        rows = []
        for one in budgets:
            plain = float(one) if isinstance(one, np.number) else one
            limits = self.env.limits_of(plain)
            rows.append([limits.get(metric, np.inf) for metric in self.env.metrics])
        return np.broadcast_to(np.asarray(rows), (self.count, len(self.env.metrics))).copy()

    @property
    def over(self) -> bool:
        """Whether all layers are decided."""
        return bool(self.state.step >= self.layers)

    def limits(self) -> dict[str, FloatArray]:
        """Limits by metric, (N,) each, where there are any."""
        return {self.env.metrics[column]: self.state.limits[:, column] for column in self._limited}

    def observe(self) -> npt.NDArray[np.float32]:
        """Observations: float32 (N, F)."""
        return self.env.observer.observe_many(self.state, self._allowed)

    def masks(self) -> npt.NDArray[np.bool_]:
        """What may be done now: bool (N, P), or (N, 2W) for `MultiDiscrete`."""
        if not self.task.separate:
            return self._allowed.copy()
        grid = self._allowed.reshape(self.count, len(self.task.bits), len(self.task.bits))
        return np.concatenate([grid.any(axis=2), grid.any(axis=1)], axis=1)

    def _find_allowed(self) -> npt.NDArray[np.bool_]:
        state = self.state
        if self.over:
            return np.ones((self.count, self.choices), dtype=bool)
        limited = self._limited
        total = state.used[:, None, limited] + self._costs[state.step][:, limited] + self._rest[state.step + 1, limited]
        choosable = self.task.choosable[state.step]
        allowed = np.asarray((total <= self._tolerant[:, None, :]).all(axis=2) & choosable)
        stuck = np.flatnonzero(~allowed.any(axis=1))
        if len(stuck):
            limits = state.limits[stuck][:, None, limited]
            over = (total[stuck] / limits).max(axis=2, initial=0.0, where=np.isfinite(limits))
            allowed[stuck, np.where(choosable, over, np.inf).argmin(axis=1)] = True
        return allowed

    def step(self, actions: npt.ArrayLike) -> tuple[FloatArray, dict[str, npt.NDArray[Any]]]:
        """Set the precision of the current layer in all episodes.

        Args:
            actions: int (N,), or (N, 2) for `MultiDiscrete`.

        Returns:
            Rewards (N,), and the information of `LayerWiseEnv.step` as arrays with a row for each episode.

        Raises:
            InputError: If an action is not in the action space.
        """
        state, kind = self.state, self.env.reward_kind
        requested = self._choices_of(actions)
        taken = requested
        if not self._allowed[self._rows, requested].all():
            taken = np.where(self._allowed, self._distance[requested], np.inf).argmin(axis=1)
        before = state.predicted_loss
        state.used = state.used + self._costs[state.step, taken]
        state.predicted_loss = before + self.task.predicted_loss[state.step, taken]
        state.choices[:, state.step] = taken
        state.step += 1
        info: dict[str, Any] = {"action_clamped": taken != requested, "action_taken": taken}
        rewards = np.zeros(self.count)
        if self.over:
            if self._reward_of is not None:
                rewards = self._reward_of(state.choices)
            else:
                rewards = -np.log1p(state.predicted_loss) if kind == "predicted" else self._finish(info)
        if kind == "shaped":
            after = 0.0 if self.over else -np.log1p(state.predicted_loss)
            rewards = rewards + (self.env.gamma * after + np.log1p(before))
        self._allowed = self._find_allowed()
        return rewards, info

    def _choices_of(self, actions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        array = np.asarray(actions)
        sizes = (self.count, 2) if self.task.separate else (self.count,)
        most = len(self.task.bits) if self.task.separate else self.choices
        if array.shape != sizes or array.dtype.kind not in "iu":
            raise InputError(f"actions have shape {array.shape} and type {array.dtype}; expected integers {sizes}.")
        if array.min() < 0 or array.max() >= most:
            raise InputError(f"actions go from {array.min()} to {array.max()}; expected 0 to {most - 1}.")
        if self.task.separate:
            array = array[:, 0] * len(self.task.bits) + array[:, 1]
        return array.astype(np.int64, copy=False)

    def _finish(self, info: dict[str, Any]) -> FloatArray:
        """True rewards of whole allocations; `info` gets the details."""
        choices, limited = self.state.choices.copy(), self._limited
        layers = np.arange(self.layers)
        costs = {metric: values[layers, choices].sum(axis=1) for metric, values in self._all_costs.items()}
        repaired = np.zeros(self.count, dtype=bool)
        for row in np.flatnonzero(self._exceeded(costs)):  # only where budgets contradict each other
            limits = {self.env.metrics[c]: float(self.state.limits[row, c]) for c in limited}
            better = repair(self.task, choices[row], {m: limit for m, limit in limits.items() if np.isfinite(limit)})
            if better is not None:
                choices[row], repaired[row] = better, True
                for metric, values in self._all_costs.items():
                    costs[metric][row] = values[layers, better].sum()
        rows = self._row_parts[choices, layers].sum(axis=1)
        correct = self._correct[rows]
        exceeded = self._exceeded(costs)
        rewards: FloatArray = self._gains[rows]
        if exceeded.any():
            excess = sum(np.maximum(0.0, costs[self.env.metrics[c]] / self.state.limits[:, c] - 1.0) for c in limited)
            rewards = rewards - VIOLATION_PENALTY * np.where(exceeded, excess, 0.0)
        vector = np.zeros((self.count, len(REWARD_VECTOR)), dtype=np.float32)
        vector[:, 0] = self._scores[rows] if self.task.score.higher_is_better else -self._scores[rows]
        for column, metric in enumerate(METRICS):
            vector[:, column + 1] = -costs.get(metric, np.zeros(1)) / self.env.reference[column]
        info |= {
            "choices": choices,
            "quality": self._scores[rows],
            "accuracy": correct / self._samples,
            "loss": self._loss[rows].astype(np.float64),
            "costs": costs,
            "feasible": ~exceeded,
            "repaired": repaired,
            "score": rewards,
            "reward_vector": vector,
        }
        return rewards

    def _exceeded(self, costs: Mapping[str, FloatArray]) -> npt.NDArray[np.bool_]:
        exceeded = np.zeros(self.count, dtype=bool)
        for position, column in enumerate(self._limited):
            exceeded |= costs[self.env.metrics[column]] > self._tolerant[:, position]
        return exceeded
