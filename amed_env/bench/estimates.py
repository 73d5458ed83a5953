"""Estimates with their intervals of what a comparison shows: regrets, profiles, who beats whom.

The middle of everything is the interquartile mean over all runs of all cells; intervals of 95 % come from the
stratified bootstrap, in which every cell keeps its number of runs. All of it is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amed_env.bench.curves import REFERENCE, AgentRuns, Comparison
from amed_env.bench.truth import FloatArray
from amed_env.run_statistics import Estimate, bootstrap, improvement, performance_profile_band

RESAMPLES = 2_000
_PAIR_RESAMPLES = 400
"""Of the intervals of every pair of agents, of which there are many."""
THRESHOLDS = (0.0, *np.geomspace(0.05, 100.0, 56).round(4).tolist())
"""Regrets in accuracy points at which profiles are computed."""
_ROUNDING = 1e-9
"""Regrets are differences of whole samples; what is nearer than this is equal."""


def regret_curve(agent: AgentRuns) -> Estimate:
    """Interquartile mean of the regret after each number of evaluations: arrays (K,).

    The same runs are drawn at every point, so the interval is that of whole curves.
    """
    return _stacked([bootstrap(regrets, resamples=RESAMPLES) for regrets in agent.regrets])


def regret_at(agent: AgentRuns, comparison: Comparison, evaluations: Sequence[int]) -> list[Estimate]:
    """Interquartile mean of the regret after some numbers of evaluations, all among the comparison's points."""
    positions = np.searchsorted(comparison.points, evaluations)
    return [bootstrap(agent.regrets[position], resamples=RESAMPLES) for position in positions]


def final_regret(agent: AgentRuns) -> Estimate:
    """Interquartile mean of the regret at the end."""
    return bootstrap(agent.final, resamples=RESAMPLES)


def regret_on_test(agent: AgentRuns) -> Estimate:
    """Interquartile mean of the regret on the test split of what was best on the search split."""
    return bootstrap(agent.test_regrets, resamples=RESAMPLES)


def change_on_test(agent: AgentRuns) -> Estimate:
    """Interquartile mean over runs of the regret on the test split minus that on the search split."""
    return bootstrap(agent.test_regrets - agent.final, resamples=RESAMPLES)


def profile(agent: AgentRuns) -> Estimate:
    """Part of the runs whose final regret is at most each of `THRESHOLDS`: arrays, rising from 0 to 1."""
    levels = [-threshold - _ROUNDING for threshold in THRESHOLDS]
    return performance_profile_band(-agent.final, levels, resamples=RESAMPLES)


def beats(first: AgentRuns, second: AgentRuns, resamples: int = RESAMPLES) -> Estimate:
    """Probability that a run of the first has less final regret than one of the second on the same cell."""
    return improvement(-first.final, -second.final, resamples=resamples)


def beats_all(agents: Sequence[AgentRuns]) -> Estimate:
    """`beats` of every agent (row) over every other one (column): arrays (A, A), a half on the diagonal."""
    count = len(agents)
    value, low, high = (np.full((count, count), 0.5) for _ in range(3))
    for row in range(count):
        for column in range(row + 1, count):
            found = beats(agents[row], agents[column], _PAIR_RESAMPLES)
            value[row, column], low[row, column], high[row, column] = found.value, found.low, found.high
            value[column, row], low[column, row], high[column, row] = 1 - found.value, 1 - found.high, 1 - found.low
    return Estimate(value, low, high, 0.95)


def optimum_on_test(comparison: Comparison) -> FloatArray:
    """Regret on the test split of the allocation that is best on the search split, in accuracy points: float64 (T,)."""
    return np.array([float(truth.regret(truth.optimum, "test")) for truth in comparison.truths])


def control_verdict(control: AgentRuns, comparison: Comparison) -> tuple[Estimate | None, str]:
    """Whether a negative control does no better than random search.

    Returns:
        The probability that it beats random search, and the verdict in words; None where random search did not run.
    """
    reference = comparison.find(REFERENCE)
    if reference is None:
        return None, f"not known: {REFERENCE} is not among the agents"
    found = beats(control, reference)
    if found.low > 0.5:
        return found, "better than random: the benchmark leaks, or the control is none"
    return found, "worse than random, as it must be" if found.high < 0.5 else "as bad as random, as it must be"


def _stacked(estimates: Sequence[Estimate]) -> Estimate:
    parts = ([getattr(estimate, name) for estimate in estimates] for name in ("value", "low", "high"))
    value, low, high = (np.array(part) for part in parts)
    return Estimate(value, low, high, estimates[0].confidence)
