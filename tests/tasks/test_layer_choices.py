"""Random choices for each layer, against brute force: solvers, repairs, masks, baselines, environments, every agent."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layerwise_devices import ETHOS_LIKE, HAILO_LIKE, BoundedDataflow, Dataflow, DeclaringSets, RaisingSets, WholeSets
from small_task import FormulaEvaluator

from amed_env import Task, load_device
from amed_env.agents import SearchSession, agent_names, make_agent
from amed_env.agents.learners.vec_continuous import ContinuousVecEnv
from amed_env.agents.learners.vec_env import LayerWiseVecEnv
from amed_env.agents.searchers.moves import all_within, fresh_choices, random_choices
from amed_env.agents.searchers.neighbours import neighbours
from amed_env.envs import ContinuousWidths, LayerWiseEnv, OneShotEnv, RandomWalkEnv
from amed_env.errors import BudgetError
from amed_env.hardware import Cost, build_table, check_hardware, csv_text
from amed_env.hardware.tables.lookup_files import parse_csv
from amed_env.hardware.tables.lookup_table import TableBackend
from amed_env.problem.best_choices import best_choices
from amed_env.problem.constraints import cheapest_choices
from amed_env.problem.objective import parse_budgets
from amed_env.tasks.repair import repair

PAIRS = [(2, 2), (4, 4), (8, 8), (2, 8), (4, 8), (8, 4), (8, 16), (16, 16)]
SETS = st.lists(st.sets(st.sampled_from(PAIRS), min_size=1, max_size=4), min_size=2, max_size=4)


@st.composite
def tasks(draw, kinds=(RaisingSets, DeclaringSets), metrics=("latency", "luts"), most_budgets=2):
    """A task whose layers choose apart from sets of pairs, with budgets between the least and the most cost."""
    sets = draw(SETS)
    factors = draw(st.lists(st.sampled_from([1.0, 0.5, 3.0, -1.0]), min_size=len(sets), max_size=len(sets)))
    harms = draw(st.lists(st.floats(0.01, 1.0), min_size=len(sets), max_size=len(sets)))
    device = draw(st.sampled_from(kinds))(sets, factors)
    separate = draw(st.booleans())
    bits = sorted({bits for pairs in sets for pair in pairs for bits in pair})
    options = {"separate": True} if separate and len(bits) > 1 else {}
    free = Task("formula", FormulaEvaluator(len(sets), harms), device, bits if options else None, **options)
    every = [free.cost(allocation) for allocation in allocations(free)]
    budgets = {}
    for name in draw(st.lists(st.sampled_from(metrics), unique=True, max_size=most_budgets)):
        costs = sorted(cost[{"latency": "latency_ms"}.get(name, name)] for cost in every)
        unit = {"latency": "ms", "luts": " LUT"}[name]
        budgets[name] = f"{draw(st.sampled_from(costs)) * (1 + 1e-6)!r}{unit}"
    try:
        return free.with_budget(budgets)
    except BudgetError:  # two budgets may contradict each other
        return free


def allocations(task):
    """Every allocation of a task, by the sets alone."""
    return [task.allocation(choices) for choices in every_choice(task)]


def every_choice(task):
    rows = [np.flatnonzero(of_layer) for of_layer in task.choosable]
    return np.asarray(list(itertools.product(*rows)))


def is_legal(task, allocation):
    sets = task.backend.sets
    return all(precision in of_layer for precision, of_layer in zip(allocation.values(), sets, strict=True))


@given(tasks())
def test_the_space_is_what_the_device_allows(task):
    for row, pairs in enumerate(task.backend.sets):
        chosen = set(task.space.layer_choices[row])
        if task.separate:
            assert chosen == set(pairs)
        else:
            assert chosen and chosen <= set(pairs)
            tied = {pair for pair in pairs if pair[0] == pair[1]}
            assert chosen == tied or chosen == set(pairs) or {w for w, _ in chosen} <= {2, 3, 4, 8}
    assert all(is_legal(task, allocation) for allocation in allocations(task))


@given(tasks(), st.randoms(use_true_random=False))
def test_exact_solvers_find_the_optimum_of_brute_force(task, random):
    choices = every_choice(task)
    rows = np.arange(len(task.workload))
    fitting = [c for c in choices if task.feasible(task.cost(task.allocation(c)).metrics)]
    assert fitting
    values = np.asarray([task.predicted_loss[rows, c].sum() for c in fitting])
    costs, limits = task.device_costs.bounded_limits(task.limits)
    solved = cheapest_choices(costs, limits, task.predicted_loss, task.choosable)
    assert task.predicted_loss[rows, solved].sum() == pytest.approx(values.min())
    found = best_choices(costs, limits, task.predicted_loss, None, task.choosable, count=3)
    assert found.values == pytest.approx(np.sort(values)[: len(found.values)])
    within = all_within(task, 10_000)
    assert {tuple(c) for c in within} == {tuple(c) for c in fitting}
    assert task.device_costs.smallest_known("latency_ms") == pytest.approx(
        min(task.cost(task.allocation(c))["latency_ms"] for c in choices)
    )
    if task.limits:
        # Whatever was wanted, a repair is within the budgets and changes no more layers than it must.
        wanted = np.asarray([random.randrange(len(task.precisions)) for _ in rows])
        repaired = repair(task, wanted, task.limits)
        assert any((repaired == c).all() for c in fitting)
        assert (repaired != wanted).sum() == min((c != wanted).sum() for c in fitting)
    drawn = random_choices(task, np.random.default_rng(0))
    assert any((drawn == c).all() for c in fitting)
    around = neighbours(task, drawn)
    assert all(is_legal(task, task.allocation(c)) for c in around)


@given(tasks(kinds=(WholeSets,)), st.integers(0, 2**31))
def test_costs_that_do_not_add_up_are_repaired_within_the_choices(task, seed):
    rng = np.random.default_rng(seed)
    drawn = random_choices(task, rng)
    if drawn is not None:
        assert is_legal(task, task.allocation(drawn))
        assert task.feasible(task.cost(task.allocation(drawn)).metrics)
    fresh = fresh_choices(SearchSession(task, 5))
    assert fresh is None or is_legal(task, task.allocation(fresh))


@given(tasks(kinds=(RaisingSets, DeclaringSets, WholeSets)))
def test_baselines_are_legal(task):
    space = task.space
    found = [
        *space.uniform_widths().values(),
        *(task.uniform(bits) for bits in space.free_bits),
        task.allocation(space.start_choices()),
        *(task.allocation(space.uniform_choices(int(choice))) for choice in space.free_choices),
        task.allocation(task.nearest_choosable(np.zeros(len(task.workload), dtype=np.int64))),
        task.device_costs.reference_allocation,
    ]
    assert all(is_legal(task, allocation) for allocation in found)
    for bits, allocation in space.uniform_widths().items():
        for precision, of_layer in zip(allocation.values(), space.layer_choices, strict=True):
            widths = {p.weight_bits for p in of_layer}
            assert precision.weight_bits == min((w for w in widths if w >= bits), default=max(widths))
    for bits in {1, 2, 3, 4, 8, 16, 32} - set(space.free_bits):
        assert set(task.uniform(bits).values()) == {(bits, task.activation_bits or bits)}
    result = make_agent("uniform").search(task, 20, 0)
    result.add_baselines()
    assert all(is_legal(task, trial.allocation) for trial in result.baselines.values())


@given(tasks(metrics=("latency", "luts")), st.integers(0, 2**31))
def test_masks_never_lead_into_a_dead_end(task, seed):
    env, rng = LayerWiseEnv(task, reward="terminal"), np.random.default_rng(seed)
    for _ in range(3):
        env.reset(seed=int(rng.integers(2**31)))
        done = False
        while not done:
            mask = env.action_masks()
            if task.separate:
                half = len(task.bits)
                action = np.asarray([rng.choice(np.flatnonzero(part)) for part in (mask[:half], mask[half:])])
            else:
                action = int(rng.choice(np.flatnonzero(mask)))
            observation, _, done, truncated, info = env.step(action)
            assert not truncated and env.observation_space.contains(observation)
            if not task.separate:
                assert not info["action_clamped"]
        assert is_legal(task, info["allocation"]) and info["feasible"]
        if len(task.limits) < 2:  # the masks are sufficient then
            assert not info["repaired"]


@given(tasks(kinds=(RaisingSets, WholeSets), most_budgets=1), st.integers(0, 2**31))
@settings(max_examples=50)
def test_every_environment_stays_within_the_choices(task, seed):
    rng = np.random.default_rng(seed)
    for env in (
        LayerWiseEnv(task),
        OneShotEnv(task),
        RandomWalkEnv(task, moves=6),
        ContinuousWidths(LayerWiseEnv(task, reward="terminal")),
    ):
        env.action_space.seed(int(rng.integers(2**31)))
        observation, _ = env.reset(seed=0)
        done = False
        while not done:
            assert env.observation_space.contains(observation)
            observation, _, terminated, truncated, info = env.step(env.action_space.sample())
            assert not truncated
            done = terminated
            if "allocation" in info:
                assert is_legal(task, info["allocation"])
    masks = OneShotEnv(task).action_masks().reshape(task.choosable.shape)
    assert masks.any(axis=1).all() and not (masks & ~task.choosable).any()


@given(tasks(), st.integers(0, 2**31))
@settings(max_examples=30)
def test_environments_that_are_stepped_at_once_do_as_single_ones(task, seed):
    rng = np.random.default_rng(seed)
    if not task.limits:  # or each draws budgets of its own
        task = task.with_budget({"memory": "1MiB"})
    single = LayerWiseEnv(task, reward="predicted")
    vector = LayerWiseVecEnv(3, LayerWiseEnv(task, reward="predicted"))
    assert np.array_equal(vector.reset()[0], single.reset()[0])
    vector.action_space.seed(seed)
    for _ in task.workload:
        assert np.array_equal(vector.env_method("action_masks")[0], single.action_masks())
        actions = np.asarray([vector.action_space.sample() for _ in range(3)])
        observations, rewards, _, infos = vector.step(actions)
        observation, reward, ended, _, info = single.step(actions[0] if task.separate else int(actions[0]))
        assert rewards[0] == pytest.approx(reward)
        assert np.array_equal(infos[0].get("terminal_observation", observations[0]), observation)
    assert ended and infos[0]["action_taken"] == info["action_taken"]
    continuous = ContinuousVecEnv(LayerWiseVecEnv(2, LayerWiseEnv(task, reward="predicted")))
    continuous.reset()
    for _ in range(len(task.workload) * (2 if task.separate else 1)):
        _, _, dones, _ = continuous.step(rng.uniform(-1, 1, (2, 1)))
    assert dones.all()


@given(tasks(most_budgets=0))
@settings(max_examples=50)
def test_tables_of_such_devices_are_devices_of_the_same_choices(task):
    precisions = tuple(sorted({p for pairs in task.backend.sets for p in pairs}))
    built = build_table(task.backend, task.workload, precisions, {})
    table = TableBackend(parse_csv(csv_text(built), "table"))
    again = Task("formula", task.evaluator, table, task._asked_bits, separate=task.separate)
    assert again.space.layer_choices == task.space.layer_choices
    for allocation in allocations(task)[:20]:
        for metric in ("latency_ms", "luts"):
            assert again.cost(allocation)[metric] == task.cost(allocation)[metric]


@given(SETS, st.sampled_from([RaisingSets, DeclaringSets, WholeSets]))
@settings(max_examples=30)
def test_such_devices_pass_the_checks(sets, kind):
    check_hardware(kind(sets), FormulaEvaluator(len(sets)).workload)


DEVICES = {
    "ethos-like": (ETHOS_LIKE, {"memory": 0.6}),
    "hailo-like": (HAILO_LIKE, {"memory": 0.8}),
    "dataflow": (Dataflow, {"luts": 0.6, "frame_time": "0.004ms"}),
    "bounded-dataflow": (BoundedDataflow, {"luts": 0.6}),
}


@pytest.mark.parametrize("name", [*sorted(agent_names()), "agents.hill_climbing:HillClimbing"])
@pytest.mark.parametrize("device", DEVICES)
def test_every_agent_searches_devices_with_choices_of_their_own(name, device):
    backend, budget = DEVICES[device]
    task = Task("formula", FormulaEvaluator(5), load_device(backend), budgets=parse_budgets(budget))
    agent = make_agent(name)
    if hasattr(agent, "warm_start_steps"):
        agent.warm_start_steps = 400
    result = agent.search(task, 12, 0)
    assert result.best is not None and result.trials and not result.faults
    for trial in result.trials:
        task.choices(trial.allocation)  # says what a layer may not have
    assert task.feasible(result.best.costs)
    result.add_report()
    assert set(budget) <= set(result.relative_costs(result.best.costs))


@pytest.mark.parametrize("name", sorted(agent_names()))
def test_every_agent_ends_where_nothing_is_within_the_budgets(name):
    """On a device whose costs do not add up nobody knows that beforehand."""
    budgets = parse_budgets({"luts": 0.01})
    task = Task("formula", FormulaEvaluator(3), Dataflow(), budgets=budgets)
    agent = make_agent(name)
    if hasattr(agent, "warm_start_steps"):
        agent.warm_start_steps = 400
    assert agent.search(task, 5, 0).best is None


def test_a_maximum_that_two_layers_share_is_repaired():
    """No single change lowers it, so that descent alone would find no way."""

    class Slowest(WholeSets):
        def evaluate(self, workload, allocation):
            widest = max(precision.weight_bits for precision in allocation.values())
            return Cost(self.name, {"latency_ms": float(widest), "luts": 1.0})

    sets = [[(2, 2), (4, 4), (8, 8)], [(4, 4), (8, 8)], [(2, 2), (4, 4)]]
    task = Task("formula", FormulaEvaluator(3), Slowest(sets), budgets=parse_budgets({"latency": "4ms"}))
    wide = task.choices(task.uniform(8))
    repaired = task.allocation(repair(task, wide, task.limits))
    assert list(repaired.values()) == [(4, 4), (4, 4), (4, 4)]
    narrow = task.choices(task.uniform(8).replace({"layer0": (2, 2)}))
    assert list(task.allocation(repair(task, narrow, task.limits)).values()) == [(2, 2), (4, 4), (4, 4)]
    assert repair(task, wide, {"latency_ms": 1.0}) is None
