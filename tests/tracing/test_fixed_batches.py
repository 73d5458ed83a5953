"""Networks whose capture takes one batch size only."""

import torch
from torch import nn

from amed_env import make_task, trace
from amed_env.tracing.trace import FIXED_BATCH, FIXED_ELEMENTS


class Counted(nn.Module):
    """Python's `len` makes a constant of the number of samples."""

    def __init__(self, count=None):
        super().__init__()
        self.count, self.token = count, nn.Parameter(torch.randn(1, 1, 6))
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        token = self.token.expand(self.count or len(x), -1, -1)
        return self.layer(torch.cat([token, x.flatten(2)[..., :6]], 1))[:, 0]


def test_a_network_that_takes_any_batch_is_captured_for_a_batch_that_runs_fast():
    network = Counted()
    traced = trace(network, torch.randn(1, 3, 6))
    assert traced.batch_size == FIXED_BATCH
    (layer,) = traced.workload
    assert (layer.m, layer.input_elements) == (4, 24)  # of one sample
    x = torch.randn(FIXED_BATCH, 3, 6)
    assert torch.allclose(traced.module(x), network(x), atol=1e-6)


def test_a_network_that_takes_one_batch_keeps_it():
    assert trace(Counted(3), torch.randn(3, 3, 6)).batch_size == 3


def test_batches_of_large_samples_are_small():
    side = 400
    traced = trace(Counted(), torch.randn(1, 3, side, side))
    assert traced.batch_size == FIXED_ELEMENTS // (3 * side * side) == 2


class OneByOne(nn.Module):
    """A loop over samples, each with calls of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return torch.stack([self.last(self.first(sample).relu()).mean(0) for sample in x])


def test_a_loop_over_samples_has_the_work_of_one():
    layers = trace(OneByOne(), torch.randn(1, 3, 6)).workload
    assert [(layer.m, layer.macs, layer.input_elements) for layer in layers] == [(3, 3 * 48, 18), (3, 3 * 32, 24)]


def test_weights_that_are_repeated_for_every_sample_are_those_of_one_layer():
    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(1, 6, 4))

        def forward(self, x):
            return torch.bmm(x, self.weight.expand(len(x), -1, -1))

    (layer,) = trace(Repeated(), torch.randn(1, 3, 6)).workload
    assert (layer.kind, layer.m, layer.weight_elements) == ("linear", 3, 24)


def test_a_network_that_takes_one_sample_at_a_time_is_evaluated():
    torch.manual_seed(0)
    network, samples = Counted(1), torch.randn(12, 3, 6)
    task = make_task(network=network, calibration=samples[:6], search=samples[6:], device="bops", recipe="nearest")
    quantized = task.evaluator.network
    quantized.select(quantized.workload.uniform(32))
    for sample in samples[6:].split(1):
        assert torch.allclose(quantized(sample), network(sample), atol=1e-5)
    assert (
        task.evaluator.evaluate(task.workload.uniform(8)).score
        < task.evaluator.evaluate(task.workload.uniform(2)).score
    )
