"""What the trials of a search say about its proxy: a linear model that stays as exactly solvable as the proxy itself.

The logarithm of the error, in units of its deviation, is a sum of

- the proxy, with a slope that is expected to be positive;
- a correction for each precision of each layer;
- where asked for, a correction for each two precisions of two layers.

Corrections are independent Gaussians, so the model is a Gaussian process whose posterior mean is a table of single
terms and one of pairs (Rasmussen & Williams 2006, ch. 2). Few trials leave the proxy's order as it is, many replace
it. Variances are those of a small grid with the largest marginal likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy  # imports its linalg when that is first used, which no first trial does

from amed_env.agents.session import SearchSession
from amed_env.evaluation.quality import Quality
from amed_env.problem.score import ERROR_SMOOTHING
from amed_env.tasks.task import Task

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

# Prior of the standardized proxy's slope, and variance of the mean: positive, but within two deviations of worthless.
_SLOPE, _SLOPE_VARIANCE, _OFFSET_VARIANCE = 0.7, 0.25, 1.0
_SINGLE_VARIANCES, _PAIR_VARIANCES, _NOISES = (0.3, 3.0), (0.1, 1.0, 5.0), (0.1, 0.5)
_LEAST_DEVIATION = 0.05  # of log-errors, so that those which are all but equal are not blown up
_LOSS_SHARE = 0.1  # of the smoothing of errors, for each nat of loss
_LOG_SMOOTHING = 0.001  # nats: of the size of the divergence of uniform 8 bit
_GROWTH = 1.25  # variances are chosen anew when there are so many times more trials


class Terms(NamedTuple):
    """What is to be minimised: `single`, float64 (L, P), and `pairs`, symmetric float64 (L, P, L, P) or None."""

    single: FloatArray
    pairs: FloatArray | None


class Calibration:
    """A prior that learns from trials.

    Args:
        priors: Tables of single terms (and of pairs); several are averaged in units of their deviation over the trials.
        pairwise: Whether corrections of pairs are learned too.
    """

    def __init__(self, priors: Sequence[Terms], pairwise: bool = False) -> None:
        self.priors, self.pairwise = list(priors), pairwise
        self.layers, self.count = priors[0].single.shape
        self._variances: tuple[float, float, float] | None = None
        self._chosen_at = 0

    def fit(self, choices: IntArray, targets: FloatArray) -> Terms:
        """The posterior mean.

        Args:
            choices: int64 (N, L), N at least 1.
            targets: float64 (N,), low is good; see `Evidence`.

        Returns:
            Terms whose sum is the expected target up to a factor and a constant. With one trial, the prior.
        """
        self._hot = self._one_hot(choices)
        self._units = [max(float(self._prior(prior, self._hot).std()), 1e-12) for prior in self.priors]
        if len(choices) == 1:
            self._units = [self._spread(prior) for prior in self.priors]
        mean = self._mean_prior()
        self._at_trials = self._prior(mean, self._hot)
        self._centre = float(self._at_trials.mean())
        self._at_trials = self._at_trials - self._centre
        deviation = max(float(targets.std()), _LEAST_DEVIATION)
        residual = (targets - targets.mean()) / deviation - _SLOPE * self._at_trials
        if self._variances is None or len(choices) >= _GROWTH * self._chosen_at:
            self._variances, self._chosen_at = self._likeliest(residual), len(choices)
        single_variance, pair_variance, _ = self._variances
        self._factor = self._cholesky(self._variances)
        weights = np.asarray(scipy.linalg.cho_solve((self._factor, True), residual, check_finite=False))
        slope = _SLOPE + _SLOPE_VARIANCE * float(self._at_trials @ weights)
        single = slope * mean.single + single_variance / self.layers * (self._hot.T @ weights).reshape(
            mean.single.shape
        )
        pairs = None if mean.pairs is None else slope * mean.pairs
        if self.pairwise and pair_variance:
            scale = pair_variance / self.layers**2
            together = scale * (self._hot.T * weights) @ self._hot
            # A layer with itself is a single term; i with j stands for j with i too.
            single = single + np.diag(together).reshape(single.shape)
            learned = 2 * together.reshape(self.layers, self.count, self.layers, self.count)
            learned[np.arange(self.layers), :, np.arange(self.layers), :] = 0.0
            pairs = learned if pairs is None else pairs + learned
        return Terms(single, pairs)

    def deviation(self, choices: IntArray) -> FloatArray:
        """Standard deviation of what the last `fit` expects of choices (N, L), in the units of its terms: (N,)."""
        assert self._variances is not None  # there was a fit
        hot = self._one_hot(choices)
        prior = self._prior(self._mean_prior(), hot) - self._centre
        cross = self._covariance(hot, prior, self._hot, self._at_trials, self._variances)
        solved = scipy.linalg.solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        single_variance, pair_variance, _ = self._variances
        own = _OFFSET_VARIANCE + _SLOPE_VARIANCE * prior**2 + single_variance + pair_variance
        return np.asarray(np.sqrt(np.maximum(own - (solved**2).sum(axis=0), 1e-12)))

    def _one_hot(self, choices: IntArray) -> FloatArray:
        hot = np.zeros((len(choices), self.layers * self.count))
        hot[np.arange(len(choices))[:, None], np.arange(self.layers) * self.count + choices] = 1.0
        return hot

    def _prior(self, prior: Terms, hot: FloatArray) -> FloatArray:
        total = hot @ prior.single.ravel()
        if prior.pairs is not None:
            cells = self.layers * self.count
            total = total + 0.5 * ((hot @ prior.pairs.reshape(cells, cells)) * hot).sum(axis=1)
        return np.asarray(total)

    def _spread(self, prior: Terms) -> float:
        return max(float(np.sqrt(prior.single.var(axis=1).sum())), 1e-12)

    def _mean_prior(self) -> Terms:
        share = [1.0 / (unit * len(self.priors)) for unit in self._units]
        single = np.asarray(sum(s * prior.single for s, prior in zip(share, self.priors, strict=True)))
        with_pairs = [s * prior.pairs for s, prior in zip(share, self.priors, strict=True) if prior.pairs is not None]
        return Terms(single, np.asarray(sum(with_pairs)) if with_pairs else None)

    def _covariance(
        self,
        hot: FloatArray,
        prior: FloatArray,
        other: FloatArray,
        other_prior: FloatArray,
        variances: tuple[float, float, float],
    ) -> FloatArray:
        alike = hot @ other.T / self.layers
        covariance = _OFFSET_VARIANCE + _SLOPE_VARIANCE * np.outer(prior, other_prior) + variances[0] * alike
        return np.asarray(covariance + variances[1] * alike**2 if variances[1] else covariance)

    def _cholesky(self, variances: tuple[float, float, float]) -> FloatArray:
        covariance = self._covariance(self._hot, self._at_trials, self._hot, self._at_trials, variances)
        covariance[np.diag_indices_from(covariance)] += variances[2]
        return np.asarray(scipy.linalg.cholesky(covariance, lower=True, check_finite=False))

    def _likeliest(self, residual: FloatArray) -> tuple[float, float, float]:
        pair_variances = _PAIR_VARIANCES if self.pairwise else (0.0,)
        grid = list(product(_SINGLE_VARIANCES, pair_variances, _NOISES))

        def likelihood(variances: tuple[float, float, float]) -> float:
            factor = self._cholesky(variances)
            whitened = scipy.linalg.solve_triangular(factor, residual, lower=True, check_finite=False)
            return float(-0.5 * whitened @ whitened - np.log(np.diag(factor)).sum())

        return max(grid, key=likelihood)


class Evidence:
    """The trials of a search as numbers.

    Attributes:
        choices: What was evaluated: int64 (N, L).
        targets: The logarithm of each smoothed error: float64 (N,). The loss decides between equal errors.
    """

    def __init__(self, session: SearchSession) -> None:
        self._session = session
        self.choices = np.zeros((0, len(session.task.workload)), dtype=np.int64)
        self.targets = np.zeros(0)

    def update(self) -> None:
        """Take in what the search has evaluated since."""
        new = self._session.trials[len(self.targets) :]
        if new:
            choices = [self._session.task.choices(trial.allocation) for trial in new]
            targets = [_target(self._session.task, trial.quality) for trial in new]
            self.choices = np.concatenate([self.choices, np.asarray(choices, dtype=np.int64)])
            self.targets = np.append(self.targets, targets)


def _target(task: Task, quality: Quality) -> float:
    """The logarithm of the smoothed error; the loss decides between equal ones."""
    score = quality.scored_by
    if score.scale == "open":
        return -task.gain(quality)
    if score.scale == "log":
        # Their standard error is a part of their size, so that logarithms are equally certain down to small values.
        return float(np.log(score.error(quality.score) + _LOG_SMOOTHING))
    tie_break = 1.0 + _LOSS_SHARE * min(quality.loss or 0.0, 10.0)
    return float(np.log(score.error(quality.score) + ERROR_SMOOTHING * tie_break))
