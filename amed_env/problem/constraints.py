"""Budgets over costs that add up layer by layer: what can still be chosen, what is reachable, and how to repair.

Shapes: L layers, P precisions, B limited metrics. `costs` is float64 (B, L, P); `limits` is float64 (B,).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from amed_env.problem.objective import TOLERANCE

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_SCALE = 1e3
"""Limits are this many units, so that the solver's absolute tolerance (1e-6) becomes that of `TOLERANCE` (1e-9)."""
_MARGINS = (0.0, 1e-8, 1e-6, 1e-5)
"""By how much the solver's limits are tightened, one after the other, while its answer exceeds the true ones."""


def least_choosable(costs: FloatArray, choosable: BoolArray | None = None) -> FloatArray:
    """The least that each layer can cost: float64 of shape (B, L)."""
    return np.asarray((costs if choosable is None else np.where(choosable, costs, np.inf)).min(axis=2))


def least_rest(costs: FloatArray, choosable: BoolArray | None = None) -> FloatArray:
    """The least that the layers from t on can cost, for t from 0 to L: float64 of shape (B, L + 1).

    Args:
        costs: (B, L, P) costs.
        choosable: (L, P) what each layer may choose at all; everything by default.
    """
    metrics, layers, _ = costs.shape
    rest = np.zeros((metrics, layers + 1))
    rest[:, :layers] = np.cumsum(least_choosable(costs, choosable)[:, ::-1], axis=1)[:, ::-1]
    return rest


def allowed_choices(
    used: FloatArray,
    costs_here: FloatArray,
    rest_after: FloatArray,
    limits: FloatArray,
    choosable_here: BoolArray | None = None,
) -> BoolArray:
    """Which precisions of the current layer leave every budget reachable: used + cost + least(rest) <= limit.

    With several budgets this is necessary; it is sufficient too if in every layer one precision is the cheapest in all
    of them, as is usual.

    Args:
        used: (B,) cost of the layers before.
        costs_here: (B, P) cost of the current layer.
        rest_after: (B,) least cost of the layers after.
        limits: (B,) limits.
        choosable_here: (P,) what the current layer may choose at all; everything by default.

    Returns:
        bool of shape (P,).
    """
    total = used[:, None] + costs_here + rest_after[:, None]
    return np.asarray(
        (total <= limits[:, None] * (1 + TOLERANCE)).all(axis=0) & (choosable_here is None or choosable_here)
    )


def cheapest_choices(
    costs: FloatArray, limits: FloatArray, objective: FloatArray, choosable: BoolArray | None = None
) -> npt.NDArray[np.int64] | None:
    """The choice of one precision a layer that minimises an additive objective under all limits.

    Solved exactly by HiGHS as a multiple-choice knapsack.

    Args:
        costs: (B, L, P) costs.
        limits: (B,) limits; infinite ones do not count.
        objective: (L, P) what to minimise.
        choosable: (L, P) what each layer may choose at all; everything by default.

    Returns:
        int64 of shape (L,), or None if nothing meets the limits.
    """
    # Takes longer to import than all of the package; a search within one limit does without.
    from scipy.optimize import Bounds, LinearConstraint, milp

    layers, choices = objective.shape
    one_each = LinearConstraint(np.kron(np.eye(layers), np.ones(choices)), 1, 1)
    finite = np.isfinite(limits)
    # In units of the limits, so that the solver's absolute tolerance (1e-6) means the same for every metric.
    units = np.where(limits[finite] > 0, limits[finite], 1.0) / _SCALE
    shares = costs[finite].reshape(len(units), layers * choices) / units[:, None]
    # The solver also stops at an absolute gap of 1e-6: in units of the largest term it means the same everywhere.
    spread = float(np.abs(objective).max()) or 1.0
    for margin in _MARGINS:
        constraints = [one_each]
        if finite.any():
            constraints.append(LinearConstraint(shares, -np.inf, limits[finite] * (1 - margin) / units))
        solution = milp(
            (objective / spread).reshape(-1),
            constraints=constraints,
            integrality=np.ones(layers * choices),
            bounds=Bounds(0, 1 if choosable is None else choosable.astype(np.float64).reshape(-1)),
            options={"mip_rel_gap": 0.0},
        )
        if solution.x is None:
            return None
        best = np.asarray(solution.x.reshape(layers, choices).argmax(axis=1), dtype=np.int64)
        total = costs[:, np.arange(layers), best].sum(axis=1)
        if (total <= limits * (1 + TOLERANCE)).all():
            return best
    return None


def smallest_reachable(
    costs: FloatArray, limits: FloatArray, metric: int, choosable: BoolArray | None = None
) -> float | None:
    """The least total of one metric while the other limits hold, or None if these alone cannot be met.

    Args:
        costs: (B, L, P) costs.
        limits: (B,) limits.
        metric: Position of the metric among the B.
        choosable: (L, P) what each layer may choose at all; everything by default.
    """
    others = limits.copy()
    others[metric] = np.inf
    best = cheapest_choices(costs, others, costs[metric], choosable)
    return None if best is None else float(costs[metric][np.arange(len(best)), best].sum())


def totals(costs: Mapping[str, FloatArray], choices: npt.NDArray[np.int64]) -> dict[str, float]:
    """Sum over layers of every metric for one choice a layer."""
    rows = np.arange(len(choices))
    return {metric: float(table[rows, choices].sum()) for metric, table in costs.items()}
