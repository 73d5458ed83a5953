"""Statistics of a few runs on several tasks.

After Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the Statistical Precipice (NeurIPS).

Scores are float64 (R, T): R runs, with different seeds, of each of T tasks. More is better, so give regrets with a
minus sign. Uncertainty comes from the stratified bootstrap: the runs of every task are drawn anew, with replacement and
independently of the other tasks. All of it is deterministic in the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amed_env.errors import InputError

FloatArray = npt.NDArray[np.float64]
Statistic = Callable[[FloatArray], FloatArray]
"""From scores (..., R, T) a number for each leading index."""

RESAMPLES = 2_000
"""Efron and Tibshirani (1993) ask for 1,000 or more for percentile intervals; 50 of these exceed each end of 95 %."""
_AT_ONCE = 2_000_000  # numbers of resampled scores in memory at a time; which runs are drawn depends on it


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval.

    Attributes:
        value: The statistic of the runs as they are: a number, or an array for a curve.
        low: Lower end of the interval.
        high: Upper end of the interval.
        confidence: With which probability such intervals hold the true value.
    """

    value: FloatArray
    low: FloatArray
    high: FloatArray
    confidence: float


def interquartile_mean(scores: npt.ArrayLike) -> FloatArray:
    """Mean of the middle half of all runs of all tasks: between the median and the mean in robustness.

    A quarter of the R x T scores, rounded down, is left out at either end.

    Args:
        scores: (..., R, T).

    Returns:
        float64 of the leading shape.
    """
    array = _checked(scores)
    ordered = np.sort(array.reshape(*array.shape[:-2], -1), axis=-1)
    count = ordered.shape[-1]
    cut = count // 4
    return np.asarray(ordered[..., cut : count - cut].mean(axis=-1))


def mean_score(scores: npt.ArrayLike) -> FloatArray:
    """Mean over all runs of all tasks: float64 of the leading shape of (..., R, T)."""
    return np.asarray(_checked(scores).mean(axis=(-2, -1)))


def bootstrap(
    scores: npt.ArrayLike,
    statistic: Statistic = interquartile_mean,
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A statistic with its percentile interval from the stratified bootstrap.

    Args:
        scores: (R, T).
        statistic: From (..., R, T) a number, or (..., K) a curve, for each leading index.
        resamples: How often the runs are drawn anew.
        confidence: Of the interval.
        seed: Of the drawing.

    Raises:
        InputError: If the scores are no finite (R, T) numbers, or an option is out of range.
    """
    array = _matrix(scores)
    rng = _generator(resamples, confidence, seed)
    drawn = np.concatenate([statistic(sample) for sample in _resampled(array, resamples, rng)])
    return _estimate(statistic(array), drawn, confidence)


def performance_profile(scores: npt.ArrayLike, thresholds: npt.ArrayLike) -> FloatArray:
    """Which part of all runs scores more than each threshold.

    Args:
        scores: (..., R, T).
        thresholds: (K,).

    Returns:
        float64 (..., K), from 0 to 1, falling where the thresholds rise.
    """
    array, levels = _checked(scores), np.asarray(thresholds, dtype=np.float64)
    ordered = array.reshape(*array.shape[:-2], -1)
    return np.asarray(np.stack([(ordered > level).mean(axis=-1) for level in levels], axis=-1))


def probability_of_improvement(first: npt.ArrayLike, second: npt.ArrayLike) -> FloatArray:
    """Probability that a run of the first agent beats one of the second, on a task that is drawn by chance.

    Per task the share of pairs of runs in which the first scores more, equal scores counting half (Mann and Whitney's
    U over the number of pairs); then the mean over tasks.

    Args:
        first: (..., R1, T).
        second: (..., R2, T), of the same tasks.

    Raises:
        InputError: If the numbers of tasks differ.
    """
    one, other = _checked(first), _checked(second)
    _check_tasks(one, other)
    gap = one[..., :, None, :] - other[..., None, :, :]
    wins = (gap > 0) + 0.5 * (gap == 0)
    return np.asarray(wins.mean(axis=(-3, -2)).mean(axis=-1))


def improvement(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """`probability_of_improvement` with its interval; the runs of both agents are drawn anew. See `bootstrap`."""
    one, other = _matrix(first), _matrix(second)
    pairs = len(one) * other.size  # of runs, for each of which there is a number in memory
    return _bootstrap_two(one, other, probability_of_improvement, pairs, resamples, confidence, seed)


def difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    statistic: Statistic = mean_score,
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """How much more the first agent has than the second by a statistic, with the interval of that difference.

    The runs of both agents are drawn anew, independently. Two agents differ where the interval excludes zero; that is
    a sharper question than whether their own intervals overlap.

    Args:
        first: (R1, T).
        second: (R2, T), of the same tasks.
        statistic: As for `bootstrap`.
        resamples: As for `bootstrap`.
        confidence: As for `bootstrap`.
        seed: As for `bootstrap`.

    Raises:
        InputError: If the numbers of tasks differ, or as for `bootstrap`.
    """
    one, other = _matrix(first), _matrix(second)
    _check_tasks(one, other)

    def gap(some: FloatArray, others: FloatArray) -> FloatArray:
        return np.asarray(statistic(some) - statistic(others))

    return _bootstrap_two(one, other, gap, max(one.size, other.size), resamples, confidence, seed)


def _bootstrap_two(
    one: FloatArray,
    other: FloatArray,
    statistic: Callable[[FloatArray, FloatArray], FloatArray],
    numbers: int,
    resamples: int,
    confidence: float,
    seed: int,
) -> Estimate:
    """A statistic of two agents, the runs of each drawn anew; `numbers` is what a resample takes of the memory."""
    rng = _generator(resamples, confidence, seed)
    drawn = []
    for count in _counts(resamples, max(1, _AT_ONCE // numbers)):
        drawn.append(statistic(_drawn(one, count, rng), _drawn(other, count, rng)))
    return _estimate(statistic(one, other), np.concatenate(drawn), confidence)


def _checked(scores: npt.ArrayLike) -> FloatArray:
    try:
        array = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"scores are no array of numbers (runs, tasks): {error}.") from error
    if array.ndim < 2 or not array.size:
        raise InputError(f"scores have shape {array.shape}; give (runs, tasks), at least one of each.")
    if not np.isfinite(array).all():
        raise InputError("scores have values that are NaN or infinite; decide what a failed run is worth.")
    return array


def _check_tasks(one: FloatArray, other: FloatArray) -> None:
    if one.shape[-1] != other.shape[-1]:
        raise InputError(
            f"the agents ran on {one.shape[-1]} and {other.shape[-1]} tasks; compare them on the same ones."
        )


def _matrix(scores: npt.ArrayLike) -> FloatArray:
    array = _checked(scores)
    if array.ndim != 2:
        raise InputError(f"scores have shape {array.shape}; give (runs, tasks).")
    return array


def _generator(resamples: int, confidence: float, seed: int) -> np.random.Generator:
    if resamples < 1 or not 0 < confidence < 1:
        raise InputError(
            f"{resamples} resamples with confidence {confidence}; give at least one, and a confidence between 0 and 1."
        )
    return np.random.default_rng(seed)


def _counts(resamples: int, largest: int) -> list[int]:
    return [min(largest, resamples - start) for start in range(0, resamples, largest)]


def _drawn(scores: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
    """Runs of every task drawn anew: (count, R, T)."""
    runs, tasks = scores.shape
    return np.asarray(scores[rng.integers(0, runs, (count, runs, tasks)), np.arange(tasks)])


def _resampled(scores: FloatArray, resamples: int, rng: np.random.Generator) -> list[FloatArray]:
    return [_drawn(scores, count, rng) for count in _counts(resamples, max(1, _AT_ONCE // scores.size))]


def _estimate(value: FloatArray, drawn: FloatArray, confidence: float) -> Estimate:
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(drawn, [tail, 100.0 - tail], axis=0)
    return Estimate(np.asarray(value), np.asarray(low), np.asarray(high), confidence)
