"""The agents by name: feasible, deterministic, equal counting; learners learn, and fail where there is no lesson."""

import numpy as np
import pytest
from small_task import SharedBuffer, all_choices, formula_task

import amed_env
from amed_env.agents import Agent, agent_names, list_agents, make_agent
from amed_env.agents.built_in import AGENTS, BUILT_IN
from amed_env.agents.searchers import baselines
from amed_env.agents.searchers.moves import all_within
from amed_env.envs import LayerWiseEnv, base
from amed_env.errors import AgentError, InputError, NonFiniteError, UnknownNameError

LEARNERS = ("maskable-ppo", "ppo", "a2c", "dqn", "qr-dqn")
CONTINUOUS = ("ddpg", "td3", "sac")
SEARCHERS = ("milp", "pairwise", "local", "annealing", "evolution", "tpe")
WITHOUT_CHANCE = ("uniform", "greedy", "milp", "pairwise")


def quick(name, **options):
    quicker = {"warm_start_steps": 300} if name in (*LEARNERS, *CONTINUOUS) else {}
    if name == "model-ppo":
        quicker = {"environments": 16}
    return make_agent(name, **quicker, **options)


def fingerprint(result):
    return [(t.allocation.key(), t.quality.correct) for t in result.trials]


BUDGETS = [(name, {"latency": 0.6}) for name in sorted(BUILT_IN)]
BUDGETS += [(name, budget) for name in SEARCHERS for budget in ({"latency": 0.6, "memory": 0.55}, None)]


@pytest.mark.parametrize(("name", "budget"), BUDGETS, ids=str)
def test_results_are_feasible_counted_and_repeatable(name, budget):
    def run(seed):
        task = formula_task(5, budget)
        return task, quick(name).search(task, 24, seed)

    task, result = run(3)
    assert result.agent == name and task.feasible(result.best.costs)
    assert result.evaluations == len(result.trials) == len({t.allocation for t in result.trials}) <= 24
    asked = [allocation for allocation, _ in task.evaluator.asked]
    assert len(asked) == len(set(asked)) <= 25  # and the float network
    assert {split for _, split in task.evaluator.asked} == {"search"}
    assert fingerprint(run(3)[1]) == fingerprint(result)
    if name in SEARCHERS:
        assert len(result.trials) == 24 and all(task.feasible(trial.costs) for trial in result.trials)
    if name not in WITHOUT_CHANCE and budget:
        assert fingerprint(run(4)[1]) != fingerprint(result)


@pytest.mark.parametrize("failing", [{1}, {5}, {12}, set(range(1, 13))], ids=["first", "fifth", "last", "all"])
@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_no_fault_loses_what_was_found(name, failing):
    task = formula_task(5, {"latency": 0.6})
    number_of = {}

    def evaluate(allocation, split="search", inner=task.evaluator.evaluate):
        if allocation != task.workload.uniform(32) and number_of.setdefault(allocation, 1 + len(number_of)) in failing:
            raise NonFiniteError("the network returns NaN")
        return inner(allocation, split)

    task.evaluator.evaluate = evaluate
    result = quick(name).search(task, 12, 1)
    failed = [number for number in number_of.values() if number in failing]
    assert 1 <= result.evaluations == len(number_of) == len(result.trials) + len(failed) <= 12
    assert len({fault.partition(":")[0] for fault in result.faults}) == len(failed)
    assert (result.best is None) == (not result.trials)


@pytest.mark.parametrize("device", [None, SharedBuffer()], ids=["sums", "no sums"])
@pytest.mark.parametrize("name", ["greedy", "random", "maskable-ppo", "model-ppo", "ddpg", "uniform"])
def test_every_trial_of_a_masked_or_cost_aware_agent_is_within_the_budget(name, device):
    result = quick(name).search(formula_task(4, {"latency": 0.5, "memory": 0.55}, device=device), 15)
    assert result.trials and all(result.task.feasible(t.costs) for t in result.trials)


@pytest.mark.parametrize("name", ["random", "model-ppo", "amed"])
def test_a_small_space_is_searched_to_its_end(name):
    result = quick(name).search(formula_task(2), 100)
    assert result.evaluations == 9 and not result.interrupted


def test_uniform_evaluates_the_feasible_widths_only():
    result = make_agent("uniform").search(formula_task(4, {"latency": 0.5}), 10)
    assert [t.allocation.key() for t in result.trials] == ["4/4 4/4 4/4 4/4", "2/2 2/2 2/2 2/2"]


def test_greedy_follows_its_rule_on_a_case_worked_out_by_hand():
    # Equal layers, 8 -> 4 -> 2 bits: harm h x 2^-bits. With harms 0.8, 0.1 the second layer is narrowed first.
    task = formula_task(2, {"latency": 0.9}, harms=[0.8, 0.1])
    result = make_agent("greedy").search(task, 1)
    assert result.trials[0].allocation.key() == "8/8 4/4"


def test_greedy_comes_near_the_optimum_where_losses_add_up():
    task = formula_task(4, {"latency": 0.6})
    result = make_agent("greedy").search(task, 10)
    table, every = task.costs["latency_ms"], all_choices(task)
    within = every[table[np.arange(4), every].sum(axis=1) <= task.limits["latency_ms"] * (1 + 1e-9)]
    least = task.predicted_loss[np.arange(4), within].sum(axis=1).min()
    found = task.predicted_loss[np.arange(4), task.choices(result.best.allocation)].sum()
    assert found <= 1.05 * least


def feasible_keys(task):
    every = all_choices(task)
    table = task.costs["latency_ms"]
    costs = table[np.arange(every.shape[1]), every].sum(axis=1)
    return {task.allocation(c).key() for c in every[costs <= task.limits["latency_ms"] * (1 + 1e-9)]}


def test_random_finds_everything_with_few_draws_where_little_is_feasible(monkeypatch):
    draws = []
    true_draw = baselines.random_choices
    monkeypatch.setattr(baselines, "random_choices", lambda *given: draws.append(1) or true_draw(*given))
    task = formula_task(7, {"latency": 0.38})
    feasible = feasible_keys(task)
    result = make_agent("random").search(task, 2_000)
    assert {trial.allocation.key() for trial in result.trials} == feasible and 20 < len(feasible) < 200
    assert len(draws) < 4 * len(feasible)


def test_what_random_lists_is_in_no_order_and_every_allocation_as_likely_as_any_other(monkeypatch):
    monkeypatch.setattr(baselines, "random_choices", lambda *_: None)  # so that all is listed
    task = formula_task(3, {"latency": 0.45})
    feasible = sorted(feasible_keys(task))
    searches = 60 * len(feasible)
    first = [make_agent("random").search(task, 1, seed).trials[0].allocation.key() for seed in range(searches)]
    counts = np.array([first.count(key) for key in feasible])
    assert counts.sum() == searches
    # Pearson's statistic of equal shares; its 99.9 % quantile is below this for 3 to 20 classes.
    assert ((counts - 60) ** 2 / 60).sum() < 46
    assert len({make_agent("random").search(task, 50, s).trials[0].allocation.key() for s in range(40)}) > 1


def test_what_is_listed_is_what_is_within_all_budgets():
    task = formula_task(4, {"latency": 0.5, "memory": 0.6})
    listed = all_within(task, 10_000)
    fitting = [c for c in all_choices(task) if task.feasible(task.cost(task.allocation(c)).metrics)]
    assert sorted(map(tuple, listed.tolist())) == sorted(tuple(c.tolist()) for c in fitting)
    assert all_within(task, 3) is None
    assert all_within(formula_task(4, {"latency": 0.5}, device=SharedBuffer()), 10_000) is None


LESSON = {"budget": {"latency": 0.6}, "bits": (2, 4, 8), "harms": [0.0, 0.0, 3.0, 0.0, 3.0]}
"""Layers 2 and 4 need many bits, the others none. Who always takes the widest has nothing left for the last (0.37), who
always takes the middle one reaches 0.65: no constant policy passes for one that has learned."""


def policy_accuracy(agent, task):
    """Accuracy of the allocation that the learner's deterministic policy ends with, and the mean of random ones."""
    env = LayerWiseEnv(task, reward="terminal")
    observation, _ = env.reset()
    terminated, info = False, {}
    while not terminated:
        masks = {"action_masks": env.action_masks()} if agent.name == "maskable-ppo" else {}
        action, _ = agent.model.predict(observation, deterministic=True, **masks)
        observation, _, terminated, _, info = env.step(int(action))
    random = make_agent("random").search(task, 60, 1)
    return info["accuracy"], np.mean([t.quality.accuracy for t in random.trials])


def what_is_learned(name, **options):
    """`policy_accuracy`, the mean of three seeds: by chance a single policy may be good without having learned."""
    found = []
    for seed in range(3):
        task = formula_task(5, **LESSON)
        agent = make_agent(name, warm_start_steps=0, **options)
        agent.search(task, 120, seed)
        found.append(policy_accuracy(agent, task))
    return np.mean(found, axis=0)


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_learn_from_true_rewards_alone(name):
    learned, random = what_is_learned(name)
    assert learned > 0.75 and learned > random + 0.15


@pytest.mark.parametrize("name", ["maskable-ppo", "dqn"])  # one that is on-policy, one that is not
def test_a_learner_with_meaningless_rewards_does_not_learn(name, monkeypatch):
    """The negative control of the test above."""
    generator = np.random.default_rng(0)
    monkeypatch.setattr(base, "final_reward", lambda *_: float(generator.normal()))
    learned, random = what_is_learned(name, reward="terminal")
    assert not (learned > 0.75 and learned > random + 0.15)


def test_the_warm_start_costs_no_evaluation_and_helps_at_once():
    task = formula_task(5, {"latency": 0.6})
    warm = make_agent("maskable-ppo", warm_start_steps=4_000).search(task, 16, 0)
    assert len(task.evaluator.asked) <= 17  # and the float network
    cold = make_agent("maskable-ppo", warm_start_steps=0).search(formula_task(5, {"latency": 0.6}), 16, 0)
    mean = [np.mean([t.quality.accuracy for t in r.trials]) for r in (warm, cold)]
    assert mean[0] > mean[1]


def test_a_learner_that_only_repeats_itself_comes_to_an_end():
    result = make_agent("ppo", warm_start_steps=0).search(formula_task(2, bits=(4, 8)), 50)
    assert result.evaluations <= 4 and not result.interrupted


@pytest.mark.parametrize("name", ["maskable-ppo", "dqn", "ddpg", "model-ppo"])
def test_learners_leave_no_folders_of_their_library_behind(name, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert quick(name).search(formula_task(5, {"latency": 0.6}), 24).trials
    assert not list(tmp_path.glob("SB3-*"))


@pytest.mark.parametrize("name", ["maskable-ppo", "td3", "model-ppo"])
def test_separate_widths(name):
    result = quick(name).search(formula_task(3, {"latency": 0.6}, separate=True), 20)
    assert any(p.weight_bits != p.activation_bits for t in result.trials for p in t.allocation.values())
    assert result.evaluations == 20 and all(result.task.feasible(t.costs) for t in result.trials)


@pytest.mark.parametrize("name", ["dqn", "qr-dqn"])
def test_learners_of_one_discrete_action_refuse_separate_widths(name):
    with pytest.raises(AgentError, match=name):
        quick(name).search(formula_task(3, separate=True), 5)


def test_unknown_agents_and_options_are_refused_with_the_nearest_names():
    with pytest.raises(UnknownNameError, match="'maskable-ppo'"):
        make_agent("maskable-pp0")
    with pytest.raises(UnknownNameError, match="'learning_rate'"):
        make_agent("ppo", learning_rat=1e-3)
    with pytest.raises(AgentError, match="no arguments"):
        make_agent("greedy", speed=3)
    with pytest.raises(AgentError, match="learning_rate"):
        make_agent("ppo", learning_rate="fast").search(formula_task(), 5)
    with pytest.raises(InputError, match="does_not_exist"):
        make_agent("does_not_exist:Agent")
    with pytest.raises(AgentError, match="subclass"):
        make_agent("collections:OrderedDict")


def test_what_is_no_agent_is_told_by_its_type_alone(monkeypatch):
    """The object may be anything, the environment with its secrets among them."""
    monkeypatch.setenv("SECRET_OF_THIS_TEST", "do-not-publish")
    with pytest.raises(AgentError, match="'os:environ' is an object of type _Environ; expected") as caught:
        make_agent("os:environ")
    assert "do-not-publish" not in str(caught.value)
    with pytest.raises(AgentError, match="'json:JSONDecoder' is the class JSONDecoder; expected"):
        make_agent("json:JSONDecoder")
    with pytest.raises(AgentError, match="the agent is an object of type dict; expected"):
        make_agent({"secret": 1})


def test_an_agent_without_a_name_has_that_of_its_class():
    class Coin(Agent):
        def explore(self, session):
            session.evaluate(session.task.uniform(2))

    class Named(Coin):
        name = "a coin"

    class Child(Named):
        pass

    assert (Coin().name, Named().name, Child().name) == ("Coin", "a coin", "a coin")
    assert Coin().search(formula_task(2), 1).agent == "Coin"


def test_what_is_no_allocation_is_named():
    class Lists(Agent):
        def explore(self, session):
            session.evaluate([2, 2])

    with pytest.raises(InputError, match=r"\[2, 2\] is no allocation; make one with session.task.allocation"):
        Lists().search(formula_task(2), 1)


@pytest.mark.parametrize("name", ["spec", "self"])
def test_options_of_any_name_are_options(name):
    with pytest.raises(AgentError, match="agent 'random' cannot be made"):
        make_agent("random", **{name: "greedy"})


def test_an_own_agent_can_be_registered_listed_and_used():
    @amed_env.register_agent("test-widest")
    class Widest(Agent):
        """Eight bits everywhere."""

        def explore(self, session):
            session.evaluate(session.task.workload.uniform(8))

    try:
        assert "test-widest" in agent_names()
        assert list_agents()["test-widest"].description == "Eight bits everywhere."
        assert make_agent("test-widest").search(formula_task(), 5).agent == "test-widest"
        with pytest.raises(AgentError, match="part of amed_env"):
            amed_env.register_agent("greedy")(Widest)
    finally:
        AGENTS.unregister("test-widest")


def test_the_report_reads_the_test_split_only_at_the_end():
    task = formula_task(4, {"latency": 0.5})
    result = make_agent("greedy").search(task, 10)
    assert {split for _, split in task.evaluator.asked} == {"search"}
    result.add_report()
    read = [allocation for allocation, split in task.evaluator.asked if split == "test"]
    assert set(read) == {result.best.allocation, task.workload.uniform(4), task.workload.uniform(32)}
    assert result.best_uniform() == "uniform-4"
    document = result.to_json()
    assert document["best"]["test"]["accuracy"] == task.quality(result.best.allocation, "test").accuracy
    assert document["best"]["relative_costs"]["latency"] <= 0.5 + 1e-9


def test_uniform_widths_that_the_search_evaluated_are_not_evaluated_again():
    task = formula_task(4, {"latency": 0.5})
    result = make_agent("uniform").search(task, 10)
    tried = {trial.allocation: trial for trial in result.trials}
    task.evaluator.asked.clear()
    result.add_baselines()
    assert 0 < len(tried) < len(task.free_bits)
    evaluated = {allocation for allocation, _ in task.evaluator.asked}
    for bits in task.free_bits:
        allocation, baseline = task.uniform(bits), result.baselines[f"uniform-{bits}"]
        assert (allocation in evaluated) == (allocation not in tried)
        assert baseline.allocation == allocation and baseline is tried.get(allocation, baseline)


def test_a_learner_that_diverges_says_so():
    agent = make_agent("ppo", ent_coef=1e308, warm_start_steps=0)
    with pytest.raises(AgentError, match=r"'ppo' diverged after [0-9,]+ steps: weights .* NaN or infinite"):
        agent.search(formula_task(budget={"latency": 0.6}), 200, 0)
