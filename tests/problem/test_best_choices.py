"""Best choices against every allocation, and how much the largest network takes."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from amed_env.problem.best_choices import best_choices
from amed_env.problem.constraints import cheapest_choices


def problem(seed, layers, count, budgets, with_pairs):
    numbers = np.random.default_rng(seed)
    costs = numbers.random((budgets, layers, count))
    limits = costs.mean(axis=2).sum(axis=1) * numbers.uniform(0.6, 1.1, budgets)
    single = numbers.normal(size=(layers, count))
    choosable = numbers.random((layers, count)) < 0.8
    choosable[:, 0] = True
    pairs = None
    if with_pairs:
        pairs = numbers.normal(size=(layers, count, layers, count))
        pairs = pairs + pairs.transpose(2, 3, 0, 1)
    return costs, limits, single, pairs, choosable


def every_value(costs, limits, single, pairs, choosable):
    """Value and choices of everything within the limits, best first, one allocation after the other."""
    found = []
    layers, count = single.shape
    for choices in itertools.product(range(count), repeat=layers):
        if not all(choosable[i, c] for i, c in enumerate(choices)):
            continue
        if any(
            sum(table[i, c] for i, c in enumerate(choices)) > limit for table, limit in zip(costs, limits, strict=True)
        ):
            continue
        value = sum(single[i, c] for i, c in enumerate(choices))
        if pairs is not None:
            value += sum(pairs[i, choices[i], j, choices[j]] for i in range(layers) for j in range(i + 1, layers))
        found.append((value, choices))
    return sorted(found)


problems = st.builds(
    problem, st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 4), st.integers(0, 2), st.booleans()
)


@given(problems)
def test_the_best_ones_are_those_of_all_allocations_and_proven(instance):
    expected = every_value(*instance)[:6]
    costs, limits, single, pairs, choosable = instance
    found = best_choices(costs, limits, single, pairs, choosable, count=6)
    np.testing.assert_allclose(found.values, [value for value, _ in expected], atol=1e-9)
    assert found.gap == 0
    if len(found.choices) > 1:
        without = best_choices(costs, limits, single, pairs, choosable, count=5, excluded={found.choices[0].tobytes()})
        np.testing.assert_allclose(without.values, found.values[1:])


@given(problems)
def test_a_narrow_frontier_never_claims_too_much(instance):
    expected = every_value(*instance)
    costs, limits, single, pairs, choosable = instance
    found = best_choices(costs, limits, single, pairs, choosable, most_width=2)
    for value in found.values:
        assert expected[0][0] >= min(value, found.floor) - 1e-9


def test_both_solvers_agree_on_a_network_of_56_layers():
    numbers = np.random.default_rng(0)
    widths = np.array([2.0, 3.0, 4.0, 8.0])
    costs = numbers.lognormal(0, 1, (2, 56, 1)) * widths * numbers.uniform(0.9, 1.1, (2, 56, 4))
    single = numbers.lognormal(0, 1.5, (56, 1)) * 4.0**-widths * numbers.uniform(0.8, 1.2, (56, 4))
    limits = costs.sum(axis=1)[:, 3] * 0.5
    for budgets, proven in ((1, True), (2, False)):
        exact = single[np.arange(56), cheapest_choices(costs[:budgets], limits[:budgets], single)].sum()
        found = best_choices(costs[:budgets], limits[:budgets], single, count=20)
        assert np.all(np.diff(found.values) >= 0) and (found.gap == 0) == proven
        assert found.values[0] - found.gap - 1e-6 <= exact <= found.values[0] + 1e-6
        assert found.values[0] <= exact * (1 + (1e-6 if proven else 0.01))
