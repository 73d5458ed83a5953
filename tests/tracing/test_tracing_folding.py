"""Batch norms are folded into the layers before them where that changes no output, and kept elsewhere."""

import pytest
import torch
import torch.fx
from small_networks import Head, norms, shake
from torch import nn

from amed_env import trace


def outputs_agree(network, inputs):
    network = shake(network)
    traced = trace(network, inputs[:1])
    with torch.no_grad():
        expected, found = network(inputs), traced.module(inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    return traced


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (
            Head(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)),
            (3, 7, 7),
        ),
        (Head(nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)), (6, 5, 5)),
        (Head(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)), (3, 9)),
        (nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)), (5,)),
        (Head(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)), (3, 7, 7)),
    ],
    ids=["conv", "depthwise", "conv1d", "linear", "not affine"],
)
def test_folding_leaves_outputs_equal(network, shape):
    traced = outputs_agree(network, torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)))
    assert norms(traced) == []
    assert traced.kept_float == ()


def test_the_callers_network_is_not_changed():
    network = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trace(network, torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


class SharedNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, inputs):
        return self.norm(self.second(self.norm(self.first(inputs)))).mean(dim=(2, 3))


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, inputs):
        raw = self.conv(inputs)
        return (self.norm(raw) + raw).mean(dim=(2, 3))


class SharedLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, inputs):
        return self.conv(self.norm(self.conv(inputs))).mean(dim=(2, 3))


class NormOverTime(nn.Module):
    """The norm sees (N, T, C) and normalises T, which happens to equal C."""

    def __init__(self):
        super().__init__()
        self.each, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, inputs):
        return self.norm(self.each(inputs)).mean(dim=1)


@pytest.mark.parametrize(
    ("network", "shape", "kept"),
    [
        (Head(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3)), (3, 7, 7), "body.0"),
        (Head(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)), (3, 7, 7), "body.2"),
        (Head(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)), (3, 7, 7), "body.1"),
        (TwoReaders(), (3, 4, 4), "norm"),
        (SharedLayer(), (3, 4, 4), "norm"),
        (NormOverTime(), (6, 6), "norm"),
    ],
    ids=["before", "after relu", "batch statistics", "two readers", "shared layer", "over time"],
)
def test_what_cannot_be_folded_is_kept_and_named(network, shape, kept):
    if kept == "body.1":  # its output depends on the batch, so only the report is compared
        traced = trace(network, torch.zeros(2, *shape))
    else:
        traced = outputs_agree(network, torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)))
    assert [entry.name for entry in traced.kept_float] == [kept]
    assert "not folded" in traced.kept_float[0].reason
    assert traced.kept_float[0].type.startswith("BatchNorm")


def test_a_norm_that_several_layers_share_is_folded_into_each():
    traced = outputs_agree(SharedNorm(), torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(1)))
    assert traced.kept_float == ()
