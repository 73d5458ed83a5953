"""Estimates with their intervals of what a comparison shows: regrets, profiles, who beats whom.

The middle of everything is the interquartile mean over all runs of all cells; intervals of 95 % come from the
stratified bootstrap, in which every cell keeps its number of runs. All of it is deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from amed_env.bench.curves import REFERENCE, AgentRuns, Comparison
from amed_env.bench.run_statistics import (
    RESAMPLES,
    Estimate,
    bootstrap,
    improvement,
    interquartile_mean,
    performance_profile,
)
from amed_env.bench.truth import CellTruth, FloatArray, IntArray

_PAIR_RESAMPLES = 400
"""Of the intervals of every pair of agents, of which 23 agents have 253, and which tell only on which side 50 % is."""
_CURVE_POINTS = 1_000
"""Most points of a curve: more than a picture has across, so that nobody sees where some are left out."""
_THRESHOLDS = 240
"""Most thresholds of a profile."""
_EXACT_THRESHOLDS = 180
"""How many of them are the least regrets, of which none is left out."""
_DECIMALS = 6
"""Of regrets in profiles; they are differences of whole samples, so what is nearer is equal."""
_ROUNDING = 1e-9
"""Of a threshold in accuracy points, so that a run that has exactly that regret counts."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Interquartile mean of the regret after every number of evaluations.

    Attributes:
        after: Numbers of evaluations after which it changes, the first one and the last one: int64 (N,), rising.
        value: What it is from each of them to the next: float64 (N,).
        points: Numbers of evaluations at which the interval is computed: int64 (K,), rising.
        band: The value with its interval at the points: arrays (K,).
    """

    after: IntArray
    value: FloatArray
    points: IntArray
    band: Estimate

    def band_outline(self) -> tuple[IntArray, FloatArray, FloatArray]:
        """Corners to join by straight lines: numbers of evaluations, lower and upper ends of the interval.

        Between points that are neighbours nothing is unknown, so there the interval is a step like the value.
        """
        steps = np.flatnonzero(np.diff(self.points) == 1) + 1
        low, high = (np.insert(part, steps, part[steps - 1]) for part in (self.band.low, self.band.high))
        return np.insert(self.points, steps, self.points[steps]), low, high


@dataclass(frozen=True, eq=False)
class Profile:
    """Which part of the runs has at most a regret at the end, a step function of that regret.

    Attributes:
        thresholds: Regrets where it changes, and 0: float64 (K,), rising.
        share: From each of them to the next: arrays (K,), rising to 1.
    """

    thresholds: FloatArray
    share: Estimate

    def up_to(self, regret: float) -> tuple[FloatArray, Estimate]:
        """Thresholds and shares, to draw the last step up to a regret that is no less than the last threshold."""
        parts = (self.share.value, self.share.low, self.share.high)
        value, low, high = (np.append(part, part[-1]) for part in parts)
        return np.append(self.thresholds, regret), Estimate(value, low, high, self.share.confidence)


Curves = Mapping[str, Curve]
"""Of every agent, by its name."""


def regret_curve(agent: AgentRuns, points: IntArray) -> Curve:
    """The regret after each number of evaluations, exact wherever it changes, and with an interval at some points.

    The same runs are drawn at every point, so the interval is that of whole curves.

    Args:
        agent: The agent.
        points: Where the interval is computed, from the first evaluation to the last one.
    """
    moments = np.unique([points[0], *agent.steps.after, points[-1]])
    if len(moments) > _CURVE_POINTS:
        wanted = np.geomspace(moments[0], moments[-1], _CURVE_POINTS)
        moments = np.unique(moments[np.searchsorted(moments, wanted.clip(None, moments[-1]))])
    value = np.array([float(interquartile_mean(regrets)) for regrets in agent.regrets_after(moments)])
    changes = np.diff(value, prepend=np.inf) != 0
    changes[-1] = True
    return Curve(moments[changes], value[changes], points, stacked(regret_at(agent, points)))


def curves_of(comparison: Comparison) -> Curves:
    """The regret curve of every agent by its name."""
    return {agent.name: regret_curve(agent, comparison.points) for agent in comparison.agents}


def curves_range(curves: Curves) -> tuple[float, float]:
    """The least and the largest regret of curves and their intervals."""
    least = min(float(part.min()) for curve in curves.values() for part in (curve.value, curve.band.low))
    most = max(float(part.max()) for curve in curves.values() for part in (curve.value, curve.band.high))
    return least, most


def regret_at(agent: AgentRuns, evaluations: Sequence[int] | IntArray) -> list[Estimate]:
    """Interquartile mean of the regret after some numbers of evaluations, which rise."""
    return [bootstrap(regrets) for regrets in agent.regrets_after(evaluations)]


def final_regret(agent: AgentRuns) -> Estimate:
    """Interquartile mean of the regret at the end."""
    return bootstrap(agent.final)


def regret_on_test(agent: AgentRuns) -> Estimate:
    """Interquartile mean of the regret on the test split of what was best on the search split."""
    return bootstrap(agent.test_regrets)


def change_on_test(agent: AgentRuns) -> Estimate:
    """Interquartile mean over runs of the regret on the test split minus that on the search split."""
    return bootstrap(agent.test_regrets - agent.final)


def profile(agent: AgentRuns) -> Profile:
    """Part of the runs whose final regret is at most as much, for every regret that a run ended with.

    Of very many different regrets, some of the larger ones are left out.
    """
    final = agent.final.round(_DECIMALS)
    thresholds = np.unique([0.0, *final.ravel()])
    if len(thresholds) > _THRESHOLDS:
        larger = np.linspace(_EXACT_THRESHOLDS, len(thresholds) - 1, _THRESHOLDS - _EXACT_THRESHOLDS).astype(np.int64)
        thresholds = thresholds[[*range(_EXACT_THRESHOLDS), *larger]]
    levels = -thresholds - _ROUNDING  # the profile counts what is more than a level
    return Profile(thresholds, bootstrap(-final, lambda scores: performance_profile(scores, levels)))


def profiles_of(comparison: Comparison) -> dict[str, Profile]:
    """The profile of every agent by its name."""
    return {agent.name: profile(agent) for agent in comparison.agents}


def beats(first: AgentRuns, second: AgentRuns, resamples: int = RESAMPLES) -> Estimate:
    """Probability that a run of the first has less final regret than one of the second on the same cell."""
    return improvement(-first.final, -second.final, resamples=resamples)


def beats_all(agents: Sequence[AgentRuns]) -> Estimate:
    """`beats` of every agent (row) over every other one (column): arrays (A, A), a half on the diagonal."""
    count = len(agents)
    value, low, high = (np.full((count, count), 0.5) for _ in range(3))
    for row in range(count):
        for column in range(row + 1, count):
            pair = beats(agents[row], agents[column], _PAIR_RESAMPLES)
            value[row, column], low[row, column], high[row, column] = pair.value, pair.low, pair.high
            value[column, row], low[column, row], high[column, row] = 1 - pair.value, 1 - pair.high, 1 - pair.low
    return Estimate(value, low, high, 0.95)


def optimum_on_test(truths: Sequence[CellTruth]) -> FloatArray:
    """Regret on the test split of the allocation that is best on the search split, in accuracy points: float64 (T,)."""
    return np.array([float(truth.regret(truth.optimum, "test")) for truth in truths])


def control_verdict(control: AgentRuns, comparison: Comparison) -> tuple[Estimate | None, str]:
    """Whether a negative control does no better than random search.

    Returns:
        The probability that it beats random search, and the verdict in words; None where random search did not run.
    """
    reference = comparison.find(REFERENCE)
    if reference is None:
        return None, f"not known: {REFERENCE} is not among the agents"
    probability = beats(control, reference)
    if probability.low > 0.5:
        return probability, "better than random: the benchmark leaks, or the control is none"
    if probability.high < 0.5:
        return probability, "worse than random, as it must be"
    return probability, "as bad as random, as it must be"


def stacked(estimates: Sequence[Estimate]) -> Estimate:
    """Estimates of the same kind in one, with a new first axis."""
    return Estimate(
        np.array([estimate.value for estimate in estimates]),
        np.array([estimate.low for estimate in estimates]),
        np.array([estimate.high for estimate in estimates]),
        estimates[0].confidence,
    )
