import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amed_env.errors import BudgetError, UnknownNameError
from amed_env.problem.objective import (
    Budget,
    final_reward,
    fits,
    parse_budgets,
    potential,
    resolve,
    shaping,
    violation,
)
from amed_env.problem.score import TOP_1

FRACTIONS = st.floats(0, 1)
POSITIVE = st.floats(1e-6, 1e6)


@pytest.mark.parametrize(
    ("text", "metric", "value"),
    [
        ("latency=2.5ms", "latency_ms", 2.5),
        ("latency=250us", "latency_ms", 0.25),
        ("latency=250 µs", "latency_ms", 0.25),
        ("latency=250μs", "latency_ms", 0.25),  # the Greek letter, which looks the same
        ("latency=0.01s", "latency_ms", 10),
        ("latency=1e-2S", "latency_ms", 10),
        ("energy=3nJ", "energy_uj", 0.003),
        ("energy=3uJ", "energy_uj", 3),
        ("energy=3mJ", "energy_uj", 3000),
        ("energy=2J", "energy_uj", 2e6),
        ("memory=96KiB", "weight_kib", 96),
        ("memory=2048B", "weight_kib", 2),
        ("memory=1.024kB", "weight_kib", 1),
        ("memory=2MiB", "weight_kib", 2048),
        ("memory=1.048576MB", "weight_kib", 1024),
        ("bops=5Gbops", "bops", 5e9),
        ("bops=5e9bops", "bops", 5e9),
        (" bops = 7 mbops ", "bops", 7e6),
    ],
)
def test_absolute_budgets(text, metric, value):
    (budget,) = parse_budgets([text])
    assert not budget.relative
    assert resolve([budget], {metric: 123.0}) == {metric: pytest.approx(value)}


@pytest.mark.parametrize(
    ("text", "value"), [("0.5", 0.5), (".5", 0.5), ("1", 1), ("5e-1", 0.5), ("+2", 2), (" 1.5 ", 1.5)]
)
@pytest.mark.parametrize("name", ["latency", "energy", "memory", "bops"])
def test_numbers_without_a_unit_are_relative(name, text, value):
    (budget,) = parse_budgets({name: text})
    assert budget == Budget(name, value)
    assert resolve([budget], {budget.metric: 40.0}) == {budget.metric: 40.0 * value}


@given(st.sampled_from(["latency", "energy", "memory", "bops"]), POSITIVE)
def test_a_number_and_its_text_mean_the_same(name, value):
    assert parse_budgets({name: value}) == parse_budgets([f"{name}={value!r}"]) == parse_budgets({name: str(value)})


@pytest.mark.parametrize(
    "value",
    [
        "",
        "abc",
        "0",
        "-1",
        "0ms",
        "nan",
        "inf",
        "1e999",
        "1e999ms",
        "--1",
        "1..2",
        "0.5x",
        "5 ms ms",
        "50%",
        "ms",
        "0x10",
    ],
)
def test_values_that_are_none(value):
    with pytest.raises(BudgetError, match="latency") as caught:
        parse_budgets({"latency": value})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", [0, -0.1, math.nan, math.inf, True, None, [1], pytest.param(10**400, id="huge")])
def test_numbers_that_are_none(value):
    with pytest.raises(BudgetError):
        parse_budgets({"latency": value})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["latency"], "name=value"),
        (["latency="], "name=value"),
        (["latency=1", "latency=2ms"], "latency is given more than once"),
        (["latency=2KiB"], "unknown unit 'KiB'; use one of us, ms, s"),
        (["memory=2ms"], "unknown unit 'ms'; use one of b, kb, kib"),
    ],
)
def test_malformed_texts_say_what_is_wrong(texts, message):
    with pytest.raises(BudgetError, match=message):
        parse_budgets(texts)


def test_a_typo_gets_the_nearest_name_of_what_the_device_reports():
    reported = {"latency_ms": 1.0, "weight_kib": 1.0, "luts": 1.0}
    with pytest.raises(UnknownNameError, match="did you mean 'latency'") as caught:
        resolve(parse_budgets(["latncy=0.5"]), reported)
    assert caught.value.exit_code == 2
    with pytest.raises(UnknownNameError, match="latency, luts, memory"):
        resolve(parse_budgets({"xyz": 1}), reported)


@pytest.mark.parametrize(
    ("text", "unit", "limit"),
    [
        ("luts=0.5", "LUT", 100.0),
        ("luts=150 LUT", "LUT", 150.0),
        ("luts=150lut", "LUT", 150.0),
        ("frame_time=3ms", "ms", 3.0),
        ("frame_time=3ms", "us", 3000.0),
        ("frame_time=3000 µs", "ms", 3.0),
        ("frame_time=2s", "ms", 2000.0),
        ("frame_time=50ns", "us", 0.05),
        ("sram=2MiB", "KiB", 2048.0),
        ("sram=2KiB", "bytes", 2048.0),
        ("sram=2kB", "B", 2000.0),
        ("heat=3mJ", "uJ", 3000.0),
        ("work=2Gbops", "bit operations", 2e9),
        ("area=4 mm2", "mm2", 4.0),
        ("use=40%", "%", 40.0),
        ("latency_ms=3us", "ms", 0.003),
    ],
)
def test_any_metric_of_a_device_is_limited_in_its_declared_unit(text, unit, limit):
    (budget,) = parse_budgets([text])
    assert resolve([budget], {budget.metric: 200.0}, {budget.metric: unit}) == {budget.metric: pytest.approx(limit)}
    own = budget.in_unit(unit)
    assert own.unit is None and own.relative == budget.relative
    assert own.in_unit(unit) == own


@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        ("luts=3ms", "LUT", "unknown unit 'ms'; use one of LUT, or no unit"),
        ("frame_time=3KiB", "ms", "unknown unit 'KiB'; use one of us, ms, s"),
        ("frame_time=3 LUT", "ms", "unknown unit 'LUT'"),
        ("area=4mm", "mm2", "use one of mm2"),
    ],
)
def test_a_unit_of_something_else_is_refused(text, unit, message):
    (budget,) = parse_budgets([text])
    with pytest.raises(BudgetError, match=message):
        resolve([budget], {budget.metric: 1.0}, {budget.metric: unit})


def test_a_metric_and_its_budget_are_one_name():
    assert parse_budgets({"latency_ms": 0.5}) == parse_budgets({"latency": 0.5})
    with pytest.raises(BudgetError, match="latency is given more than once"):
        parse_budgets(["latency=1", "latency_ms=2ms"])


@given(st.text(max_size=12), st.text(max_size=12))
def test_any_text_is_read_or_refused(name, value):
    for budgets in ({name: value}, {"latency": value}, [f"{name}={value}"], [value]):
        try:
            (budget,) = parse_budgets(budgets)
        except (BudgetError, UnknownNameError):
            continue
        assert 0 < budget.value < math.inf


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(1)])
def test_numbers_of_numpy_are_numbers(number):
    (budget,) = parse_budgets({"latency": number})
    assert budget.value == float(number) and str(budget) == f"latency={float(number):g}"


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(BudgetError, match=r"the budget is 0.5; say of what"):
        parse_budgets(0.5)


def test_no_factor_of_zero_is_a_limit():
    with pytest.raises(BudgetError, match="this device reports 0 as energy_uj of uniform 8 bit"):
        resolve(parse_budgets({"energy": 0.5}), {"energy_uj": 0.0, "latency_ms": 2.0})
    assert resolve(parse_budgets({"energy": "3uJ"}), {"energy_uj": 0.0}) == {"energy_uj": 3.0}


def test_no_budget_is_no_limit():
    assert parse_budgets(None) == parse_budgets([]) == parse_budgets({}) == ()
    assert parse_budgets("latency=0.5") == parse_budgets(["latency=0.5"])


def test_a_device_without_the_metric_is_named():
    with pytest.raises(BudgetError, match="no energy_uj; it reports latency_ms"):
        resolve([Budget("energy", 0.5)], {"latency_ms": 1.0})


@given(POSITIVE, POSITIVE)
def test_violation_is_zero_exactly_where_the_budget_is_met(cost, limit):
    costs, limits = {"latency_ms": cost, "other": 1e9}, {"latency_ms": limit}
    assert (violation(costs, limits) == 0) is fits(costs, limits)
    assert fits(costs, limits) or violation(costs, limits) == pytest.approx(cost / limit - 1)


def test_violations_add_up_and_slack_in_one_pays_for_nothing():
    costs, limits = {"a": 3.0, "b": 1.5, "c": 0.1}, {"a": 2.0, "b": 1.0, "c": 1.0}
    assert violation(costs, limits) == pytest.approx(0.5 + 0.5)


@given(FRACTIONS, FRACTIONS, POSITIVE, st.floats(0, 1), st.floats(0, 1))
def test_cheaper_than_the_budget_is_never_punished(accuracy, reference, limit, first, second):
    cheap, dear = sorted((first * limit, second * limit))
    limits = {"latency_ms": limit}
    gain = TOP_1.gain(accuracy, reference)
    at_limit = final_reward(gain, {"latency_ms": limit}, limits)
    assert final_reward(gain, {"latency_ms": cheap}, limits) == at_limit
    assert final_reward(gain, {"latency_ms": dear}, limits) == at_limit


@given(FRACTIONS, FRACTIONS, POSITIVE, st.floats(1, 10), st.floats(1, 10))
def test_worse_violations_cost_more(accuracy, reference, limit, first, second):
    less, more = sorted((first, second))
    limits = {"latency_ms": limit}
    gain = TOP_1.gain(accuracy, reference)
    rewards = [final_reward(gain, {"latency_ms": factor * limit}, limits) for factor in (1, less, more)]
    assert rewards[0] >= rewards[1] >= rewards[2]
    if more > less + 1e-6:
        assert rewards[1] > rewards[2]


@given(st.lists(st.floats(0, 50), min_size=1, max_size=20), st.floats(0.5, 1))
def test_shaping_adds_the_same_to_every_path(losses, gamma):
    """The discounted sum telescopes to minus the first potential: no path gains or loses by it."""
    potentials = [potential(0.0), *map(potential, losses), 0.0]
    total = sum(
        gamma**step * shaping(before, after, gamma)
        for step, (before, after) in enumerate(itertools.pairwise(potentials))
    )
    assert total == pytest.approx(-potentials[0], abs=1e-9)


@given(st.floats(0, 100), st.floats(0, 100))
def test_potential_falls_as_the_predicted_loss_rises(first, second):
    low, high = sorted((first, second))
    assert potential(low) >= potential(high)
    assert potential(0.0) == 0.0
