"""Agents on scores of which less is better, and on samples without labels."""

import pytest
from small_task import UnlabelledEvaluator, all_choices, formula_task

from amed_env import TrialStore, make_agent
from amed_env.agents.built_in import list_agents
from amed_env.errors import StoreError

OPTIONS = {"policy": {}, "model-ppo": {}}
LEARNERS = ["maskable-ppo", "model-ppo"]
SEARCHERS = ["greedy", "local", "annealing", "evolution", "tpe", "milp", "pairwise", "amed", "amed-released", "policy"]


def unlabelled(**options):
    return formula_task(budget={"latency": 0.6}, evaluator=UnlabelledEvaluator, **options)


@pytest.mark.parametrize("name", ["uniform", "random", *SEARCHERS, *LEARNERS])
def test_every_kind_of_agent_searches_without_labels(name):
    assert name in list_agents()
    task = unlabelled()
    if name == "pairwise":
        task.evaluator.pair_divergences = lambda precisions, reach: (
            0.0 * task.predicted_loss[:, :, None, None] * (task.predicted_loss[None, None])
        )
    result = make_agent(name).search(task, 20, seed=1)
    assert not result.faults and result.best is not None
    feasible = [trial for trial in result.trials if task.feasible(trial.costs)]
    assert result.best.quality.score == min(trial.quality.score for trial in feasible)
    scores = [trial.quality.score for trial in result.pareto]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("name", ["milp", "local", "policy", "evolution"])
def test_what_is_found_is_good_and_not_bad(name):
    """An agent that took the sign wrong would end near the worst allocation."""
    task = unlabelled(layers=5)
    every = [task.measure(task.allocation(choices)) for choices in all_choices(task)]
    scores = sorted(trial.quality.score for trial in every if task.feasible(trial.costs))
    best = make_agent(name).search(task, 40, seed=0).best.quality.score
    assert best <= scores[len(scores) // 20]


def test_the_report_without_labels_and_without_a_test_split():
    task = unlabelled()
    result = make_agent("milp").search(task, 10)
    result.add_report()
    assert result.test == {} and result.verdict is None
    document = result.to_json()
    assert document["score"] == {"name": "divergence", "title": "divergence", "higher_is_better": False, "unit": "nats"}
    best = document["best"]
    assert best["search"]["score"] == result.best.quality.score and best["test"] is None
    assert "accuracy" not in best["search"] and best["search"]["loss"] is None
    assert result.best_uniform() == "uniform-4"


def test_a_search_goes_on_with_its_score_and_with_no_other(tmp_path):
    store = TrialStore(tmp_path / "trials.sqlite")
    first = make_agent("milp").search(unlabelled(), 10, store=store)
    asked = unlabelled()
    again = make_agent("milp").search(asked, 10, store=store)
    assert [trial.quality for trial in again.trials] == [trial.quality for trial in first.trials]
    assert len(asked.evaluator.asked) <= 1  # the reference alone
    task = formula_task(budget={"latency": 0.6})
    with pytest.raises(StoreError, match="trials of another score"):
        make_agent("milp").search(task, 10, store=store)
    store.close()
