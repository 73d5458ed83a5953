"""Budgets, and how quality and cost become a reward: pure functions and small immutable values.

What an allocation's quality is worth is the gain of its score (`problem.score`), a log-ratio of errors.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real

from amed_env.errors import BudgetError, UnknownNameError
from amed_env.support.text import repeated

TOLERANCE = 1e-9
"""Relative slack of every comparison with a limit, as sums of floats depend on their order."""
REFERENCE_BITS = 8
"""Relative budgets are factors of the cost at this uniform width."""
BUDGET_METRICS = {"latency": "latency_ms", "energy": "energy_uj", "memory": "weight_kib", "bops": "bops"}
"""Budget name to the metric that it limits."""

UNITS: dict[str, dict[str, float]] = {
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "energy": {"nj": 1e-3, "uj": 1.0, "mj": 1e3, "j": 1e6},
    "memory": {"b": 1 / 1024, "kb": 1000 / 1024, "kib": 1.0, "mb": 1e6 / 1024, "mib": 1024.0},
    "bops": {"bops": 1.0, "kbops": 1e3, "mbops": 1e6, "gbops": 1e9},
}
"""Units of absolute budgets, in lower case, with their factor to the metric's own unit."""

VIOLATION_PENALTY = 5.0
"""Reward lost when a budget is exceeded by as much as the budget itself: more than `Score.gain` differs between
guessing and perfection (4.5 with ten classes; see `score.LEAST_GAIN`), so that no quality pays for twice the budget."""
FAULT_REWARD = -5.0
"""Reward of an episode that a fault of the evaluator or the device ended; below the gain of a guessing network."""

_NUMBER = re.compile(r"([0-9.eE+-]+?)\s*([a-zA-Zµμ]*)")


@dataclass(frozen=True)
class Budget:
    """A limit on one metric.

    Attributes:
        name: `latency`, `energy`, `memory` (of weights) or `bops`.
        value: The limit: a factor of the uniform 8-bit cost, or in the metric's unit.
        relative: Whether `value` is such a factor.
    """

    name: str
    value: float
    relative: bool = True

    def __post_init__(self) -> None:
        if self.name not in BUDGET_METRICS:
            raise UnknownNameError("budget", self.name, BUDGET_METRICS)
        if isinstance(self.value, bool) or not isinstance(self.value, Real):
            raise BudgetError(f"budget {self.name}: {self.value!r} is no number.")
        if not isinstance(self.value, int | float):  # NumPy's numbers
            object.__setattr__(self, "value", float(self.value))
        if not 0 < self.value <= sys.float_info.max:
            raise BudgetError(f"budget {self.name}: {self.value} must be a positive, finite number.")

    @property
    def metric(self) -> str:
        """The metric that is limited, with its unit in the name."""
        return BUDGET_METRICS[self.name]

    @classmethod
    def parse(cls, name: str, value: str | float) -> Budget:
        """A budget from a name and a number or text: `("latency", 0.6)`, `("memory", "96KiB")`.

        Raises:
            BudgetError: If the value is no positive number, or its unit is not one of this budget's.
            UnknownNameError: If the name is none of the budgets.
        """
        if not isinstance(value, str):
            return cls(name, value)
        if name not in BUDGET_METRICS:
            raise UnknownNameError("budget", name, BUDGET_METRICS)
        match = _NUMBER.fullmatch(value.strip())
        try:
            number = float(match.group(1)) if match else math.nan
        except ValueError:
            number = math.nan
        if match is None or math.isnan(number):
            raise BudgetError(
                f"budget {name}={value}: write a factor of the 8-bit cost ({name}=0.6) or a value with a "
                f"unit ({name}=12{_unit_example(name)})."
            )
        # Two characters look like this prefix: the micro sign, and the Greek letter.
        unit = match.group(2).replace("µ", "u").replace("μ", "u").lower()
        if not unit:
            return cls(name, number)
        if unit not in UNITS[name]:
            raise BudgetError(
                f"budget {name}={value}: unknown unit {match.group(2)!r}; use one of "
                f"{', '.join(UNITS[name])}, or no unit for a factor of the 8-bit cost."
            )
        return cls(name, number * UNITS[name][unit], relative=False)

    def __str__(self) -> str:
        return f"{self.name}={self.value:g}" if self.relative else f"{self.metric}<={self.value:g}"


def _unit_example(name: str) -> str:
    return {"latency": "ms", "energy": "uJ", "memory": "KiB", "bops": "Gbops"}[name]


def parse_budgets(budgets: Mapping[str, str | float] | Iterable[str] | None) -> tuple[Budget, ...]:
    """Budgets from a mapping (`{"latency": 0.5}`) or from texts (`["latency=0.5", "memory=96KiB"]`).

    Raises:
        BudgetError: If a text is malformed or a budget is repeated.
    """
    if budgets is None:
        return ()
    if isinstance(budgets, str):
        budgets = [budgets]
    if not isinstance(budgets, Iterable):
        raise BudgetError(f"the budget is {budgets!r}; say of what it is one, for example {{'latency': {budgets!r}}}.")
    pairs: list[tuple[str, str | float]] = []
    if isinstance(budgets, Mapping):
        pairs = list(budgets.items())
    else:
        for text in budgets:
            name, separator, value = text.partition("=")
            if not separator or not value.strip():
                raise BudgetError(f"budget {text!r}: write it as name=value, for example latency=0.6.")
            pairs.append((name.strip(), value))
    parsed = tuple(Budget.parse(name, value) for name, value in pairs)
    twice = repeated(budget.name for budget in parsed)
    if twice:
        raise BudgetError(f"budget {', '.join(twice)} is given more than once; give each once.")
    return parsed


def resolve(budgets: Iterable[Budget], reference: Mapping[str, float]) -> dict[str, float]:
    """Limits by metric, in the metric's unit.

    Args:
        budgets: The budgets.
        reference: Cost of the uniform 8-bit network by metric.

    Raises:
        BudgetError: If the device does not report a metric that is limited, or reports 0 where a factor is limited.
    """
    limits = {}
    for budget in budgets:
        if budget.metric not in reference:
            raise BudgetError(
                f"budget {budget.name}: this device reports no {budget.metric}; it reports "
                f"{', '.join(sorted(reference))}."
            )
        if budget.relative and not reference[budget.metric] > 0:
            raise BudgetError(
                f"budget {budget}: this device reports {reference[budget.metric]:g} as {budget.metric} of uniform "
                f"{REFERENCE_BITS} bit, of which no factor is a limit; leave the budget out, or give it with a unit."
            )
        limits[budget.metric] = budget.value * reference[budget.metric] if budget.relative else budget.value
    return limits


def fits(costs: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    """Whether every limited metric is within its limit, but for a rounding error of sums (one part in 10^9)."""
    return all(costs[metric] <= limit * (1 + TOLERANCE) for metric, limit in limits.items())


def violation(costs: Mapping[str, float], limits: Mapping[str, float]) -> float:
    """By how much budgets are exceeded: the sum of max(0, cost / limit - 1); 0 where `fits`."""
    if fits(costs, limits):
        return 0.0
    return sum(max(0.0, costs[metric] / limit - 1.0) for metric, limit in limits.items())


def final_reward(gain: float, costs: Mapping[str, float], limits: Mapping[str, float]) -> float:
    """The true reward of a whole allocation: the gain of its score, less a penalty for what exceeds the budgets."""
    return gain - VIOLATION_PENALTY * violation(costs, limits)


def potential(predicted_loss: float) -> float:
    """Potential of a state in which the layers chosen so far add up to a predicted loss (nats): -ln(1 + loss).

    The logarithm keeps it commensurate with the gain of a score, which is a log-ratio too.
    """
    return -math.log1p(max(0.0, predicted_loss))


def shaping(before: float, after: float, gamma: float) -> float:
    """Potential-based shaping, gamma x after - before, which leaves the optimal policy unchanged (Ng et al. 1999).

    Args:
        before: Potential of the state that is left.
        after: Potential of the state that is entered; 0 for a terminal state, or the optimum could move.
        gamma: The discount that the learner uses.
    """
    return gamma * after - before
