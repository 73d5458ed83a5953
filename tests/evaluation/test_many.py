"""Many allocations at once, in several processes, and evaluations that end early."""

import copy

import numpy as np
import pytest
import torch

from amed_env import BitAllocation, SearchSession, make_task
from amed_env.datasets.samples import drawn_order
from amed_env.errors import AllocationError, InputError
from amed_env.evaluation.early_decision import EarlyDecision


@pytest.fixture(scope="module")
def evaluator():
    return make_task("digits-cnn", recipe="nearest", threads=1).evaluator


def random_allocations(workload, count, seed=0):
    numbers = np.random.default_rng(seed)
    return [
        BitAllocation({name: (int(b), int(b)) for name, b in zip(workload.layer_names, row, strict=True)})
        for row in numbers.choice([2, 3, 4, 8], (count, len(workload)))
    ]


def test_many_are_what_each_is_alone(evaluator):
    allocations = random_allocations(evaluator.workload, 12)
    allocations += [allocations[3], evaluator.workload.uniform(32), evaluator.workload.uniform(4, 8)]
    seen = []
    found = evaluator.evaluate_many(allocations, progress=lambda done, total: seen.append((done, total)))
    assert found == [evaluator.evaluate(allocation) for allocation in allocations]
    assert seen[-1] == (14, 14)
    assert evaluator.evaluate_many(allocations[:2], "test") == [
        evaluator.evaluate(allocation, "test") for allocation in allocations[:2]
    ]
    assert evaluator.evaluate_many([]) == []


def test_many_share_what_they_can(evaluator, monkeypatch):
    """Allocations that differ in the last layer alone run all others once a batch."""
    from amed_env.quantization.kernels import LayerKernel

    if evaluator.network.why_float is not None:
        pytest.skip(f"nothing runs on integers: {evaluator.network.why_float}")
    calls = []
    run = LayerKernel.__call__
    monkeypatch.setattr(LayerKernel, "__call__", lambda self, *given: calls.append(1) or run(self, *given))
    base = evaluator.workload.uniform(8)
    last = evaluator.workload.layer_names[-1]
    evaluator.evaluate_many([base.replace({last: (bits, 8)}) for bits in (2, 3, 4, 5, 6, 7, 8)])
    batches = -(-500 // evaluator.batch_size)
    assert len(calls) == batches * (len(base) - 1 + 7)


def test_workers_change_no_answer(evaluator):
    allocations = random_allocations(evaluator.workload, 9, seed=1)
    expected = evaluator.evaluate_many(allocations)
    try:
        assert evaluator.evaluate_many(allocations, workers=2) == expected
        assert evaluator.evaluate_many(allocations[::-1], workers=2) == expected[::-1]
    finally:
        evaluator.close()


def test_allocations_that_do_not_fit_are_refused(evaluator):
    with pytest.raises(AllocationError, match="lacks"):
        evaluator.evaluate_many([BitAllocation({"stem": (8, 8)})])


def test_a_hopeless_evaluation_ends_early(evaluator):
    good, bad = evaluator.workload.uniform(8), evaluator.workload.uniform(2)
    incumbent = evaluator.evaluate(good)
    early = EarlyDecision(incumbent.correct)
    ended = evaluator.evaluate_until(bad, early)
    assert ended.partial and ended.samples < incumbent.samples
    assert ended.to_json()["partial"] is True and "partial" not in incumbent.to_json()
    whole = evaluator.evaluate(bad)
    assert not whole.partial and whole.accuracy < incumbent.accuracy
    assert evaluator.evaluate_until(good, early) == incumbent


@pytest.mark.parametrize("lead", [0, 15, 60])
def test_equals_are_rarely_given_up(lead):
    """On random orders: a candidate as good as the incumbent is given up no more often than promised."""
    numbers = np.random.default_rng(lead)
    samples, right, looks = 400, 300, 8
    early = EarlyDecision(right, confidence=0.9, looks=looks)
    given_up = 0
    for _ in range(400):
        outcomes = numbers.permutation(np.arange(samples) < right - lead)
        seen = np.cumsum(outcomes)[samples // looks - 1 :: samples // looks]
        given_up += any(
            early.decided(int(correct), (number + 1) * samples // looks, samples) for number, correct in enumerate(seen)
        )
    if lead == 0:
        assert given_up <= 0.1 * 400 + 20
    if lead == 60:
        assert given_up >= 0.95 * 400


def sorted_task():
    """2,000 search samples: 8 bits have the last 350 wrong, 2 bits only the first 150."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).eval()
    calibration, pool, test = (
        torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
        for seed, count in enumerate((300, 9_000, 100))
    )
    labels = torch.arange(len(pool)) % 4

    def task_of(inputs, labels):
        test_part = (test, torch.arange(len(test)) % 4)
        return make_task(
            network=network,
            calibration=calibration,
            search=(inputs, labels),
            test=test_part,
            recipe="nearest",
            engine="float",
        )

    quantized = task_of(pool, labels).evaluator.network
    classes = []
    for bits in (8, 2):
        quantized.select(quantized.workload.uniform(bits))
        classes.append(quantized(pool).argmax(1))
    wide, narrow = classes
    differ = torch.nonzero(wide != narrow).flatten()[:500]
    agree = torch.nonzero(wide == narrow).flatten()[:1500]
    first, last = differ[:150], differ[150:500]
    inputs = pool[torch.cat([first, agree, last])]
    given = torch.cat([wide[first], wide[agree], narrow[last]])
    return task_of(inputs, given)


def test_data_sorted_by_difficulty_reject_nothing_that_is_better():
    task = sorted_task()
    session = SearchSession(task, 10, early_confidence=0.999)
    incumbent = session.evaluate(task.workload.uniform(8)).quality
    better = session.evaluate(task.workload.uniform(2)).quality
    assert (incumbent.correct, incumbent.samples) == (1650, 2000)
    assert not better.partial and (better.correct, better.samples) == (1850, 2000)
    assert session.best().allocation == task.workload.uniform(2)
    assert better == task.quality(task.workload.uniform(2))


def test_samples_are_seen_in_one_drawn_order():
    task = sorted_task()
    again = sorted_task()
    seen = task.evaluator.samples("search")
    assert seen.fingerprint() == again.evaluator.samples("search").fingerprint()
    order = drawn_order(2000, "any")
    assert sorted(order.tolist()) == list(range(2000))
    assert not np.array_equal(order, drawn_order(2000, "other"))
    assert abs(float(np.corrcoef(order, np.arange(2000))[0, 1])) < 0.1


def test_a_search_asks_once_a_batch(evaluator):
    task = make_task("digits-cnn", recipe="nearest", threads=1)
    task.evaluator, asked = copy.copy(evaluator), []
    task.evaluator.evaluate_until = lambda allocation, early: asked.append(early) or evaluator.evaluate(allocation)
    session = SearchSession(task, 5, early_confidence=0.99)
    session.evaluate(task.workload.uniform(8))
    session.evaluate(task.workload.uniform(4))
    assert [early.looks for early in asked] == [-(-500 // evaluator.batch_size)]


def test_nothing_is_decided_by_all_samples_or_by_none():
    early = EarlyDecision(90, 0.99)
    assert not early.decided(0, 100, 100)
    assert not early.decided(0, 0, 100)
    assert early.decided(10, 50, 100)
    for bad in ({"confidence": 1.0}, {"confidence": 0.2}, {"incumbent_correct": -1}, {"looks": 0}):
        with pytest.raises(InputError):
            EarlyDecision(**{"incumbent_correct": 5, **bad})


@pytest.mark.parametrize("seed", range(3))
def test_random_orders_do_not_matter_for_a_whole_evaluation(evaluator, seed):
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed)).tolist()
    allocations = random_allocations(evaluator.workload, 20, seed=5)
    expected = evaluator.evaluate_many(allocations)
    assert evaluator.evaluate_many([allocations[i] for i in order]) == [expected[i] for i in order]
