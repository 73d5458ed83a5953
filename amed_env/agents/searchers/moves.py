"""What searchers have in common: who is within the budget, evaluating in spite of faults, starts, what is new.

Allocations are `choices`: int64 (L,), a precision number a layer; several are (N, L).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from amed_env.agents.searchers.neighbours import neighbours, random_neighbour
from amed_env.agents.session import SearchSession
from amed_env.errors import AmedError, BackendError, SearchEnded, StoreError
from amed_env.evaluation.store import Trial
from amed_env.problem.constraints import allowed_choices, cheapest_choices, least_rest
from amed_env.problem.objective import TOLERANCE
from amed_env.tasks.proxies import Proxy, proxy_table
from amed_env.tasks.repair import repair
from amed_env.tasks.task import Task

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_DRAWS = 3  # random allocations near the budget before known ones are varied
_MUTATIONS = 5  # tries to make a known allocation a new one


def prior(session: SearchSession, proxy: Proxy) -> FloatArray:
    """A proxy's table, float64 (L, P); says so while it is measured."""
    session.say(f"measuring the proxy {proxy.name}")
    table = proxy_table(session.task, proxy)
    session.say("")
    return table


def tolerant(session: SearchSession, call: Callable[[], IntArray | None]) -> IntArray | None:
    """What a call finds, or None if the device failed meanwhile; ends the search where that happens too often."""
    try:
        return call()
    except BackendError:
        session.check_device()
        return None


def evaluate(session: SearchSession, choices: IntArray) -> Trial | None:
    """The trial of an allocation, or None after a fault, which the session counts; it is not tried again."""
    allocation = session.task.allocation(choices)
    if session.failed(allocation):
        session.check()
        return None
    try:
        return session.evaluate(allocation)
    except (SearchEnded, StoreError):
        raise
    except AmedError:
        return None


def fits_many(session: SearchSession, choices: IntArray) -> npt.NDArray[np.bool_]:
    """Which of several allocations are within the budgets: bool (N,).

    Where costs add up they are read off the tables. Elsewhere the device is asked, but for what a lower bound rules
    out; an allocation whose cost it fails to tell is taken to exceed them.
    """
    task = session.task
    rows = np.arange(len(task.workload))
    fit: npt.NDArray[np.bool_] = np.asarray(task.choosable[rows, choices].all(axis=1))
    for metric, limit in task.limits.items():
        if metric in task.device_costs.least_table:
            fit &= task.device_costs.least_table[metric][rows, choices].sum(axis=1) <= limit * (1 + TOLERANCE)
    if all(metric in task.costs for metric in task.limits):
        return fit
    asked = np.flatnonzero(fit)
    allocations = [task.allocation(choices[row]) for row in asked]
    try:
        costs = task.device_costs.evaluate_many(allocations)
        fit[asked] = [task.feasible(cost.metrics) for cost in costs]
    except BackendError:
        session.check_device()
        fit[asked] = [session.feasible(allocation) for allocation in allocations]
    return fit


def fits(session: SearchSession, choices: IntArray) -> bool:
    """Whether one allocation is within the budgets; see `fits_many`."""
    return bool(fits_many(session, choices[None])[0])


def within_budget(session: SearchSession, choices: IntArray) -> IntArray | None:
    """The choices, repaired where they exceed a budget; None if that fails."""
    task = session.task
    choices = task.nearest_choosable(choices)
    if fits(session, choices):
        return choices
    return tolerant(session, lambda: repair(task, choices, task.limits))


def feasible_uniform(session: SearchSession) -> list[IntArray]:
    """Every uniform precision within the budget, wide ones first."""
    task = session.task
    uniform = [task.space.uniform_choices(int(choice)) for choice in reversed(task.space.free_choices)]
    return [choices for choices in uniform if session.feasible(task.allocation(choices))]


def good_starts(session: SearchSession, table: FloatArray) -> list[IntArray]:
    """The optimum of a proxy (L, P) within the budgets.

    Where costs do not add up this is the repaired optimum under their lower bounds, widened while it fits; every
    uniform precision that fits is treated alike, and the least proxy comes first. Empty if the device refuses all.
    """
    task = session.task
    best = cheapest_choices(*task.device_costs.bounded_limits(task.limits), table, task.choosable)
    if best is not None and all(metric in task.costs for metric in task.limits):
        return [best]
    starts = [] if best is None else [within_budget(session, best)]
    widened = [
        spend_slack(session, start, table) for start in [*starts, *feasible_uniform(session)] if start is not None
    ]
    if not widened:
        drawn = tolerant(session, lambda: random_choices(task, session.rng))
        widened = [] if drawn is None else [drawn]
    rows = np.arange(len(table))
    unique = {choices.tobytes(): choices for choices in widened}
    return sorted(unique.values(), key=lambda choices: float(table[rows, choices].sum()))


def random_choices(task: Task, rng: np.random.Generator) -> IntArray | None:
    """A random choice a layer within the budget: int64 (L,), or None where a draw met none.

    Layers are decided in a random order, so that no layer is favoured by coming first.
    """
    order = rng.permutation(len(task.workload))
    choices = np.zeros(len(order), dtype=np.int64)
    costs, limits = task.device_costs.bounded_limits(task.limits)
    costs, choosable = costs[:, order], task.choosable[order]
    rest, used = least_rest(costs, choosable), np.zeros(len(limits))
    for step, layer in enumerate(order):
        allowed = np.flatnonzero(allowed_choices(used, costs[:, step], rest[:, step + 1], limits, choosable[step]))
        if len(allowed) == 0:
            return None
        choices[layer] = rng.choice(allowed)
        used = used + costs[:, step, choices[layer]]
    if task.feasible(task.total_costs(task.allocation(choices))):
        return choices
    return repair(task, choices, task.limits)


def all_within(task: Task, most: int) -> IntArray | None:
    """Every allocation within the budgets, where their costs add up.

    Layers are added one after the other, and what the cheapest rest cannot bring within a budget is left out.

    Args:
        task: The task.
        most: Beginnings of allocations that are kept at once.

    Returns:
        int64 (N, L); None if there are more than `most`, or costs do not add up.
    """
    if not all(metric in task.costs for metric in task.limits):
        return None
    costs, limits = task.device_costs.bounded_limits(task.limits)
    rest, tolerant_limits = least_rest(costs, task.choosable), limits * (1 + TOLERANCE)
    beginnings, used = np.zeros((1, 0), dtype=np.int64), np.zeros((1, len(limits)))
    for layer in range(len(task.workload)):
        choices = np.flatnonzero(task.choosable[layer])
        total = used[:, None] + costs[:, layer, choices].T
        rows, columns = np.nonzero((total + rest[:, layer + 1] <= tolerant_limits).all(axis=2))
        if len(rows) > most:
            return None
        beginnings, used = np.column_stack([beginnings[rows], choices[columns]]), total[rows, columns]
    return beginnings


def spend_slack(session: SearchSession, choices: IntArray, loss: FloatArray | None = None) -> IntArray:
    """Change again what still fits into the budget, most loss avoided first.

    Args:
        session: The search.
        choices: int64 (L,) within the budget.
        loss: float64 (L, P) that is avoided; the predicted loss by default.
    """
    task = session.task
    current = choices.copy()
    loss = task.predicted_loss if loss is None else loss
    rows = np.arange(len(current))
    while True:
        gains = np.where(task.choosable, loss[rows, current][:, None] - loss, 0.0)
        order = np.argsort(-gains, axis=None, kind="stable")
        layers, others = np.unravel_index(order[gains.ravel()[order] > 0], gains.shape)
        candidates = np.repeat(current[None], len(layers), axis=0)
        candidates[np.arange(len(layers)), layers] = others
        best = first_fit(session, candidates)
        if best is None:
            return current
        current = best


def first_fit(session: SearchSession, candidates: IntArray) -> IntArray | None:
    """The first of some choices (N, L) within the budgets; a device whose costs do not add up is asked no further."""
    if all(metric in session.task.costs for metric in session.task.limits):
        fit = np.flatnonzero(fits_many(session, candidates))
        return candidates[fit[0]] if len(fit) else None
    return next((candidate for candidate in candidates if fits(session, candidate)), None)


def near_the_budget(session: SearchSession) -> IntArray | None:
    """A random allocation within the budgets that is `filled`; without budgets, just a random one.

    Returns:
        int64 (L,), or None where a draw met no budget.
    """
    drawn = tolerant(session, lambda: random_choices(session.task, session.rng))
    return drawn if drawn is None or not session.task.limits else filled(session, drawn)


def filled(session: SearchSession, choices: IntArray) -> IntArray:
    """Choices within the budgets whose layers, in a random order, get the widest choice that still fits."""
    task = session.task
    widths = np.asarray(task.precisions, dtype=np.float64).sum(axis=1)
    for layer in session.rng.permutation(len(choices)):
        wider = np.flatnonzero(task.choosable[layer] & (widths > widths[choices[layer]]))
        candidates = np.repeat(choices[None], len(wider), axis=0)
        candidates[:, layer] = wider[np.argsort(-widths[wider], kind="stable")]
        best = first_fit(session, candidates)
        choices = choices if best is None else best
    return choices


def narrowed(session: SearchSession, choices: IntArray) -> IntArray | None:
    """Choices whose layers are narrowed step by step, in a random order, until the budgets are met.

    Quicker than `within_budget`, which changes as few layers as possible and is asked where narrowing does not help.
    """
    task = session.task
    current = task.nearest_choosable(choices)
    if fits(session, current):
        return current
    widths = np.asarray(task.precisions, dtype=np.float64).sum(axis=1)
    for _ in task.precisions[1:]:
        steps = [current]
        for layer in session.rng.permutation(len(current)):
            narrower = np.flatnonzero(task.choosable[layer] & (widths < widths[current[layer]]))
            if len(narrower):
                current = current.copy()
                current[layer] = narrower[np.argmax(widths[narrower])]
                steps.append(current)
        inside = first_fit(session, np.asarray(steps[1:]).reshape(-1, len(current)))
        if inside is not None:
            return inside
    return within_budget(session, choices)


def fresh_choices(session: SearchSession) -> IntArray | None:
    """A random allocation within the budgets that this search has not evaluated, near the budget if possible.

    Where draws bring nothing new, neighbours of what was evaluated are taken, so that nothing that can be reached by
    small changes is missed.

    Returns:
        int64 (L,), or None if there is nothing new to be found.
    """
    task = session.task
    for _ in range(_DRAWS):
        drawn = near_the_budget(session)
        if drawn is not None and not session.knows(task.allocation(drawn)):
            return drawn
    for position in session.rng.permutation(len(session.trials)):
        around = neighbours(task, task.choices(session.trials[int(position)].allocation))
        unknown = np.asarray([not session.knows(task.allocation(choices)) for choices in around], dtype=bool)
        fitting = np.flatnonzero(unknown)[fits_many(session, around[unknown])]
        if len(fitting):
            return np.asarray(around[session.rng.choice(fitting)])
    return None


def new_near(session: SearchSession, choices: IntArray, fill: float = 0.0) -> IntArray | None:
    """An allocation within the budgets that this search has not evaluated, close to the given one.

    What exceeds a budget is `narrowed`. Where the result is known, a few mutations of the given one are tried, and at
    last `fresh_choices`.

    Args:
        session: The search.
        choices: int64 (L,).
        fill: Probability that what is left of the budgets is spent.

    Returns:
        int64 (L,), or None if there is nothing new to be found.
    """
    task = session.task
    changed = choices
    for _ in range(_MUTATIONS):
        inside = narrowed(session, changed)
        if inside is not None:
            if fill > 0 and task.limits and session.rng.random() < fill:
                inside = filled(session, inside)
            if not session.knows(task.allocation(inside)):
                return inside
        changed = random_neighbour(task, choices, session.rng)
    return fresh_choices(session)
