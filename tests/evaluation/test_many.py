"""Many allocations at once, in several processes."""

import numpy as np
import pytest
import torch

from amed_env import BitAllocation, make_task
from amed_env.datasets.samples import drawn_order
from amed_env.errors import AllocationError


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
    assert allocations != sorted(allocations, key=lambda allocation: tuple(allocation.values()))
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


def test_samples_are_seen_in_one_drawn_order():
    inputs, labels = torch.randn(60, 16, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 4
    network = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)).eval()
    parts = {"calibration": inputs + 1, "search": (inputs, labels), "test": (inputs + 2, labels)}
    first, again = (make_task(network=network, recipe="nearest", engine="float", **parts) for _ in range(2))
    dealt = first.evaluator.samples("search")
    assert dealt.fingerprint() == again.evaluator.samples("search").fingerprint()
    assert not torch.equal(dealt.labels, labels) and sorted(dealt.labels.tolist()) == sorted(labels.tolist())
    order = drawn_order(2000, "any")
    assert sorted(order.tolist()) == list(range(2000))
    assert not np.array_equal(order, drawn_order(2000, "other"))
    assert abs(float(np.corrcoef(order, np.arange(2000))[0, 1])) < 0.1
