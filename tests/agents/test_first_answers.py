"""First answers: from gradients, then from divergences where they matter, without preparing the network."""

import numpy as np
import pytest
import torch
from small_task import formula_task
from torch import nn

import amed_env
from amed_env import Precision
from amed_env.agents.first_answers import first_answers
from amed_env.agents.searchers.moves import good_starts
from amed_env.agents.session import SearchSession
from amed_env.evaluation.sensitivities import measure_sensitivity
from amed_env.quantization.learned_rounding import RoundingLearner


def own_task(**options):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    inputs = torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    parts = {"calibration": inputs[:200], "search": inputs[200:300], "test": inputs[300:]}
    given = {"budget": ["latency=0.5"], "threads": 1, **options}
    return amed_env.make_task(network=nn.Sequential(*layers), name="own", **parts, **given)


def test_they_come_before_anything_is_learned_and_are_within_the_budget(monkeypatch):
    def refuse(learner, on_step=None):
        raise AssertionError("the network is prepared")

    monkeypatch.setattr(RoundingLearner, "run", refuse)
    task = own_task()
    answers = list(first_answers(task))
    assert [answer.stage for answer in answers] == ["gradients", "divergences"]
    assert all(task.feasible(answer.costs) for answer in answers)
    assert answers[0].seconds < answers[1].seconds
    assert [answer.allocation for answer in first_answers(own_task())] == [answer.allocation for answer in answers]


def test_the_second_is_the_optimum_of_divergences_where_they_were_measured(monkeypatch):
    task = own_task(recipe="nearest")
    measured = []
    asked = task.evaluator.first_divergences

    def count(precisions, cells):
        measured.extend(cells)
        return asked(precisions, cells)

    monkeypatch.setattr(task.evaluator, "first_divergences", count)
    *_, last = first_answers(task)
    # Of every cell, not only those near the answer: what was never measured would not have been chosen.
    every = [(row, column) for row in range(3) for column in range(4)]
    losses = asked(task.precisions, every)
    (best,) = good_starts(SearchSession(task, 1), losses)
    assert last.allocation == task.allocation(best)
    assert len(measured) == len(set(measured)) <= len(every)


def test_a_task_without_quick_estimates_has_none():
    assert list(first_answers(formula_task(budget={"latency": 0.6}))) == []


def test_gradients_are_the_diagonal_of_the_fisher_matrix():
    task = own_task(recipe="nearest")
    evaluator = task.evaluator
    samples = evaluator.samples("calibration").subset(range(64))
    precisions = (Precision(2, 32), Precision(32, 2), Precision(2, 2))
    found = measure_sensitivity(evaluator.network, samples, precisions, "gradient", 64)
    assert found[:, 2] == pytest.approx(found[:, 0] + found[:, 1])
    # Of the last layer the expectation over labels is known: E[g²] of a score is p(1 - p), times the squared input.
    layer = evaluator.network.layers["5"]
    head = layer.layer
    read = nn.Sequential(*list(_float(task))[:-1])(samples.inputs)
    probabilities = head(read).softmax(dim=1).double()
    variance = probabilities * (1 - probabilities)
    change = (layer.prepared[2].weight - head.weight).double().square()
    expected = 0.5 * torch.einsum("no,ni,oi->", variance, read.double().square(), change) / len(read)
    assert found[2, 0] == pytest.approx(float(expected), rel=0.25)  # labels are drawn, once a sample


def _float(task):
    torch.manual_seed(0)
    return nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)


def test_sensitivities_of_weights_alone_are_measured_beside_the_float_network():
    task = own_task(recipe="nearest", device="memory", activation_bits=32, budget=["memory=0.5"])
    evaluator = task.evaluator
    losses = task.predicted_loss
    inputs = evaluator.samples("calibration").inputs
    names, exact = task.workload.layer_names, nn.Sequential(*_float(task))
    truth = exact(inputs).double().log_softmax(dim=1)
    for row, name in enumerate(names):
        for column, precision in enumerate(task.precisions):
            changed = nn.Sequential(*_float(task))
            changed[int(name)].weight.data = evaluator.network.layers[name].prepared[precision.weight_bits].weight
            other = changed(inputs).double().log_softmax(dim=1)
            expected = float((truth.exp() * (truth - other)).sum(dim=1).mean())
            assert losses[row, column] == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert np.all(losses[:, 0] > losses[:, -1])
