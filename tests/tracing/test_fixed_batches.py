"""Networks whose capture takes one batch size only."""

import torch
from torch import nn

from amed_env import trace
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
