"""Searchers without learning: feasible, repeatable, resumable, never stuck; exact ones against every allocation."""

import numpy as np
import pytest
from small_task import (
    SAMPLES,
    BitProportional,
    FormulaEvaluator,
    InteractingEvaluator,
    SharedBuffer,
    all_choices,
    formula_task,
)

from amed_env import Task
from amed_env.agents import make_agent
from amed_env.agents.searchers.calibration import Calibration, Terms
from amed_env.agents.searchers.neighbours import neighbours
from amed_env.errors import AgentError, UnknownNameError
from amed_env.hardware import load_device
from amed_env.problem.best_choices import objective
from amed_env.problem.objective import parse_budgets

SEARCHERS = ("milp", "pairwise", "local", "annealing", "evolution", "tpe")


def keys(result):
    return [trial.allocation.key() for trial in result.trials]


def within(task):
    """Every allocation within the budgets, asked one by one: int (N, L)."""
    every = all_choices(task)
    allowed = every[task.choosable[np.arange(every.shape[1]), every].all(axis=1)]
    return np.array([c for c in allowed if task.feasible(task.cost(task.allocation(c)).metrics)])


def interacting_task(seed, budget=None, layers=7):
    return Task(
        "interacting",
        InteractingEvaluator(layers, seed),
        load_device(BitProportional()),
        (2, 4, 8),
        budgets=parse_budgets(budget or {"latency": 0.5}),
    )


@pytest.mark.parametrize("name", [*SEARCHERS, "model-ppo"])
def test_the_first_evaluation_is_the_optimum_of_the_proxy(name):
    task = formula_task(5, {"latency": 0.45}, harms=[0.31, 0.17, 0.83, 0.47, 0.59])
    every = within(task)
    best = every[task.predicted_loss[np.arange(5), every].sum(axis=1).argmin()]
    assert keys(make_agent(name).search(task, 1)) == [task.allocation(best).key()]


@pytest.mark.parametrize("name", SEARCHERS)
def test_pins_and_separate_widths_are_kept(name):
    task = Task(
        "formula",
        FormulaEvaluator(4),
        load_device(BitProportional()),
        (2, 4, 8),
        separate=True,
        budgets=parse_budgets({"latency": 0.75}),
        pins={"first": 8, "layer2": (8, 4)},
    )
    result = make_agent(name).search(task, 25)
    assert len(result.trials) == 25
    for trial in result.trials:
        assert trial.allocation["layer0"] == (8, 8) and trial.allocation["layer2"] == (8, 4)
        assert task.feasible(trial.costs)
    assert any(p.weight_bits != p.activation_bits for t in result.trials for p in (t.allocation["layer1"],))


@pytest.mark.parametrize("name", SEARCHERS)
@pytest.mark.parametrize("device", [SharedBuffer(), "bitfusion-chained"])
def test_devices_whose_costs_do_not_add_up(name, device):
    task = formula_task(4, {"latency": 0.5 if isinstance(device, SharedBuffer) else 0.7}, device=device)
    feasible = {task.allocation(choices).key() for choices in within(task)}
    assert 12 <= len(feasible) < 81
    result = make_agent(name).search(task, 81)
    assert set(keys(result)) == feasible  # nothing else, and the search goes on until nothing is left


@pytest.mark.parametrize("name", SEARCHERS)
def test_small_spaces_are_used_up_and_come_to_an_end(name):
    task = formula_task(3, {"latency": 0.5})
    result = make_agent(name).search(task, 100)
    assert set(keys(result)) == {task.allocation(choices).key() for choices in within(task)}
    pinned = Task(
        "formula",
        FormulaEvaluator(2),
        load_device(BitProportional()),
        (2, 4),
        budgets=parse_budgets({"latency": 0.5}),
        pins={"layer0": 4, "layer1": 2},
    )
    assert len(make_agent(name).search(pinned, 5).trials) == 1


@pytest.mark.parametrize("name", SEARCHERS)
def test_ties_of_quality_do_not_stop_a_search(name):
    result = make_agent(name).search(formula_task(5, {"latency": 0.6}, harms=[1e-9] * 5), 60)
    assert len(set(keys(result))) == 60


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("budget", [{"latency": 0.4}, {"latency": 0.7, "memory": 0.5}])
def test_milp_without_calibration_follows_the_order_of_the_proxy_among_all_allocations(budget, separate):
    layers = 3 if separate else 5
    task = formula_task(layers, budget, harms=[0.31, 0.17, 0.83, 0.47, 0.59][:layers], separate=separate)
    values = np.sort(task.predicted_loss[np.arange(layers), within(task)].sum(axis=1))
    result = make_agent("milp", calibrate=False).search(task, 15)
    found = [task.predicted_loss[np.arange(layers), task.choices(t.allocation)].sum() for t in result.trials]
    assert found == pytest.approx(values[:15], abs=1e-9)


def test_milp_takes_proxies_in_turn():
    def fresh_task():
        return formula_task(5, {"latency": 0.5}, harms=[0.31, 0.05, 1.83, 0.47, 0.02])

    task = fresh_task()
    every = within(task)
    rows = np.arange(5)
    by = {name: make_agent("milp", proxy=name, calibrate=False).search(task, 2) for name in ("kl", "fisher")}
    other = task.evaluator.sensitivity("fisher", task.precisions)
    best = every[other[rows, every].sum(axis=1).argmin()]
    assert keys(by["fisher"])[0] == task.allocation(best).key() != keys(by["kl"])[0]
    both = make_agent("milp", proxy="kl,fisher", calibrate=False).search(fresh_task(), 3)
    assert keys(both)[:2] == [keys(by["kl"])[0], keys(by["fisher"])[0]]
    assert make_agent("milp", proxy="kl,fisher").search(fresh_task(), 30).evaluations == 30


def shuffled_task(seed):
    task = formula_task(8, {"latency": 0.45}, harms=[3.0, 0.02, 1.5, 0.01, 0.4, 2.5, 0.05, 0.8])
    if seed is not None:
        loss = task.predicted_loss
        task.__dict__["predicted_loss"] = np.random.default_rng(seed).permutation(loss.ravel()).reshape(loss.shape)
    return task


def test_a_shuffled_proxy_makes_milp_worse_and_trials_mend_it():
    first = make_agent("milp").search(shuffled_task(None), 1).best.quality.accuracy
    wrong = [make_agent("milp").search(shuffled_task(seed), 1).best.quality.accuracy for seed in range(5)]
    assert max(wrong) < first
    plain = [make_agent("milp", calibrate=False).search(shuffled_task(s), 60).best.quality.accuracy for s in range(5)]
    mended = [make_agent("milp").search(shuffled_task(s), 60).best.quality.accuracy for s in range(5)]
    assert np.mean(mended) > np.mean(plain) + 0.02 and min(mended) > first - 0.01


@pytest.mark.parametrize("project", [False, True])
def test_pairwise_without_calibration_follows_singles_and_pairs(project):
    task = interacting_task(3, layers=5)
    pairs = task.evaluator.pair_divergences(task.precisions, 4)

    def value(choices):
        cells = np.zeros(15)
        cells[np.arange(5) * 3 + choices] = 1
        form = np.diag(task.predicted_loss.ravel()) + pairs.reshape(15, 15) / 2
        if project:
            values, vectors = np.linalg.eigh(form)
            form = vectors @ np.diag(np.maximum(values, 0)) @ vectors.T
        return cells @ form @ cells

    values = sorted(value(choices) for choices in within(task))
    agent = make_agent("pairwise", project=project, calibrate=False)
    found = [value(task.choices(t.allocation)) for t in agent.search(task, 8).trials]
    assert found == pytest.approx(values[:8], abs=1e-9) and agent.gap == 0
    # The negative control: without pairs the order is another one.
    additive = [value(task.choices(t.allocation)) for t in make_agent("milp", calibrate=False).search(task, 8).trials]
    assert additive != pytest.approx(values[:8], abs=1e-5)


def test_a_model_with_pairs_learns_interactions_that_an_additive_model_cannot():
    task = interacting_task(2)
    numbers = np.random.default_rng(0)
    choices = numbers.integers(0, 3, (300, 7))
    truth = np.array([task.quality(task.allocation(c)).loss for c in choices])

    def agreement(pairwise):
        model = Calibration([Terms(task.predicted_loss, None)], pairwise)
        terms = model.fit(choices[:200], truth[:200])
        return np.corrcoef(objective(terms.single, terms.pairs, choices[200:]), truth[200:])[0, 1]

    assert agreement(True) > agreement(False) + 0.02 and agreement(True) > 0.95


def test_one_trial_leaves_the_order_of_the_prior():
    prior = np.random.default_rng(1).random((4, 3))
    terms = Calibration([Terms(prior, None)]).fit(np.zeros((1, 4), dtype=np.int64), np.array([-2.0]))
    every = np.array(np.meshgrid(*[range(3)] * 4)).reshape(4, -1).T
    expected = np.argsort(objective(prior, None, every))
    assert np.array_equal(np.argsort(objective(terms.single, terms.pairs, every)), expected)


def test_local_ends_in_an_allocation_without_a_better_neighbour():
    # The proxy is wrong on purpose: true harms are the other way round.
    task = formula_task(4, {"latency": 0.5}, harms=[3.0, 1.5, 0.02, 0.01])
    wrong = FormulaEvaluator(4, [0.01, 0.02, 1.5, 3.0])
    task.evaluator.predicted_loss = wrong.predicted_loss
    result = make_agent("local").search(task, 40)
    best = max(task.quality(task.allocation(choices)).correct for choices in within(task))
    assert result.best.quality.correct == best > result.trials[0].quality.correct


@pytest.mark.parametrize("name", SEARCHERS)
def test_searchers_beat_random_where_layers_interact_and_tie_where_nothing_matters(name):
    def median(agent):
        return np.median(
            [make_agent(agent).search(interacting_task(5, layers=10), 100, s).best.quality.correct for s in range(5)]
        )

    assert median(name) > median("random") + SAMPLES // 200
    # The negative control: where nothing matters, nobody is better.
    same = [make_agent(a).search(formula_task(5, harms=[1e-9] * 5), 20).best.quality.correct for a in (name, "random")]
    assert same[0] == same[1]


def test_neighbours_differ_in_one_layer_or_exchange_between_two():
    task = formula_task(3)
    around = neighbours(task, np.array([1, 1, 0]))
    changed = (around != [1, 1, 0]).sum(axis=1)
    assert (changed == 1).sum() == 6 and len({tuple(c) for c in around}) == len(around)
    bits = np.array([2, 4, 8])
    for choices in around[changed == 2]:
        differences = bits[choices] - bits[[1, 1, 0]]
        assert (differences > 0).sum() == (differences < 0).sum() == 1
    assert (changed == 2).sum() == 2 + 2  # 4->8 with 4->2 both ways; 2->4 with either 4->2


def test_wrong_options_are_refused():
    with pytest.raises(UnknownNameError, match="'fisher'"):
        make_agent("milp", proxy="fischer")
    with pytest.raises(AgentError, match="calibrate"):
        make_agent("milp", calibrate="yes")
    with pytest.raises(AgentError, match="above"):
        make_agent("annealing", first_temperature=0.1, last_temperature=0.2)
    with pytest.raises(AgentError, match="true or false"):
        make_agent("pairwise", project="yes")
    with pytest.raises(AgentError, match="population"):
        make_agent("evolution", population=0)


@pytest.mark.parametrize(("name", "module"), [("evolution", "pymoo.algorithms.moo.nsga2"), ("tpe", "optuna")])
def test_a_missing_extra_is_named(name, module, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(AgentError, match=r"amed-env\[search\]"):
        make_agent(name)
