"""A score table and the Metropolis-Hastings walk whose stationary law is the table's softmax.

Shapes: L layers, P precisions. The law gives layer i the precision a with probability softmax(S_i / T)[a],
independently of the other layers; where a filter refuses allocations, it is that law given that nothing is refused.

Metropolis et al. 1953 (J. Chem. Phys. 21, 1087) and Hastings 1970 (Biometrika 57, 97): a move from a to b that is
proposed with probability q(a, b) is accepted with probability min(1, p(b) q(b, a) / (p(a) q(a, b))).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

Proposal = Literal["uniform", "scores"]
"""Where the next precision of a layer comes from: any other one with equal probability, or the law itself."""


_LEAST_EXPONENT = -500.0  # exp(-745) is the smallest positive double; sums and ratios need some room above it


class ScoreTable:
    """S: how many decades of quality score each precision of each layer is worth, as learned so far.

    Args:
        choosable: bool (L, P), what each layer may choose at all.

    Attributes:
        values: float64 (L, P), zero at the start.
        choosable: As given.
    """

    def __init__(self, choosable: BoolArray) -> None:
        self.choosable = choosable
        self.values: FloatArray = np.zeros(choosable.shape)
        self._rows = np.arange(len(choosable))

    def law(self, temperature: float) -> FloatArray:
        """softmax(S / T) over what each layer may choose: float64 (L, P), 0 elsewhere."""
        scores = np.where(self.choosable, self.values / temperature, -np.inf)
        # Nothing that may be chosen underflows to a probability of 0, so the walk can always leave and come back.
        relative = np.maximum(scores - scores.max(axis=1, keepdims=True), _LEAST_EXPONENT)
        weights = np.where(self.choosable, np.exp(relative), 0.0)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    def update(self, choices: IntArray, gain: float, rate: float) -> None:
        """Move the cells of an allocation: S <- (1 - η) S + η x gain.

        Args:
            choices: int64 (L,), the precision of each layer.
            gain: Decades by which the allocation is better than the reference.
            rate: η, from 0 to 1.
        """
        cells = self._rows, choices
        self.values[cells] = (1.0 - rate) * self.values[cells] + rate * gain


class MetropolisHastings:
    """Walks over allocations, one layer a move.

    Args:
        law: float64 (L, P), positive where a layer may choose, 0 elsewhere.
        proposal: Where the next precision of a layer comes from; see `Proposal`.
        corrected: Whether the acceptance has Hastings' factor q(b, a) / q(a, b). Without it a walk that proposes from
            the law comes to rest at the square of the law.
        allowed: What may be entered; everything by default. A refused move leaves the walk where it is.
    """

    def __init__(
        self,
        law: FloatArray,
        proposal: Proposal = "uniform",
        corrected: bool = True,
        allowed: Callable[[IntArray], bool] | None = None,
    ) -> None:
        self.law, self.proposal, self.corrected = law, proposal, corrected
        self._allowed = allowed

    def proposals(self, layer: int, current: int) -> FloatArray:
        """With which probability each precision is proposed for a layer: float64 (P,).

        Args:
            layer: The layer.
            current: Its precision now.
        """
        if self.proposal == "scores":
            return np.asarray(self.law[layer])
        others = (self.law[layer] > 0).astype(np.float64)
        others[current] = 0.0
        count = others.sum()
        if count == 0:  # a layer with a single choice keeps it
            others[current] = count = 1.0
        return np.asarray(others / count)

    def acceptance(self, layer: int, current: int, proposed: int) -> float:
        """With which probability a proposal that is allowed is accepted."""
        ratio = self.law[layer, proposed] / self.law[layer, current]
        if self.corrected and self.proposal == "scores":
            ratio *= self.law[layer, current] / self.law[layer, proposed]
        return float(min(1.0, ratio))

    def move(self, choices: IntArray, layer: int, rng: np.random.Generator) -> bool:
        """Propose another precision for one layer and enter it if it is accepted and allowed.

        Args:
            choices: int64 (L,), changed in place.
            layer: The layer.
            rng: Source of randomness.

        Returns:
            Whether the allocation changed.
        """
        current = int(choices[layer])
        cumulated = self.proposals(layer, current).cumsum()
        proposed = int(cumulated.searchsorted(rng.random() * cumulated[-1], side="right"))
        if proposed == current or rng.random() >= self.acceptance(layer, current, proposed):
            return False
        choices[layer] = proposed
        if self._allowed is not None and not self._allowed(choices):
            choices[layer] = current
            return False
        return True
