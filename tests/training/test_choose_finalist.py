"""The choice at the end of a search: more samples decide, tuning improves, and nothing else is changed."""

import io
import itertools
import json
import math

import pytest
import torch
from rich.console import Console
from small_task import formula_task
from torch import nn
from torch.nn import functional as F
from traced import trace_equals_once as trace
from training_samples import float_network, make_data, samples

import amed_env
from amed_env import Task, TrialStore, choose_finalist, make_agent, make_task
from amed_env.agents import Agent
from amed_env.agents.finalists import _is_clearly_worse
from amed_env.commands.tables import comparison_table
from amed_env.datasets import Splits
from amed_env.datasets.further import FurtherSamples
from amed_env.errors import DataError, InputError
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.evaluation.preparation import brief_recipe
from amed_env.evaluation.quality import Quality
from amed_env.hardware import load_device
from amed_env.problem.objective import parse_budgets
from amed_env.problem.score import DIVERGENCE
from amed_env.quantization.recipe import make_recipe
from amed_env.tasks import make
from amed_env.tasks.catalogue import named_network
from amed_env.training.checkpoint import use_trained, write_trained

USED = 12
"""Search samples that the search of the small network uses."""


class Everything(Agent):
    """Evaluates all allocations."""

    def explore(self, session):
        sizes = [range(len(session.task.precisions))] * len(session.task.workload)
        for choices in itertools.product(*sizes):
            session.evaluate(session.task.allocation(choices))


def normal(count, seed):
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


def small_network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


def small_task(monkeypatch, used=USED, recipe="nearest", **options):
    monkeypatch.setattr(make, "SEARCH_SAMPLES", used)
    parts = {"calibration": normal(60, 1), "search": normal(300, 2), "test": normal(100, 3), **options}
    return make_task(
        network=small_network(), **parts, bits=(2, 3, 4), budget={"memory": 0.45}, recipe=recipe, device="bitfusion"
    )


def divergences_of(task, allocation, inputs):
    """By plain torch from the outputs of both networks."""
    network = task.evaluator.network
    network.select(allocation)
    with torch.no_grad():
        logarithms = F.log_softmax(network(inputs).double(), dim=1)
        truth = F.log_softmax(small_network()(inputs).double(), dim=1)
    return (truth.exp() * (truth - logarithms)).sum(dim=1)


def test_the_larger_set_decides(monkeypatch):
    task = small_task(monkeypatch, training=normal(500, 4))
    result = Everything().search(task, 27)
    first, trials = result.best, list(result.trials)
    assert first.quality.samples == USED
    choice = choose_finalist(result, finalists=6)

    inputs = torch.cat([normal(300, 2), normal(500, 4)])  # all but calibration and test
    feasible = [trial for trial in trials if task.feasible(trial.costs)]
    ranked = sorted(feasible, key=lambda trial: trial.quality.score)[:6]
    expected = {trial.allocation: divergences_of(task, trial.allocation, inputs) for trial in ranked}
    found = {finalist.trial.allocation: finalist.quality for finalist in choice.finalists}
    assert set(expected) <= set(found) and len(found) <= 7
    for allocation, values in expected.items():
        assert found[allocation].samples == 800
        assert found[allocation].score == pytest.approx(float(values.mean()), rel=1e-3, abs=1e-7)
    best = min(expected, key=lambda allocation: float(expected[allocation].mean()))
    assert best != first.allocation  # the few samples of the search were misleading
    equal = set()
    for allocation, values in expected.items():
        differences = values - expected[best]
        if float(differences.mean()) <= 2 * float(differences.std()) / math.sqrt(800):
            equal.add(allocation)
    assert {finalist.trial.allocation for finalist in choice.equal} == equal
    costs = {trial.allocation: trial.costs["weight_kib"] for trial in ranked}
    assert result.best.allocation == min(equal, key=costs.__getitem__)
    assert result.trials == trials and result.finalists is choice
    assert not result.test  # nothing of it was read
    result.add_report()
    of_chosen = divergences_of(task, result.best.allocation, normal(100, 3))
    assert result.test["best"].score == pytest.approx(float(of_chosen.mean()), rel=1e-3, abs=1e-7)


def test_the_best_uniform_width_is_looked_at_too(monkeypatch):
    task = small_task(monkeypatch)
    result = Everything().search(task, 27)
    choice = choose_finalist(result, finalists=1)
    names = [finalist.name for finalist in choice.finalists]
    uniform = result.best_uniform()
    assert names in (["1"], ["1", uniform])
    assert result.baselines[uniform].allocation in {finalist.trial.allocation for finalist in choice.finalists}


def chosen_with(monkeypatch, clearly, count=1, **options):
    """A search of all allocations, the choice among some, and what was scored for it."""
    monkeypatch.setattr("amed_env.agents.finalists.CLEARLY", clearly)
    result = Everything().search(small_task(monkeypatch, 200, **options), 1_000)
    scored = []
    judge = result.task.evaluator.with_more_samples()
    evaluate = judge.evaluate
    monkeypatch.setattr(judge, "evaluate", lambda allocation, *rest: scored.append(allocation) or evaluate(allocation))
    monkeypatch.setattr(type(result.task.evaluator), "with_more_samples", lambda self, tuned=False: judge)
    return result, choose_finalist(result, count), scored


def test_a_uniform_width_that_is_clearly_worse_is_not_scored_again(monkeypatch):
    result, choice, scored = chosen_with(monkeypatch, 0.0)
    assert choice is None and scored == [] and result.finalists is None
    result, choice, scored = chosen_with(monkeypatch, 0.0, count=3)
    assert [finalist.name for finalist in choice.finalists if finalist.name.startswith("uniform")] == []
    assert len(scored) == 3


def test_a_uniform_width_that_may_be_better_is(monkeypatch):
    result, choice, scored = chosen_with(monkeypatch, 1e9)
    uniform = result.best_uniform()
    assert {finalist.name for finalist in choice.finalists} == {"1", uniform}
    assert result.baselines[uniform].allocation in scored


def test_errors_decide_what_is_clear():
    def quality(score, error):
        return Quality(0, 100, None, score, DIVERGENCE, standard_error=error)

    best = quality(0.10, 0.003)
    assert not _is_clearly_worse(quality(0.12, 0.004), best)  # four errors of the difference
    assert _is_clearly_worse(quality(0.13, 0.004), best)  # six
    assert not _is_clearly_worse(quality(0.05, 0.004), best)  # better
    assert not _is_clearly_worse(quality(0.13, None), best)  # nothing is known


def test_which_samples_there_are(monkeypatch):
    labels = torch.arange(300) % 4
    labelled = {"search": (normal(300, 2), labels), "training": (normal(500, 4), torch.arange(500) % 4)}

    def counted(tuned=False, **options):
        wider = small_task(monkeypatch, **options).evaluator.with_more_samples(tuned=tuned)
        return None if wider is None else len(wider.samples("search"))

    assert counted() == 300 and counted(used=300) is None
    assert counted(**labelled) == 800
    assert counted(tuned=True, **labelled) == 350  # of the training samples only the tenth that is held out
    monkeypatch.setattr(make, "SEARCH_SAMPLES", USED)
    known = torch.cat([normal(60, 1), normal(100, 3)[:40], normal(300, 2)[:30], normal(5, 9)])
    assert counted(training=known) == 305  # copies of other parts' samples do not count
    assert counted(search=None, training=normal(70, 9)) == 70  # nor do calibration samples that stand for search ones
    wider = make_task(
        network=small_network(), calibration=normal(60, 1), score="loss", recipe="nearest", **labelled
    ).evaluator.with_more_samples()
    assert len(wider.samples("search")) == 300 and wider.samples("search").labels is not None


def test_a_search_of_few_samples_is_what_it_was(monkeypatch):
    all_used = small_task(monkeypatch, used=5_000)
    assert len(all_used.evaluator.samples("search")) == 300
    result = Everything().search(all_used, 27)
    best = result.best
    assert choose_finalist(result) is None and result.best is best and result.to_json()["finalists"] is None


def test_a_search_uses_as_many_samples_as_are_asked_for_and_the_choice_all(monkeypatch):
    few, more, most = (small_task(monkeypatch, search_samples=count) for count in (20, 40, 1_000))
    assert [len(task.evaluator.samples("search")) for task in (few, more, most)] == [20, 40, 300]
    assert torch.equal(more.evaluator.samples("search").inputs[:20], few.evaluator.samples("search").inputs)
    assert len({task.evaluator.fingerprint for task in (few, more, most)}) == 3
    assert few.quality(few.uniform(3)).samples == 20
    choice = choose_finalist(Everything().search(few, 27), 3)
    assert {finalist.quality.samples for finalist in choice.finalists} == {300}


def test_so_do_searches_of_the_tasks_of_the_package():
    splits = named_network("digits-cnn").splits()
    usual, few, all_of_them = (make_task("digits-cnn", search_samples=count) for count in (None, 100, 500))
    inputs = few.evaluator.samples("search").inputs
    assert torch.equal(inputs, splits.search.inputs[:100])
    assert usual.evaluator.fingerprint == all_of_them.evaluator.fingerprint != few.evaluator.fingerprint
    assert len(usual.evaluator.samples("search")) == 500
    assert len(few.evaluator.with_more_samples().samples("search")) == 500


@pytest.mark.parametrize("count", [0, -3, True, 2.5])
def test_numbers_of_search_samples_that_make_no_sense_are_refused(count, monkeypatch):
    with pytest.raises(InputError, match="search_samples is"):
        small_task(monkeypatch, search_samples=count)


def test_search_samples_are_counted_where_there_are_some(monkeypatch):
    with pytest.raises(InputError, match="none are given"):
        small_task(monkeypatch, search=None, search_samples=10)
    with pytest.raises(InputError, match="is a table of all its search samples"):
        make_task("tabular/digits-cnn", search_samples=10)


def test_nothing_happens_where_quality_is_looked_up_or_has_no_samples():
    for task in (formula_task(budget={"latency": 0.6}), make_task("tabular/digits-cnn", budget={"latency": 0.4})):
        result = make_agent("milp").search(task, 5)
        assert choose_finalist(result) is None and result.finalists is None


class Only(Agent):
    """Evaluates one width for all layers."""

    def __init__(self, bits):
        self.bits = bits

    def explore(self, session):
        session.evaluate(session.task.uniform(self.bits))


def test_no_answer_is_worse_than_a_uniform_width_by_its_own_score():
    task = make_task("tabular/cifar10-resnet8", budget={"latency": 0.35})
    result = Only(2).search(task, 20)
    found = result.best
    assert choose_finalist(result) is None
    assert result.best is result.baselines[result.best_uniform()] and task.feasible(result.best.costs)
    assert result.best.quality.order < found.quality.order
    assert result.evaluations == len(result.trials) == 1  # uniform widths are the report's


def test_a_search_that_finds_nothing_has_no_answer():
    result = Only(8).search(make_task("tabular/cifar10-resnet8", budget={"latency": 0.35}), 20)
    assert result.best is None and choose_finalist(result) is None and result.best is None


def test_an_answer_that_beats_all_uniform_widths_stays():
    result = make_agent("milp").search(make_task("tabular/digits-cnn", budget={"latency": 0.4}), 50)
    best = result.best
    choose_finalist(result)
    assert result.best is best and best.allocation not in {trial.allocation for trial in result.baselines.values()}


@pytest.mark.parametrize("numbers", [{"finalists": 0}, {"finalists": True}, {"tune_steps": -1}, {"tune_steps": 1.5}])
def test_senseless_numbers_are_refused(numbers):
    result = make_agent("milp").search(formula_task(), 2)
    with pytest.raises(InputError, match=next(iter(numbers))):
        choose_finalist(result, **numbers)


def test_tuning_needs_a_network_and_training_samples(monkeypatch):
    table = make_agent("milp").search(make_task("tabular/digits-cnn"), 2)
    with pytest.raises(InputError, match="has no weights"):
        choose_finalist(table, tune_steps=3)
    untrainable = Everything().search(small_task(monkeypatch), 3)
    with pytest.raises(DataError, match=r"add training=\(inputs, labels\)"):
        choose_finalist(untrainable, tune_steps=3)
    unlabelled = Everything().search(small_task(monkeypatch, training=normal(500, 4)), 3)
    with pytest.raises(DataError, match="no labels"):
        choose_finalist(unlabelled, tune_steps=3)
    other_shape = Everything().search(small_task(monkeypatch, training=torch.zeros(9, 3)), 3)
    with pytest.raises(DataError, match="prepare all in the same way"):
        choose_finalist(other_shape)


def tunable_task():
    network = float_network()
    splits = Splits(samples(48, 1, "calibration"), samples(60, 2, "search"), samples(60, 3, "test"))
    traced = trace(network, splits.calibration.example(), "bottleneck")
    further = FurtherSamples(load_training=make_data)
    evaluator = PostTrainingEvaluator(traced, splits, "nearest", threads=1, further=further)
    budgets = parse_budgets({"memory": 0.28})
    return Task("bottleneck", evaluator, load_device("bitfusion"), (2, 3), budgets=budgets)


def tuned(store=None):
    result = make_agent("local").search(tunable_task(), 12, store=store)
    choose_finalist(result, finalists=2, tune_steps=100)
    return result


def test_tuning_improves_leaves_no_trace_and_its_weights_load_again(tmp_path):
    task = tunable_task()
    result = make_agent("local").search(task, 12)
    evaluator, allocation = task.evaluator, result.best.allocation
    before = {split: evaluator.evaluate(allocation, split) for split in ("search", "test")}
    fingerprint = evaluator.fingerprint
    choice = choose_finalist(result, finalists=2, tune_steps=100)
    assert choice.samples == 120  # of the search and of validation: none of those that were trained on
    for finalist in choice.finalists:
        assert finalist.quality.order <= finalist.untuned.order
    assert choice.chosen.weights is not None
    assert choice.chosen.quality.score < 0.8 * choice.chosen.untuned.score
    result.add_report()
    assert {split: evaluator.evaluate(allocation, split) for split in before} == before
    assert evaluator.fingerprint == fingerprint

    chosen = result.best.allocation
    with evaluator.restored():
        evaluator.adopt(*result.tuned_weights)
        write_trained(tmp_path, evaluator, chosen)
    fresh = tunable_task().evaluator
    assert use_trained(tmp_path, fresh) == chosen
    assert fresh.evaluate(chosen, "test") == result.test["best"]
    assert fresh.evaluate(chosen, "test") != evaluator.evaluate(chosen, "test")


def test_the_verdict_compares_with_the_same_tuning():
    result = tuned()
    result.add_report()
    uniform = result.best_uniform()
    assert set(result.test) == {"best", "float", f"{uniform}-tuned"}  # nothing else was read
    console = Console(file=io.StringIO(), width=200)
    console.print(comparison_table(result))
    assert f"{uniform.replace('-', ' ')}, tuned" in console.file.getvalue()
    name = result.verdict.score.name
    gains = result.test["best"].per_sample[name].astype(float)
    gains = gains - result.test[f"{uniform}-tuned"].per_sample[name]
    assert result.verdict.over_uniform.value == pytest.approx(gains.mean())
    document = json.loads(json.dumps(result.to_json()))
    assert document["baselines"][uniform]["tuned_test"] == result.test[f"{uniform}-tuned"].to_json()
    assert document["finalists"]["tune_steps"] == 100


def test_a_search_that_is_continued_ends_alike():
    store = TrialStore()
    first, again = tuned(store), tuned(store)
    assert (
        first.finalists.to_json("n") == again.finalists.to_json("n") and first.best.allocation == again.best.allocation
    )
    for one, other in zip(first.finalists.finalists, again.finalists.finalists, strict=True):
        assert (one.weights is None) == (other.weights is None)


def test_it_is_public():
    assert amed_env.choose_finalist is choose_finalist


def briefly_prepared(monkeypatch, **options):
    """A small task whose learning was short, as within a time."""
    recipe = brief_recipe(make_recipe("network"), 30, "tied")
    return small_task(monkeypatch, recipe=recipe, **options)


def test_the_answer_of_a_briefly_prepared_network_is_solved_for_itself(monkeypatch):
    task = briefly_prepared(monkeypatch)
    result = Everything().search(task, 27)
    fingerprint, plain = task.evaluator.fingerprint, task.quality(result.best.allocation)
    choice = choose_finalist(result, 3)
    solved = [finalist for finalist in choice.finalists if finalist.weights is not None]
    assert {finalist.trial.allocation for finalist in solved} <= {
        result.best.allocation,
        result.baselines[result.best_uniform()].allocation,
    }
    assert solved and all(finalist.quality.order < finalist.untuned.order for finalist in solved)
    assert task.evaluator.fingerprint == fingerprint and task.quality(result.trials[0].allocation) is not None
    assert task.quality(result.best.allocation).score == plain.score or choice.chosen.name != "1"
    result.add_report()
    untouched = task.quality(result.best.allocation, "test")
    if result.tuned_weights is not None:
        assert result.test["best"].score != untouched.score


def test_nothing_is_solved_after_the_whole_recipe_or_where_only_some_samples_at_once_are_taken(monkeypatch):
    assert not small_task(monkeypatch).evaluator.solves_answers
    assert not make_task("digits-cnn").evaluator.solves_answers
    assert briefly_prepared(monkeypatch).evaluator.solves_answers
    for task in (formula_task(), make_task("tabular/digits-cnn")):
        assert not task.evaluator.solves_answers and task.evaluator.solved_weights(task.uniform(4)) is None
