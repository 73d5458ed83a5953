"""Operations in place: the integer engine computes what plain torch does."""

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from traced import traced_once

from amed_env import trace
from amed_env.quantization.kernels import integer_kernels_are_exact
from amed_env.quantization.network import QuantizedNetwork

exact_only = pytest.mark.skipif(not integer_kernels_are_exact(), reason="this machine has no exact integer kernels")


class Between(nn.Module):
    """Two convolutions and a linear layer; what lies between the first two is given."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)
        self.relu, self.silu = nn.ReLU(inplace=True), nn.SiLU()
        self.between = between

    def forward(self, x):
        return self.head(F.relu(self.second(self.between(self, self.first(x)))).mean((2, 3)))


def sub_unread(network, y):
    y.sub_(1.0)
    return y


def div_unread(network, y):
    y.div_(4)
    return y


def tanh_unread(network, y):
    y.tanh_()
    return y


def module_unread(network, y):
    network.relu(y)
    return y


def function_told_by_position(network, y):
    F.hardtanh(y, -0.3, 0.2, True)
    return y


def function_told_by_keyword(network, y):
    F.hardswish(y, inplace=True)
    return y


def chain(network, y):
    z = y.mul_(2)
    y.add_(1)
    torch.sigmoid_(z)
    return y + z


def statement_under_another_name(network, y):
    z = y
    z -= 0.7
    return y * z


def read_before_and_after(network, y):
    before = y * 3
    y.neg_()
    return before + y


def sub_returned(network, y):
    return y.sub_(0.3)


def sigmoid_returned(network, y):
    return y.sigmoid_()


def elu_returned(network, y):
    return F.elu_(y)


def leaky_returned(network, y):
    return F.leaky_relu_(y, 0.1)


def copied(network, y):
    z = torch.zeros_like(y)
    z.copy_(y)
    return z


def into_out(network, y):
    z = torch.zeros_like(y)
    torch.add(y, 1.0, out=z)
    return z


def part_set(network, y):
    y[:, 0] = 0
    return y


def part_set_by_a_statement(network, y):
    y[:, :2] += 3
    return y


def part_changed(network, y):
    y[:, :3].relu_()
    return y


def view_changed(network, y):
    y.view(y.size(0), y.size(1), -1).tanh_()
    return y


def filled_with_flag(network, y):
    network.relu(y)  # of no effect, if the flag `inplace` does not survive
    z = torch.zeros_like(y)
    z.copy_(y)
    return z


IN_PLACE = [
    sub_unread,
    div_unread,
    tanh_unread,
    module_unread,
    function_told_by_position,
    function_told_by_keyword,
    chain,
    statement_under_another_name,
    read_before_and_after,
    sub_returned,
    sigmoid_returned,
    elu_returned,
    leaky_returned,
    copied,
    into_out,
    part_set,
    part_set_by_a_statement,
    part_changed,
    view_changed,
    filled_with_flag,
]


def made(between, **options):
    torch.manual_seed(1)
    network = Between(between).eval()
    for parameter in network.parameters():
        parameter.data *= 1.7
    inputs = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = network(inputs.clone())
    traced = traced_once(("between", between), network, inputs)
    return QuantizedNetwork(traced, inputs, **options), inputs, expected


def allocations_of(network):
    uniform = network.workload.uniform(8)
    changes = [{}, {"second": (4, 4)}, {"head": (3, 8)}, {"second": (4, 4), "head": (2, 2)}, {"first": (3, 3)}, {}]
    return [uniform.replace(change) for change in changes]


def scores_of(network, inputs, batch=None):
    found = []
    for allocation in allocations_of(network):
        network.select(allocation)
        found.append(network(inputs, batch))
    return found


@exact_only
@pytest.mark.parametrize("between", IN_PLACE, ids=operator.attrgetter("__name__"))
def test_integers_compute_what_torch_does(between):
    network, inputs, expected = made(between, reuse_mib=16)
    assert network.why_float is None
    network.select(network.workload.uniform(8))
    assert network.runs_on_integers
    spread = float(expected.std())
    torch.testing.assert_close(network(inputs), expected, rtol=0, atol=0.15 * spread)
    float_network, _, _ = made(between, engine="float")
    alone = scores_of(float_network, inputs)
    for found in (scores_of(network, inputs), scores_of(network, inputs, "batch"), scores_of(network, inputs, "batch")):
        torch.testing.assert_close(torch.stack(found), torch.stack(alone), rtol=1e-5, atol=1e-5)
    swept = [scores for _, _, scores in network.sweep(allocations_of(network), [inputs])]
    assert all(map(torch.equal, swept, scores_of(network, inputs)))
    assert network.memory.hits > 0


def test_the_network_and_its_inputs_stay_as_they_were():
    def changes_its_input(x):
        return x.relu_()

    class Network(nn.Sequential):
        def forward(self, x):
            return super().forward(changes_its_input(x))

    torch.manual_seed(0)
    network = Network(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)).eval()
    inputs = torch.randn(20, 5)
    before = inputs.clone()
    traced = trace(network, inputs[:1].clone())
    quantized = QuantizedNetwork(traced, inputs)
    quantized.select(quantized.workload.uniform(8))
    first = quantized(inputs)
    assert torch.equal(inputs, before) and torch.equal(quantized(inputs), first)
    assert network[1].inplace
