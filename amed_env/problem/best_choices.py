"""The best and the next best choices under budgets that add up, with a proof of how good they are.

A multiple-choice knapsack is decided layer by layer on a frontier of partial allocations. Each has a bound of what it
can still reach: the budgets are priced by Lagrange multipliers (Fisher 1981), which never overestimates. Only the most
hopeful ones go on; the least bound among those that do not says what they could have reached, so that every answer
below it is proven. Terms of pairs of layers are counted as soon as both layers are decided, and at their least before.

Shapes: L layers, P precisions, B limited metrics, as in `constraints`.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from amed_env.problem.constraints import BoolArray, FloatArray, least_rest
from amed_env.problem.objective import TOLERANCE

IntArray = npt.NDArray[np.int64]

FIRST_WIDTH = 512
"""Partial allocations that are kept at first."""
MOST_WIDTH = 32_768
"""Partial allocations that are kept at the most, by default: about 20 MB for 20 layers of 4 precisions with pairs."""
_GROWTH = 8  # two widenings from the first width to the last
# A multiplier within 2^40 of its first guess, to a part in 2^25: any would be valid, a good one only proves sooner.
_DOUBLINGS, _BISECTIONS = 40, 25


class Solutions(NamedTuple):
    """Choices within the limits, best first.

    Attributes:
        choices: int64 (K, L).
        values: float64 (K,), what they reach.
        floor: Nothing else within the limits is below the lesser of this and the last value; what is not above it is
            proven to be in its place.
    """

    choices: IntArray
    values: FloatArray
    floor: float

    @property
    def gap(self) -> float:
        """How far below the first value the optimum may lie; 0 if the first is proven."""
        return max(0.0, float(self.values[0]) - self.floor) if len(self.values) else 0.0


def best_choices(
    costs: FloatArray,
    limits: FloatArray,
    single: FloatArray,
    pairs: FloatArray | None = None,
    choosable: BoolArray | None = None,
    *,
    count: int = 1,
    excluded: Container[bytes] = (),
    most_width: int = MOST_WIDTH,
) -> Solutions:
    """Minimise the sum of `single[i, c_i]` and, over i < j, of `pairs[i, c_i, j, c_j]` under all limits.

    The frontier is widened until `count` answers are proven, or to `most_width`.

    Args:
        costs: (B, L, P) costs.
        limits: (B,) limits; infinite ones do not count.
        single: (L, P) terms of one layer.
        pairs: (L, P, L, P) symmetric terms of two layers.
        choosable: (L, P) what each layer may choose at all; everything by default.
        count: How many answers are wanted.
        excluded: Choices that are no answer, as `choices.tobytes()` of int64 arrays.
        most_width: Partial allocations that are kept at the most.

    Returns:
        Up to `count` solutions; fewer where no more were found.
    """
    allowed = np.ones(single.shape, dtype=bool) if choosable is None else choosable
    finite = np.isfinite(limits)
    costs, limits = costs[finite], limits[finite]
    prices = _prices(costs, limits, single, allowed)
    width = min(FIRST_WIDTH, most_width)
    while True:
        whole, floor = _frontier(costs, limits, single, pairs, allowed, prices, width)
        values = objective(single, pairs, whole)
        order = np.lexsort((*whole.T[::-1], values))  # ties by the choices themselves: the same on every machine
        new = [row for row in order.tolist() if whole[row].tobytes() not in excluded][:count]
        solutions = Solutions(whole[new], values[new], floor)
        proven = len(new) == count and solutions.values[-1] <= floor
        if proven or floor == np.inf or width >= most_width:
            return solutions
        width = min(width * _GROWTH, most_width)


def objective(single: FloatArray, pairs: FloatArray | None, choices: IntArray) -> FloatArray:
    """What `best_choices` minimises, for choices (N, L): float64 (N,)."""
    layers = np.arange(single.shape[0])
    total = single[layers, choices].sum(axis=1)
    if pairs is not None:
        for first in layers[:-1]:
            later = layers[first + 1 :]
            total = total + pairs[first, choices[:, first, None], later, choices[:, later]].sum(axis=1)
    return np.asarray(total)


def _prices(costs: FloatArray, limits: FloatArray, single: FloatArray, allowed: BoolArray) -> FloatArray:
    """A multiplier for each limit that makes the bound of the single terms large: float64 (B,), not negative.

    Any would do; coordinate after coordinate is moved to where the choices that it leads to just meet the limit.
    """
    prices = np.zeros(len(limits))
    rows = np.arange(len(single))
    scale = float(np.ptp(single[allowed])) or 1.0

    def excess(metric: int, price: float) -> float:
        priced = single + np.tensordot(np.where(np.arange(len(prices)) == metric, price, prices), costs, axes=1)
        best = np.where(allowed, priced, np.inf).argmin(axis=1)
        return float(costs[metric, rows, best].sum() - limits[metric])

    # The price of one limit shifts the others, so that several are gone through twice.
    for _ in range(2 if len(limits) > 1 else 1):
        for metric in range(len(limits)):
            if excess(metric, 0.0) <= 0:
                prices[metric] = 0.0
                continue
            low, high = 0.0, scale / max(float(limits[metric]), 1e-300)
            for _ in range(_DOUBLINGS):
                if excess(metric, high) <= 0:
                    break
                low, high = high, 2 * high
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                if excess(metric, middle) > 0:
                    low = middle
                else:
                    high = middle
            prices[metric] = high
    return prices


def _frontier(
    costs: FloatArray,
    limits: FloatArray,
    single: FloatArray,
    pairs: FloatArray | None,
    allowed: BoolArray,
    prices: FloatArray,
    width: int,
) -> tuple[IntArray, float]:
    """Whole allocations within the limits, int64 (N, L), and the least bound of what was left out on the way."""
    priced = np.where(allowed, single + np.tensordot(prices, costs, axes=1), np.inf)
    order = _most_decisive_first(priced)
    priced, costs, allowed = priced[order], costs[:, order], allowed[order]
    layers = len(priced)
    rest_cost = least_rest(costs, allowed)
    tight = limits * (1 + TOLERANCE)
    together = None if pairs is None else pairs[order][:, :, order]
    rest_value = np.append(np.cumsum(priced.min(axis=1)[::-1])[::-1], 0.0)
    rest_pairs = _least_pairs(together, allowed) if together is not None else np.zeros(layers + 1)
    chosen = np.zeros((1, layers), dtype=np.int64)
    value, used, floor = np.zeros(1), np.zeros((1, len(limits))), np.inf
    open_terms = priced[None]  # (W, layers that are open, P): with the pairs that the decided ones bring
    for step in range(layers):
        after = value[:, None] + (open_terms[:, 0] if together is not None else priced[step])
        spent = used[:, None, :] + costs[:, step].T
        fitting = (spent + rest_cost[:, step + 1] <= tight).all(axis=2) & allowed[step]
        parents, choices = np.nonzero(fitting)
        value, used = after[parents, choices], spent[parents, choices]
        if together is None:
            bound = value + rest_value[step + 1]
        else:
            open_terms = open_terms[parents, 1:] + together[step, choices, step + 1 :]
            bound = value + open_terms.min(axis=2, initial=np.inf).sum(axis=1) + rest_pairs[step + 1]
        if len(bound) > width:
            kept = np.argpartition(bound, width)
            floor = min(floor, float(bound[kept[width]]))  # the least of those that go
            kept = np.sort(kept[:width])  # in their old order, so that ties fall the same way everywhere
            parents, choices, value, used = parents[kept], choices[kept], value[kept], used[kept]
            open_terms = open_terms if together is None else open_terms[kept]
        chosen = chosen[parents]
        chosen[:, step] = choices
    in_network_order = np.empty_like(chosen)
    in_network_order[:, order] = chosen
    # Bounds have the prices of what is spent; an allocation within the limits pays at most for the limits.
    return in_network_order, floor - float(prices @ tight)


def _most_decisive_first(priced: FloatArray) -> IntArray:
    """Layers in the order in which they are decided: what loses most by its second best choice comes first."""
    two = np.sort(priced, axis=1)[:, :2]
    lead = two[:, 1] - two[:, 0] if priced.shape[1] > 1 else np.zeros(len(priced))
    return np.argsort(-lead, kind="stable")


def _least_pairs(together: FloatArray, allowed: BoolArray) -> FloatArray:
    """The least that all pairs of the layers from t on can add, for t from 0 to L: float64 (L + 1,)."""
    layers = len(allowed)
    possible = np.where(allowed[:, :, None, None] & allowed[None, None], together, np.inf)
    least = np.triu(possible.min(axis=(1, 3)), 1)
    return np.array([least[first:, first:].sum() for first in range(layers + 1)])
