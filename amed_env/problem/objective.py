"""Budgets, and how quality and cost become a reward: pure functions and small immutable values.

What an allocation's quality is worth is the gain of its score (`problem.score`), a log-ratio of errors.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real

from amed_env.errors import BudgetError, UnknownNameError
from amed_env.problem.units import unit_factor, units_like
from amed_env.support.text import repeated

TOLERANCE = 1e-9
"""Relative slack of every comparison with a limit, as sums of floats depend on their order."""
REFERENCE_BITS = 8
"""Relative budgets are factors of the cost at this uniform width."""
BUDGET_METRICS = {"latency": "latency_ms", "energy": "energy_uj", "memory": "weight_kib", "bops": "bops"}
"""Budgets with a name of their own, and the metric that each limits. Any other metric of a device is limited under the
metric's name."""

FURTHER_METRICS = {"flash": "flash_kib", "ram": "ram_kib"}
"""Further budgets with a name of their own. They are apart, as environments, results of benchmarks and charts have a
place for each of the first four."""
_METRIC_OF = {**BUDGET_METRICS, **FURTHER_METRICS}
_METRIC_UNITS = {"latency": "ms", "energy": "uJ", "memory": "KiB", "bops": "bops", "flash": "KiB", "ram": "KiB"}
"""Units of these metrics on every device; those of other metrics are what the device declares."""
_NAME_OF_METRIC = {metric: name for name, metric in _METRIC_OF.items()}

VIOLATION_PENALTY = 5.0
"""Reward lost when a budget is exceeded by as much as the budget itself: more than `Score.gain` differs between
guessing and perfection (4.5 with ten classes; see `score.LEAST_GAIN`), so that no quality pays for twice the budget."""
FAULT_REWARD = -5.0
"""Reward of an episode that a fault of the evaluator or the device ended; below the gain of a guessing network."""

_VALUE = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class Budget:
    """A limit on one metric.

    Attributes:
        name: `latency`, `energy`, `memory` (of weights), `bops`, `flash`, `ram`, or the name of another metric of the
            device.
        value: The limit: a factor of the reference cost (of uniform 8 bit, see `tasks.device_costs`), or a cost.
        relative: Whether `value` is such a factor.
        unit: Unit of an absolute value; None for the metric's own.
    """

    name: str
    value: float
    relative: bool = True
    unit: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise BudgetError(f"a budget has the name of a metric, not {self.name!r}; write latency=0.6.")
        object.__setattr__(self, "name", _NAME_OF_METRIC.get(self.name, self.name))
        if isinstance(self.value, bool) or not isinstance(self.value, Real):
            raise BudgetError(f"budget {self.name}: {self.value!r} is no number.")
        if not isinstance(self.value, int | float):  # NumPy's numbers
            object.__setattr__(self, "value", float(self.value))
        if not 0 < self.value <= sys.float_info.max:
            raise BudgetError(f"budget {self.name}: {self.value} must be a positive, finite number.")
        if self.relative and self.unit is not None:
            raise BudgetError(f"budget {self.name}: a factor of the reference cost has no unit.")

    @property
    def metric(self) -> str:
        """The metric that is limited."""
        return metric_of(self.name)

    @classmethod
    def parse(cls, name: str, value: str | float) -> Budget:
        """A budget from a name and a number or text: `("latency", 0.6)`, `("memory", "96KiB")`, `("luts", "900 LUT")`.

        A number without a unit is a factor of the reference cost. Whether the device has such a metric, and in which
        unit, is seen when the budget meets it; see `resolve`.

        Raises:
            BudgetError: If the value is no positive number, or its unit is known not to be one of the metric's.
        """
        if not isinstance(value, str):
            return cls(name, value)
        match = _VALUE.fullmatch(value.strip())
        if match is None:
            raise BudgetError(
                f"budget {name}={value}: write a factor of the 8-bit cost ({name}=0.6) or a value with a "
                f"unit ({name}=12{_METRIC_UNITS.get(_NAME_OF_METRIC.get(name, name), 'ms')})."
            )
        number, unit = float(match.group(1)), match.group(2)
        if not unit:
            return cls(name, number)
        budget = cls(name, number, relative=False, unit=unit)
        return budget.in_unit(_METRIC_UNITS[budget.name]) if budget.name in _METRIC_UNITS else budget

    def in_unit(self, declared: str) -> Budget:
        """The same limit in the metric's own unit.

        Args:
            declared: That unit.

        Raises:
            BudgetError: If the budget is in a unit that measures something else.
        """
        if self.unit is None:
            return self
        factor = unit_factor(self.unit, declared)
        if factor is None:
            raise BudgetError(
                f"budget {self.name}={self.value:g}{self.unit}: unknown unit {self.unit!r}; use one of "
                f"{', '.join(units_like(declared))}, or no unit for a factor of the 8-bit cost."
            )
        return Budget(self.name, self.value * factor, relative=False)

    def __str__(self) -> str:
        return f"{self.name}={self.value:g}" if self.relative else f"{self.metric}<={self.value:g}{self.unit or ''}"


def metric_of(name: str) -> str:
    """The metric that a budget of a name limits."""
    return _METRIC_OF.get(name, name)


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


def resolve(
    budgets: Iterable[Budget], reference: Mapping[str, float], units: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Limits by metric, in the metric's unit.

    Args:
        budgets: The budgets.
        reference: Cost of the reference allocation by metric.
        units: Units of the device's own metrics.

    Raises:
        UnknownNameError: If there is no such budget and the device reports no such metric.
        BudgetError: If the device does not report a metric that is limited, reports 0 where a factor is limited, or has
            it in another unit.
    """
    limits = {}
    for budget in budgets:
        check_reported(budget, reference)
        scale = reference[budget.metric]
        if budget.relative and not scale > 0:
            raise BudgetError(
                f"budget {budget}: this device reports {scale:g} as {budget.metric} of uniform "
                f"{REFERENCE_BITS} bit, of which no factor is a limit; leave the budget out, or give it with a unit."
            )
        own = budget.in_unit((units or {}).get(budget.metric, ""))
        limits[budget.metric] = own.value * scale if budget.relative else own.value
    return limits


def check_reported(budget: Budget, metrics: Collection[str]) -> None:
    """Check that a device reports what a budget limits.

    Raises:
        UnknownNameError: If there is no such budget and no such metric.
        BudgetError: If the device does not report the metric.
    """
    if budget.metric in metrics:
        return
    if budget.name not in _METRIC_OF:
        names = [_NAME_OF_METRIC.get(metric, metric) for metric in metrics]
        raise UnknownNameError("budget", budget.name, names, "It is the name of a metric that the device reports.")
    hint = ""
    if budget.metric == FURTHER_METRICS["ram"]:
        hint = " Memory is known of networks, not of tables and lists of layers."
    raise BudgetError(
        f"budget {budget.name}: this device reports no {budget.metric}; it reports {', '.join(sorted(metrics))}.{hint}"
    )


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
