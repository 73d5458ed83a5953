"""The choice among the best allocations of a search, on more samples than it had."""

import numpy as np
import pytest
import torch
from small_task import SAMPLES, FormulaEvaluator, formula_task
from torch import nn

import amed_env
from amed_env import Quality, make_agent
from amed_env.errors import InputError
from amed_env.problem.score import DIVERGENCE


class Reserved(FormulaEvaluator):
    """More samples say something else: they like what has few bits in its first layer."""

    reserve = 3 * SAMPLES
    score = DIVERGENCE

    def evaluate(self, allocation, split="search"):
        return Quality(None, SAMPLES, None, 1.0 - super().evaluate(allocation).accuracy, DIVERGENCE)

    def evaluate_finalist(self, allocation):
        value = min(allocation["layer0"]) / 10
        values = np.full(4 * SAMPLES, value, dtype=np.float32)
        return Quality(None, 4 * SAMPLES, None, value, DIVERGENCE, per_sample={"divergence": values})


def test_the_best_on_all_samples_is_chosen():
    task = formula_task(budget={"latency": 0.7}, evaluator=Reserved)
    result = make_agent("random").search(task, 40, seed=0)
    feasible = sorted((t for t in result.trials if task.feasible(t.costs)), key=lambda t: t.quality.score)
    before = result.best
    result.choose_finalist(6)
    assert {finalist.trial.allocation for finalist in result.finalists} == {t.allocation for t in feasible[:6]}
    assert before.allocation == feasible[0].allocation
    narrowest = min(min(t.allocation["layer0"]) for t in feasible[:6])
    assert min(result.best.allocation["layer0"]) == narrowest and result.best is result.finalists[0].trial
    for finalist in result.finalists:
        assert finalist.quality.samples == 4 * SAMPLES and not finalist.quality.per_sample
        assert finalist.tied is (min(finalist.trial.allocation["layer0"]) == narrowest)
    document = result.to_json()["finalists"]
    assert document[0]["all"]["score"] == narrowest / 10 and document[0]["search"]["score"] >= before.quality.score


@pytest.mark.parametrize("evaluator", [FormulaEvaluator, Reserved])
def test_nothing_is_chosen_anew_where_there_is_nothing_new(evaluator):
    result = make_agent("random").search(formula_task(budget={"latency": 0.7}, evaluator=evaluator), 10)
    best = result.best
    result.choose_finalist(8 if evaluator is FormulaEvaluator else 1)
    assert result.best is best and result.finalists == [] and result.to_json()["finalists"] == []
    nothing = make_agent("uniform").search(formula_task(budget={"latency": 0.26}, evaluator=evaluator), 1)
    nothing.best = None
    nothing.choose_finalist(8)
    assert nothing.finalists == []


def test_a_part_of_the_search_samples_scores_every_allocation_and_all_of_them_the_finalists():
    torch.manual_seed(0)
    inputs = torch.randn(200, 6)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    options = {"calibration": inputs[:40], "search": inputs[40:], "recipe": "nearest", "threads": 1}
    whole = amed_env.make_task(network=network, budget={"memory": 0.6}, **options)
    task = amed_env.make_task(network=network, budget={"memory": 0.6}, search_samples=50, **options)
    assert task.evaluator.reserve == 110 and whole.evaluator.reserve == 0
    allocation = task.workload.uniform(4)
    assert task.quality(allocation).samples == 50
    finalist = task.evaluator.evaluate_finalist(allocation)
    assert finalist.samples == 160 and finalist.per_sample["divergence"].shape == (160,)
    assert finalist.score == pytest.approx(whole.quality(allocation).score, rel=1e-9)
    assert whole.evaluator.evaluate_finalist(allocation) == whole.quality(allocation)
    assert task.evaluator.fingerprint != whole.evaluator.fingerprint
    result = make_agent("milp").search(task, 6)
    result.choose_finalist(3)
    assert len(result.finalists) == 3
    assert [f.quality.score for f in result.finalists] == sorted(f.quality.score for f in result.finalists)
    with pytest.raises(InputError, match="search_samples is 0"):
        amed_env.make_task(network=network, search_samples=0, **options)
    with pytest.raises(InputError, match="search_samples is given without a network"):
        amed_env.make_task("digits-cnn", search_samples=50)
