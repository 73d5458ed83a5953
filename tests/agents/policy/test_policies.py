"""Goal-conditioned policies: within every budget, blind to names, trainable, saved without pickle."""

import ast
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from amed_env import make_task, optimum
from amed_env.agents.policy.agent import PolicyAgent
from amed_env.agents.policy.network import PolicyNetwork, Problems
from amed_env.agents.policy.problem import Problem, problem_of
from amed_env.agents.policy.saved import CARD, WEIGHTS, Card, Configuration, load_policy, save_policy
from amed_env.agents.policy.sources import ImaginedSource, TableSource
from amed_env.agents.policy.training import TrainingOptions, train
from amed_env.errors import AgentError, BudgetError
from amed_env.problem.constraints import cheapest_choices

TASK = "tabular/digits-cnn"
QUICK = {"imitation_steps": 60, "steps": 200, "problems": 4, "samples": 8, "imagined": 0.0}


def network(seed=0, **sizes):
    torch.manual_seed(seed)
    return PolicyNetwork(**{"width": 32, "depth": 1, "heads": 2, **sizes})


def card(policy, **changes):
    facts = {"tasks": (TASK,), "devices": ("bops",), "random_devices": True, "training": {}, "made": "2026-01-01"}
    return Card(configuration=Configuration(**policy.configuration), **{**facts, **changes})


@pytest.fixture
def folder(tmp_path):
    policy = network()
    save_policy(tmp_path / "policy", policy, card(policy))
    return tmp_path / "policy"


def random_problem(rng, layers=6, precisions=3, metrics=2):
    costs = rng.random((metrics, layers, precisions)) + 0.05
    choosable = rng.random((layers, precisions)) < 0.7
    choosable[np.arange(layers), rng.integers(precisions, size=layers)] = True
    reachable = choosable.argmax(axis=1)  # one allocation that surely fits
    costs /= costs[:, np.arange(layers), reachable].sum(axis=1)[:, None, None]
    full = problem_of(make_task(TASK, budget={"latency": 0.5}))
    return Problem(
        full.layers[:layers],
        rng.random((layers, precisions, full.choices.shape[2])).astype(np.float32),
        costs.astype(np.float32),
        choosable,
    )


@pytest.mark.parametrize("seed", range(5))
def test_samples_stay_within_one_budget_and_what_may_be_chosen(seed):
    rng = np.random.default_rng(seed)
    problems = [random_problem(rng, metrics=1) for _ in range(4)]
    with torch.no_grad():
        choices = network().rollout(Problems.of(problems), 50, torch.Generator().manual_seed(seed)).choices.numpy()
    for problem, sampled in zip(problems, choices, strict=True):
        rows = np.arange(sampled.shape[1])
        assert problem.choosable[rows, sampled].all()
        assert (problem.costs[0][rows, sampled].sum(axis=1) <= 1 + 1e-4).all()
        assert len(np.unique(sampled, axis=0)) > 1


def test_the_probability_of_given_choices_is_that_with_which_they_were_sampled():
    problems = Problems.of([random_problem(np.random.default_rng(1)) for _ in range(3)])
    with torch.no_grad():
        sampled = network().rollout(problems, 8, torch.Generator().manual_seed(0))
        again = network().rollout(problems, 8, given=sampled.choices)
    torch.testing.assert_close(again.log_probability, sampled.log_probability)


def test_probabilities_of_all_allocations_sum_to_one():
    problem = random_problem(np.random.default_rng(3), layers=4, precisions=3, metrics=1)
    every = np.stack(np.unravel_index(np.arange(81), (3,) * 4), axis=1)
    rows = np.arange(4)
    fits = (problem.costs[0][rows, every].sum(axis=1) <= 1 + 1e-6) & problem.choosable[rows, every].all(axis=1)
    with torch.no_grad():
        log = network().rollout(Problems.of([problem]), 81, given=torch.from_numpy(every)[None]).log_probability[0]
    assert 1 < fits.sum() < 81
    assert float(log.double().exp().sum()) == pytest.approx(1.0, abs=1e-4)
    assert float(log[torch.from_numpy(fits)].double().exp().sum()) == pytest.approx(1.0, abs=1e-4)


def regret_of(policy, budgets=(0.35, 0.45, 0.55, 0.65)):
    """Mean regret of samples, in accuracy points, on a device that no test trains on."""
    regrets = []
    for budget in budgets:
        task = make_task("tabular/kws-dscnn", device="eyeriss-ws", budget={"energy": budget})
        with torch.no_grad():
            problems = Problems.of([problem_of(task)])
            sampled = policy.rollout(problems, 50, torch.Generator().manual_seed(0)).choices[0].numpy()
        accuracies = [task.evaluator.evaluate(task.allocation(choices)).accuracy for choices in sampled]
        regrets.append(100 * (optimum(task).quality.accuracy - np.mean(accuracies)))
    return float(np.mean(regrets))


def test_training_helps_on_a_device_that_it_never_saw_and_a_shuffled_reward_does_not():
    trained, fooled = network(1), network(1)
    options = TrainingOptions(**QUICK)
    train(trained, [TableSource("tabular/kws-dscnn", ["bops", "memory"], ["latency"])], options)
    source = TableSource("tabular/kws-dscnn", ["bops", "memory"], ["latency"])
    shuffled = np.random.default_rng(0).permutation(len(source._correct))
    source._correct, source._by_truth = source._correct[shuffled], np.argsort(-source._correct[shuffled])
    train(fooled, [source], options)
    assert regret_of(trained) < 10
    assert regret_of(fooled) > 2 * regret_of(trained)
    assert regret_of(network(1)) > 2 * regret_of(trained)


def test_training_is_deterministic():
    states = []
    for _ in range(2):
        policy = network()
        options = TrainingOptions(imitation_steps=3, steps=3, problems=2, samples=3)
        train(policy, [TableSource(TASK, ["bops"], ["latency"])], options)
        states.append(policy.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_solver_of_training_is_exact():
    source = TableSource(TASK, ["bops"], ["latency"])
    task = make_task(TASK, device="mpic", budget={"latency": 0.5}, score="metric")  # which the policy is trained on
    problem = problem_of(task)
    best = task.allocation(source.solved(problem, truth=True))
    assert task.evaluator.evaluate(best) == optimum(task).quality
    proxy = source.solved(problem, truth=False)
    limits = np.asarray([task.limits["latency_ms"]])
    expected = cheapest_choices(task.costs["latency_ms"][None], limits, task.predicted_loss, task.choosable)
    rows = np.arange(8)
    assert task.predicted_loss[rows, proxy].sum() == pytest.approx(task.predicted_loss[rows, expected].sum())


@pytest.mark.parametrize("seed", range(4))
def test_imagined_networks_differ_and_are_solved_exactly(seed):
    problems, best = ImaginedSource((4, 9)).draw(np.random.default_rng(seed), 3, truth=False)
    assert len({problem.costs.tobytes() for problem in problems}) == 3
    for problem, choices in zip(problems, best, strict=True):
        costs, predicted = problem.costs.astype(np.float64), np.expm1(problem.choices[:, :, 1].astype(np.float64))
        rows = np.arange(len(choices))
        assert costs[0][rows, choices].sum() <= 1 + 1e-5
        expected = cheapest_choices(costs, np.ones(1) * (1 + 1e-6), predicted)
        assert predicted[rows, choices].sum() == pytest.approx(predicted[rows, expected].sum(), rel=1e-4)


def test_training_on_imagined_networks_teaches_what_the_solver_does():
    policy, options = network(), TrainingOptions(imitation_steps=60, steps=0, problems=8, imagined=1.0)
    problems, best = ImaginedSource((5, 6)).draw(np.random.default_rng(99), 20, truth=False)

    def excess():
        """Mean logarithm of the predicted loss over that of the solver."""
        with torch.no_grad():
            answers = policy.rollout(Problems.of(problems), 1).choices[:, 0].numpy()
        predicted, rows = [np.expm1(problem.choices[:, :, 1]) for problem in problems], np.arange(best.shape[1])
        each = zip(predicted, answers, best, strict=True)
        return np.mean([np.log((p[rows, a].sum() + 1e-6) / (p[rows, b].sum() + 1e-6)) for p, a, b in each])

    before = excess()
    train(policy, [TableSource(TASK, ["bops"], ["latency"])], options)
    assert excess() < before / 2


def test_a_saved_policy_answers_the_same(folder):
    again, found = load_policy(folder)
    assert found.tasks == (TASK,)
    assert regret_of(again) == regret_of(network())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / WEIGHTS).unlink(), "policy.safetensors is missing"),
        (lambda f: (f / CARD).unlink(), "policy.json is missing"),
        (lambda f: (f / CARD).write_text("{"), "no card of a policy"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:100]), "does not fit its card"),
        (lambda f: save_policy(f, network(width=64), card(network())), "does not fit its card"),
    ],
)
def test_damaged_policies_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(AgentError, match=message):
        load_policy(folder)


@pytest.mark.parametrize("change", [{"extra": 1}, {"format": "other"}, {"configuration": {"width": 30, "depth": 1}}])
def test_cards_with_unknown_or_wrong_entries_are_refused(folder, change):
    document = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**document, **change}))
    with pytest.raises(AgentError, match="no card of a policy"):
        load_policy(folder)


@pytest.mark.parametrize("budget", [{"latency": 0.5}, {"latency": 0.6, "memory": 0.5}])
@pytest.mark.parametrize("device", ["bitfusion", "bitfusion-chained"])
def test_the_agent_answers_first_and_then_searches_within_the_budgets(folder, device, budget):
    task = make_task(TASK, device=device, budget=budget)
    result = PolicyAgent(folder, batch=10).search(task, 24, seed=3)
    again = PolicyAgent(folder, batch=10).search(task, 24, seed=3)
    assert [t.allocation for t in result.trials] == [t.allocation for t in again.trials]
    assert result.trials[0].allocation == task.allocation(PolicyAgent(folder).answer(task))
    assert len(result.trials) == 24
    assert all(task.feasible(trial.costs) for trial in result.trials)


def trials_of_a_search():
    task = make_task("tabular/kws-dscnn", device="eyeriss-ws", budget={"latency": 0.8})
    return [str(trial.allocation) for trial in PolicyAgent().search(task, 40, seed=1).trials]


_SEARCH = """
import torch
from test_policies import trials_of_a_search
torch.set_num_threads(1)
print(torch.backends.cpu.get_cpu_capability())
print(trials_of_a_search())
"""


def test_a_search_is_the_same_on_processors_with_other_instructions():
    """Float sums depend on the width of the registers; what is proposed must not, or results would not replay."""
    # Read where torch is loaded, so this process starts cold.
    settings = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", _SEARCH], env={**os.environ, **settings}, capture_output=True, text=True, check=True
    )
    capability, other_trials = ran.stdout.splitlines()
    if capability == torch.backends.cpu.get_cpu_capability():
        pytest.skip(f"this build of torch knows {capability} only")
    trials = trials_of_a_search()
    assert len(set(trials)) == 40
    assert trials == ast.literal_eval(other_trials)


def test_the_agent_ends_when_everything_is_known(folder):
    task = make_task(TASK, device="bitfusion", budget={"latency": 0.286})
    result = PolicyAgent(folder, updates=1).search(task, 5_000, seed=0)
    feasible = {t.allocation for t in result.trials}
    assert 1 <= len(feasible) < 100


def test_wrong_uses_are_refused(folder):
    with pytest.raises(BudgetError, match="has none"):
        PolicyAgent(folder).answer(make_task(TASK))
    with pytest.raises(AgentError, match="batch is 0; give a whole number of at least 1"):
        PolicyAgent(folder, batch=0)
