"""A learned model of the reward: a Gaussian process over allocations, which says how sure it is.

The covariance of two allocations is a sum of three parts, each with a variance that is fitted:

- a linear part in the prior (what single-layer sensitivities predict), so that few trials suffice to trust or distrust
  it;
- an additive part, the mean over layers of exp(-d / l), so that a layer's effect is learned wherever it occurs;
- a product part, exp(-sum of d / l over layers), for interactions of layers and for what is particular to a
  neighbourhood.

d is the distance of two widths in octaves (log2 of bits) and 1 / l the layer's own rate. Rates, variances and noise
maximise the marginal likelihood with weak log-normal priors (Rasmussen and Williams 2006, Gaussian Processes for
Machine Learning, ch. 5).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import solve_triangular

FloatArray = npt.NDArray[np.float64]

_START = {"rate": -1.0, "product": 0.0, "additive": 0.0, "linear": 0.0, "noise": -3.0}
"""Logarithms that the fit starts from, and the medians of the priors."""
_PRIOR_DEVIATION = 2.0  # of the logarithms: wide, so that the priors only hold what trials do not tell
_LEAST_NOISE = 1e-4  # keeps the covariance of equal trials positive definite
_FIT_STEPS = 12  # of L-BFGS; it starts from the last fit, so it need not converge each time


class RewardModel:
    """A Gaussian process over allocations.

    Args:
        widths: (P, D) coordinates of each choice of a layer, in octaves; D is 2 where weights and activations are
            chosen apart.
        layers: L, the number of layers.
    """

    def __init__(self, widths: FloatArray, layers: int) -> None:
        self._distance = np.abs(widths[:, None] - widths[None]).transpose(2, 0, 1).copy()  # (D, P, P)
        self._layers = layers
        self._log = np.concatenate(
            [np.full(layers * len(self._distance), _START["rate"])]
            + [[_START[name]] for name in ("product", "additive", "linear", "noise")]
        )
        self._start = self._log.copy()
        self.count = 0

    def fit(self, choices: npt.NDArray[np.int64], prior: FloatArray, rewards: FloatArray, *, rates: bool) -> None:
        """Condition the model on all trials.

        Args:
            choices: (N, L) allocations by number of precision.
            prior: (N,) what was expected of them, in any unit.
            rewards: (N,) true rewards.
            rates: Whether to fit rates, variances and noise too, which takes longer.
        """
        self.count = len(choices)
        self._choices = choices
        self._prior_scale = (float(prior.mean()), float(prior.std()) or 1.0)
        self._scale = (float(rewards.mean()), float(rewards.std()) or 1.0)
        self._prior = self._scaled(prior, self._prior_scale)
        targets = self._scaled(rewards, self._scale)
        if rates:
            self._fit_rates(targets)
        covariance = self._covariance(choices, choices, self._prior, self._prior)
        covariance[np.diag_indices_from(covariance)] += self._noise
        self._factor = np.linalg.cholesky(covariance)
        self._weights = solve_triangular(
            self._factor.T, solve_triangular(self._factor, targets, lower=True), lower=False
        )

    def predict(self, choices: npt.NDArray[np.int64], prior: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of the reward of allocations, (N,) each, without the noise of a trial."""
        scaled = self._scaled(prior, self._prior_scale)
        cross = self._covariance(choices, self._choices, scaled, self._prior)
        product, additive, linear = np.exp(self._log[-4:-1])
        reduced = solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        variance = product + additive + linear * scaled**2 - (reduced**2).sum(axis=0)
        mean, unit = self._scale
        return mean + unit * (cross @ self._weights), unit * np.sqrt(np.maximum(variance, 1e-12))

    @property
    def spread(self) -> float:
        """Standard deviation of the rewards of all trials, 1 where they are equal."""
        return self._scale[1]

    @property
    def _noise(self) -> float:
        return float(np.exp(self._log[-1])) + _LEAST_NOISE

    @staticmethod
    def _scaled(values: FloatArray, scale: tuple[float, float]) -> FloatArray:
        return (values - scale[0]) / scale[1]

    def _covariance(
        self, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], prior: FloatArray, other: FloatArray
    ) -> FloatArray:
        product, additive, linear = np.exp(self._log[-4:-1])
        rates = np.exp(self._log[:-4]).reshape(self._layers, -1)
        similarity = np.exp(-np.einsum("ld,dpq->lpq", rates, self._distance))  # (L, P, P)
        total = np.zeros((len(first), len(second)))
        all_layers = np.ones_like(total)
        for layer in range(self._layers):
            here = similarity[layer][first[:, layer]][:, second[:, layer]]
            total += here
            all_layers *= here
        total *= additive / self._layers
        all_layers *= product
        total += all_layers
        total += linear * np.outer(prior, other)
        return total

    def _fit_rates(self, targets: FloatArray) -> None:
        """Maximise the marginal likelihood by L-BFGS; what does not converge to finite numbers is left as it was."""
        log = torch.tensor(self._log, requires_grad=True)
        start, target = torch.as_tensor(self._start), torch.as_tensor(targets)
        prior = torch.as_tensor(self._prior)
        linear_part = torch.outer(prior, prior)
        distance = torch.as_tensor(self._distance)
        pairs = [
            distance[:, torch.as_tensor(column)][:, :, torch.as_tensor(column)]
            for column in np.ascontiguousarray(self._choices.T)
        ]
        identity = torch.eye(len(targets), dtype=torch.float64)
        optimiser: Any = torch.optim.LBFGS([log], lr=0.5, max_iter=_FIT_STEPS, line_search_fn="strong_wolfe")

        def loss() -> Any:
            optimiser.zero_grad()
            rates = log[:-4].exp().reshape(self._layers, -1)
            product, additive, linear, noise = log[-4:].exp()
            exponents = torch.stack(
                [(rate[:, None, None] * pair).sum(dim=0) for rate, pair in zip(rates, pairs, strict=True)]
            )
            covariance = product * (-exponents.sum(dim=0)).exp() + additive * (-exponents).exp().mean(dim=0)
            covariance = covariance + linear * linear_part + (noise + _LEAST_NOISE) * identity
            factor = torch.linalg.cholesky(covariance)
            whitened = torch.linalg.solve_triangular(factor, target[:, None], upper=False)
            value = 0.5 * (whitened**2).sum() + factor.diagonal().log().sum()
            value = value + 0.5 * (((log - start) / _PRIOR_DEVIATION) ** 2).sum()
            value.backward()
            return value

        try:
            optimiser.step(loss)
        except torch.linalg.LinAlgError:
            return
        fitted = log.detach().numpy()
        if np.isfinite(fitted).all():
            self._log = fitted.copy()
