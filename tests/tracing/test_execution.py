"""What a network keeps in memory while it runs, against what a person counts."""

import pytest
import torch
from helpers.odd_networks import NETWORKS
from torch import nn
from torch.nn import functional as F

from amed_env.tracing.trace import trace


def memory(network, inputs, bits):
    workload = trace(network.eval(), inputs).workload
    return workload.memory.plan(workload.uniform(bits)).size


def test_a_chain_keeps_what_is_read_and_what_is_written():
    chain = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 100), nn.ReLU(), nn.Linear(100, 3))
    # The first layer's input is kept as codes while it runs; the last result is the caller's.
    assert memory(chain, torch.randn(2, 8), 8) == 128 + 100
    assert memory(chain, torch.randn(2, 8), 4) == (128 + 100) // 2 + 2  # aligned to four bytes


def test_a_last_convolution_is_put_in_order_for_the_caller():
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    assert memory(network, torch.randn(2, 2, 8, 8), 8) == 4 * 64 + 4 * 4 * 64


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.second, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.second(F.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(("bits", "inner"), [(8, 256), (4, 128), (2, 64)])
def test_a_shortcut_stays_at_8_bits_and_is_written_over(bits, inner):
    # The shortcut (256 bytes) waits while the block's own result is made; their sum is written over it, as its mean is
    # all that is read: 4 floats.
    assert memory(Block(), torch.randn(2, 1, 8, 8), bits) == 256 + inner + 16


def test_floats_take_four_bytes():
    workload = trace(Block().eval(), torch.randn(2, 1, 8, 8)).workload
    assert workload.memory.plan(workload.uniform(32)).size == 4 * (256 + 256) + 16


@pytest.mark.parametrize("name", ["GRU", "masked attention", "one batch size", "three dimensions", "complex numbers"])
def test_memory_of_odd_networks_is_known(name):
    odd = NETWORKS[name]
    workload = trace(odd.make().eval(), odd.inputs).workload
    wide, narrow = (workload.memory.bytes(workload.uniform(bits)) for bits in (8, 2))
    assert wide >= narrow > 0


def edges(operations):
    """Pairs of layers between which no other layer stands."""
    layers_behind = {"input": set()}
    found = set()
    for operation in operations:
        read = set().union(*(layers_behind[name] for name in operation.inputs))
        found |= {(name, operation.layer) for name in read if operation.layer}
        layers_behind[operation.name] = {operation.layer} if operation.layer else read
    return found


@pytest.mark.parametrize(
    "name", ["masked attention", "concatenations", "three dimensions", "interpolation and shuffles"]
)
def test_operations_lead_from_layer_to_layer(name):
    odd = NETWORKS[name]
    workload = trace(odd.make().eval(), odd.inputs).workload
    assert edges(workload.operations) == set(workload.edges)
    assert [operation.layer for operation in workload.operations if operation.layer] == list(workload.layer_names)


def test_operations_have_shapes_and_sizes():
    convolution = nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(2, 1))
    network = nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 2 * 5, 7))
    operations = trace(network.eval(), torch.randn(2, 3, 12, 10)).workload.operations
    first, activation, pool, last = operations
    assert (first.input_shapes, first.output_shape) == (((3, 12, 10),), (4, 4, 10))
    assert first.sizes == {"kernel": (3, 5), "stride": (2, 1), "padding": (0, 2), "dilation": (2, 1)}
    assert (activation.kind, activation.elements) == ("relu", 160)
    assert (pool.kind, pool.output_shape, pool.sizes["kernel"]) == ("max_pool2d", (4, 2, 5), (2, 2))
    assert (last.inputs, last.input_shapes, last.read_elements) == ((pool.name,), ((40,),), 40)
