"""Pinned layers: every agent, mask, budget and report respects them."""

import itertools

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from small_task import BitProportional, SharedBuffer, all_choices, formula_task

import amed_env
import amed_env.problem.objective
from amed_env import Precision, Task
from amed_env.agents import SearchSession, agent_names, make_agent
from amed_env.agents.searchers.baselines import random_choices
from amed_env.envs import LayerWiseEnv, OneShotEnv
from amed_env.errors import AllocationError, BudgetError, InputError, UnknownNameError
from amed_env.problem.pins import parse_pins, pins_text
from amed_env.tasks.repair import repair

LAYERS = ("stem", "middle", "head")
ENDS = {"first": 8, "last": 8}


def pinned_task(layers=4, pins=None, budget=None, device=None, bits=(2, 4, 8), separate=False):
    free = formula_task(layers, device=device)
    budgets = amed_env.problem.objective.parse_budgets(budget)
    pins = ENDS if pins is None else pins
    return Task("formula", free.evaluator, free.backend, bits, separate=separate, budgets=budgets, pins=pins)


def respects(allocation, pins):
    return all(allocation[name] == precision for name, precision in pins.items())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        ({}, {}),
        ({"last": 8, "first": 4}, {"stem": (4, 4), "head": (8, 8)}),
        ({"middle": (8, 4)}, {"middle": (8, 4)}),
        ({"middle": "8/4"}, {"middle": (8, 4)}),
        (["first=8", "head=32"], {"stem": (8, 8), "head": (32, 32)}),
        ("last=8/16", {"head": (8, 16)}),
        ({"first": 8, "stem": 8}, {"stem": (8, 8)}),
    ],
)
def test_pins_are_read(given, expected):
    found = parse_pins(given, LAYERS)
    assert found == expected
    assert list(found) == [name for name in LAYERS if name in expected]


def test_a_layer_that_is_called_first_is_that_layer():
    assert parse_pins({"first": 8, "last": 4}, ("last", "first")) == {"last": (4, 4), "first": (8, 8)}
    assert parse_pins({"last": 4}, ("a", "b")) == {"b": (4, 4)}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"stm": 8}, UnknownNameError, "did you mean 'stem'"),
        ({"first": 8, "stem": 4}, AllocationError, "pinned to w8a8 and to w4a4"),
        ({"first": 0}, AllocationError, "out of range"),
        ({"first": 8.0}, AllocationError, "not an integer"),
        ({"first": (8, 8, 8)}, AllocationError, "3 widths"),
        ({"first": ()}, AllocationError, "0 widths"),
        (["first"], AllocationError, "layer=bits"),
        (["first=eight"], AllocationError, "no width"),
        (["first=8/"], AllocationError, "no width"),
    ],
)
def test_malformed_pins_are_named(given, error, message):
    with pytest.raises(error, match=message):
        parse_pins(given, LAYERS)


WIDTHS = st.one_of(st.integers(1, 16), st.just(32))


@given(st.dictionaries(st.sampled_from(LAYERS), st.tuples(WIDTHS, WIDTHS)))
def test_what_is_written_as_text_is_read_back(pins):
    written = pins_text({name: Precision(*widths) for name, widths in pins.items()})
    assert parse_pins(written.split(", ") if written else [], LAYERS) == pins


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused_with_an_own_error(text):
    try:
        found = parse_pins([text], LAYERS)
    except (AllocationError, UnknownNameError):
        return
    assert len(found) == 1 and set(found) <= {*LAYERS}


def test_pins_as_text():
    assert pins_text({"stem": Precision(8, 8), "head": Precision(8, 4)}) == "stem=8, head=8/4"


def test_what_each_layer_may_choose():
    task = pinned_task(3, {"first": 16, "last": 4})
    assert [p.weight_bits for p in task.precisions] == [2, 4, 8, 16]
    assert task.choosable.tolist() == [
        [False, False, False, True],
        [True, True, True, False],
        [False, True, False, False],
    ]
    assert task.free_bits == (2, 4, 8) and task.space.free_choices.tolist() == [0, 1, 2]
    assert task.uniform(2).key() == "16/16 2/2 4/4"
    assert task.nearest_choosable([0, 0, 0]).tolist() == [3, 0, 1]
    assert task.nearest_choosable([1, 3, 3]).tolist() == [3, 2, 1]  # 16 bits are the pinned layer's alone
    assert "pinned: layer0=16, layer2=4" in repr(task)
    assert task.choices(task.uniform(8)).tolist() == [3, 2, 1]
    for allocation, named in (
        (task.uniform(8).replace({"layer1": (16, 16)}), "layer1"),
        (task.workload.uniform(4), "layer0"),
    ):
        with pytest.raises(AllocationError, match=f"{named}.* none of this task's choices for it"):
            task.choices(allocation)


@pytest.mark.parametrize("separate", [False, True])
def test_a_pin_of_two_widths_is_a_choice_of_its_layer_alone(separate):
    task = pinned_task(3, {"first": (16, 4)}, separate=separate)
    pinned = task.precisions.index(Precision(16, 4))
    assert task.choosable[0].tolist() == [i == pinned for i in range(len(task.precisions))]
    assert not task.choosable[1:, pinned].any()
    assert task.choosable[1].sum() == (9 if separate else 3)


def test_without_pins_everything_may_be_chosen():
    task = formula_task(3)
    assert task.choosable.all() and task.pins == {} and task.uniform(4) == task.workload.uniform(4)


def test_costs_and_the_reference_are_those_of_the_device():
    task = pinned_task(3)
    assert task.reference_cost.metrics == formula_task(3).reference_cost.metrics
    for choices in ([2, 0, 2], [2, 1, 2]):
        summed = task.costs["latency_ms"][range(3), choices].sum()
        assert summed == pytest.approx(task.cost(task.allocation(choices))["latency_ms"])


def test_a_budget_that_only_pins_forbid_is_refused_with_the_smallest_value():
    formula_task(4, {"latency": 0.26})
    with pytest.raises(BudgetError, match="with widths 2, 4, 8 and layer0=8, layer3=8 pinned") as caught:
        pinned_task(budget={"latency": 0.26})
    smallest = float(str(caught.value).split("latency=")[-1].split(" ")[0])
    task = pinned_task(budget={"latency": smallest})
    assert task.feasible(task.cost(task.uniform(2)).metrics)
    least = task.cost(task.uniform(2))["latency_ms"] / task.reference_cost["latency_ms"]
    assert smallest == pytest.approx(least, abs=1e-4)


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_repair_and_random_choices_leave_pinned_layers_alone(seed, share):
    task = pinned_task(3, {"first": 8})
    table, every = task.costs["latency_ms"], all_choices(task)
    every = every[every[:, 0] == 2]
    totals = table[np.arange(3), every].sum(axis=1)
    limits = {"latency_ms": totals.min() + share * (totals.max() - totals.min()) + 1e-9}
    rng = np.random.default_rng(seed)
    wanted = rng.integers(3, size=3)
    repaired = repair(task, wanted, limits)
    assert repaired[0] == 2
    within = every[totals <= limits["latency_ms"]]
    assert (repaired[1:] != wanted[1:]).sum() == (within[:, 1:] != wanted[1:]).sum(axis=1).min()
    task.limits = limits
    drawn = random_choices(task, rng)
    assert drawn[0] == 2 and table[np.arange(3), drawn].sum() <= limits["latency_ms"] * (1 + 1e-9)


@pytest.mark.parametrize("name", [*sorted(agent_names()), "agents.hill_climbing:HillClimbing"])
@pytest.mark.parametrize("device", [BitProportional, SharedBuffer])
def test_every_agent_keeps_pinned_layers(name, device):
    pins = {"first": 8, "layer2": 4}
    budget = {"latency": 0.7} if device is BitProportional else {"memory": 0.7}
    task = pinned_task(5, pins, budget=budget, device=device(), bits=(2, 3, 8))
    agent = make_agent(name)
    if hasattr(agent, "warm_start_steps"):
        agent.warm_start_steps = 400
    result = agent.search(task, 12, 0)
    assert result.trials and all(respects(t.allocation, task.pins) for t in result.trials)
    free = {p for t in result.trials for n, p in t.allocation.items() if n not in task.pins}
    assert free <= {(2, 2), (3, 3), (8, 8)}
    assert result.best is not None and not result.faults


def test_a_budget_without_a_limit_on_what_is_pinned():
    """A pinned width that no other layer may choose is out of reach for them however large the budget is."""
    task = pinned_task(4, {"first": 16}, budget={"latency": 100.0})
    for name in ("random", "greedy", "maskable-ppo"):
        agent = make_agent(name, **({"warm_start_steps": 100} if name == "maskable-ppo" else {}))
        for trial in agent.search(task, 20, 0).trials:
            assert [p.weight_bits == 16 for p in trial.allocation.values()] == [True, False, False, False]


def test_greedy_finds_the_best_of_the_layers_that_are_free():
    task = pinned_task(4, budget={"latency": 0.8})
    best = make_agent("greedy").search(task, 10).best
    allowed = [
        task.uniform(8).replace({"layer1": (first, first), "layer2": (second, second)})
        for first, second in itertools.product((2, 4, 8), repeat=2)
    ]
    feasible = [allocation for allocation in allowed if task.feasible(task.cost(allocation).metrics)]
    assert 0 < len(feasible) < 9
    assert best.quality.correct == max(task.quality(allocation).correct for allocation in feasible)


@pytest.mark.parametrize("separate", [False, True])
def test_the_layer_wise_environment_masks_and_clamps(separate):
    task = pinned_task(4, {"first": 8, "layer2": (2, 2)}, separate=separate)
    env = LayerWiseEnv(task, budget={"latency": 0.7})
    env.reset(seed=0)
    masks, wrong = [], np.array([0, 0]) if separate else 0
    done = False
    while not done:
        masks.append(env.action_masks())
        _, _, done, _, info = env.step(wrong if len(masks) == 1 else np.array([2, 2]) if separate else 2)
    eight = [False, False, True]
    two = [True, False, False]
    assert masks[0].tolist() == eight * (2 if separate else 1)
    assert masks[2].tolist() == two * (2 if separate else 1)
    assert respects(info["allocation"], task.pins) and info["feasible"] and not info["repaired"]
    check_env(LayerWiseEnv(task, budget={"latency": 0.7}), skip_render_check=True)


def test_the_mask_leaves_the_budget_reachable_with_pins():
    task = pinned_task(4, {"last": 8}, budget={"latency": 0.5})
    every = all_choices(task)
    every = every[every[:, 3] == 2]
    table = task.costs["latency_ms"]
    reachable = every[table[np.arange(4), every].sum(axis=1) <= task.limits["latency_ms"] * (1 + 1e-9)]
    env = LayerWiseEnv(task)
    for prefix in itertools.product(range(3), repeat=3):
        env.reset()
        for step in range(4):
            matching = reachable[(reachable[:, :step] == prefix[:step]).all(axis=1)]
            if not len(matching):
                break
            expected = [choice in matching[:, step] for choice in range(3)]
            assert env.action_masks().tolist() == expected
            if step == 3 or not expected[prefix[step]]:
                break
            env.step(prefix[step])


def test_the_one_shot_environment_masks_and_mends():
    task = pinned_task(4, budget={"latency": 0.8})
    env = OneShotEnv(task)
    env.reset(seed=0)
    masks = env.action_masks().reshape(4, 3)
    assert masks[0].tolist() == masks[3].tolist() == [False, False, True]
    assert masks[1].any()
    _, _, _, _, info = env.step(np.zeros(4, dtype=np.int64))
    assert respects(info["allocation"], task.pins)
    env = OneShotEnv(pinned_task(4, {"first": 16}, budget={"latency": 100}))
    env.reset(seed=0)
    _, _, _, _, info = env.step(np.full(4, 3))
    assert info["allocation"].key() == "16/16 8/8 8/8 8/8"


def test_a_drawn_budget_can_be_met_even_if_pins_cost_more_than_uniform_8_bit():
    task = pinned_task(2, {"first": 16, "last": 16})
    env = LayerWiseEnv(task)
    for seed in range(5):
        _, info = env.reset(seed=seed)
        assert task.cost(task.uniform(2))["latency_ms"] <= info["limits"]["latency_ms"] * (1 + 1e-9)


def test_environments_take_pins_by_name_of_the_task_only():
    env = LayerWiseEnv("digits-cnn", budget={"memory": 0.8}, pin=ENDS)
    assert set(env.task.pins) == {"stem", "classifier"}
    with pytest.raises(InputError, match="pin belong to the task"):
        LayerWiseEnv(pinned_task(), pin=ENDS)


def test_a_session_refuses_an_allocation_that_unpins_a_layer():
    task = pinned_task()
    session = SearchSession(task, 3)
    with pytest.raises(AllocationError, match="'layer0' is pinned to w8a8 in this task but has w4a4"):
        session.evaluate(task.workload.uniform(4))
    assert session.evaluations == 0
    session.evaluate(task.uniform(4))
    assert session.evaluations == 1


def test_the_result_reports_pins_and_compares_with_pinned_uniform_widths():
    task = pinned_task(4, {"first": (8, 4)}, budget={"latency": 0.8})
    result = make_agent("greedy").search(task, 6)
    result.add_report()
    document = result.to_json()
    assert document["pins"] == {"layer0": {"w": 8, "a": 4}} and document["bits"] == [2, 4, 8]
    assert set(document["baselines"]) == {"uniform-2", "uniform-4", "uniform-8"}
    assert document["baselines"]["uniform-2"]["allocation"]["layers"] == {
        "layer0": {"w": 8, "a": 4},
        **{f"layer{i}": {"w": 2, "a": 2} for i in (1, 2, 3)},
    }
    assert make_agent("greedy").search(formula_task(), 3).to_json()["pins"] == {}


def test_pins_of_an_own_network():
    import torch
    from torch import nn

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    parts = {n: (torch.randn(20, 5), torch.arange(20) % 2) for n in ("calibration", "search", "test")}
    task = amed_env.make_task(network=network, **parts, budget={"memory": 0.9}, pin=ENDS, recipe="nearest")
    result = make_agent("random").search(task, 4)
    assert {t.allocation["0"] for t in result.trials} == {t.allocation["4"] for t in result.trials} == {(8, 8)}
