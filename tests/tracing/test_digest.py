"""The same weights in another program are another network, wherever something is kept for it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import amed_env
from amed_env.tracing.digest import program_digest
from amed_env.tracing.trace import trace


class Net(nn.Module):
    def __init__(self, activation=F.relu, stride=1, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.up = nn.Conv2d(1, 4, 3, stride=stride), nn.ConvTranspose2d(4, 2, 2, stride=stride)
        self.head, self.activation, self.scale = nn.Linear(2, 3), activation, scale

    def forward(self, images):
        return self.head(self.up(self.activation(self.conv(images)) * self.scale).mean((2, 3)))


def digest(**options):
    return program_digest(trace(Net(**options).eval(), torch.rand(2, 1, 9, 9)).module)


@pytest.mark.parametrize("change", [{"activation": F.gelu}, {"stride": 2}, {"scale": 2.0}])
def test_another_operation_or_option_is_another_program(change):
    assert digest() == digest() != digest(**change)


def test_nothing_kept_for_one_network_is_taken_for_another_with_its_weights():
    images = torch.rand(96, 1, 9, 9, generator=torch.Generator().manual_seed(1))

    def task(activation):
        parts = {"calibration": images[:32], "search": images[32:64], "test": images[64:], "recipe": "nearest"}
        return amed_env.make_task(network=Net(activation).eval(), name="net", threads=1, **parts)

    first, second = task(F.relu), task(F.gelu)
    assert first.evaluator.fingerprint != second.evaluator.fingerprint
    for made in (first, second):  # the second finds what the first left in the cache, if anything
        made.evaluator.prepare()
        assert made.float_quality.score == 0.0
    expected = Net(F.gelu).eval()(second.evaluator.samples("search").inputs)
    kept = torch.cat(second.evaluator.float_outputs("search").batches)
    assert torch.allclose(kept, expected, atol=1e-5)
