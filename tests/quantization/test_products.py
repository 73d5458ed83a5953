"""Products of two activations, embeddings, and weights that two layers share."""

import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn

from amed_env import BitAllocation, Precision
from amed_env.datasets import Samples
from amed_env.evaluation.sensitivities import measure_sensitivity
from amed_env.quantization.network import QuantizedNetwork
from amed_env.tracing.trace import trace
from amed_env.training.checkpoint import used_widths
from amed_env.training.network import TrainedNetwork

TOKENS, LENGTH, WIDTH = 11, 6, 8


class Tied(nn.Module):
    """Tokens, attention with two heads, and a head that has the embedding's weights."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(TOKENS, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        x = self.table(tokens)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(x).mean(dim=1)


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    return trace(Tied().eval(), _tokens(3))


@pytest.fixture
def network(traced):
    return QuantizedNetwork(traced, _tokens(64), engine="float")


def _tokens(count):
    return torch.randint(0, TOKENS, (count, LENGTH), generator=torch.Generator().manual_seed(count))


def _random_allocations(network, count):
    rng = random.Random(0)
    names = network.workload.layer_names
    for _ in range(count):
        yield BitAllocation({n: Precision(rng.choice((2, 3, 4, 8)), rng.choice((2, 3, 4, 8))) for n in names})


def test_layers_of_a_transformer(traced):
    kinds = {layer.name: layer.kind for layer in traced.workload}
    assert kinds == {
        "table": "embedding",
        "attention.in_proj": "linear",
        "attention.matmul": "matmul",
        "attention.matmul#2": "matmul",
        "attention.out_proj": "linear",
        "head": "linear",
    }
    first, second = (layer for layer in traced.workload if layer.kind == "matmul")
    assert (first.m, first.n, first.k, first.groups) == (LENGTH, LENGTH, WIDTH // 2, 2)
    assert (second.m, second.n, second.k, second.groups) == (LENGTH, WIDTH // 2, LENGTH, 2)
    assert {kept.name for kept in traced.kept_float} == {"norm"}
    assert ("attention.matmul", "attention.matmul#2") in traced.workload.edges
    assert ("table", "head") in traced.workload.edges  # through the sum around attention


def test_shared_weights_are_stored_once(traced):
    head = traced.workload.layers[-1]
    assert head.shares_weights_with == "table" and traced.workload.sharing == {"table", "head"}
    assert traced.workload.weight_elements == TOKENS * WIDTH + 4 * WIDTH * WIDTH
    uniform = traced.workload.uniform(8)
    assert traced.workload.weight_kib(uniform) == (TOKENS * WIDTH + 4 * WIDTH * WIDTH) / 1024
    apart = BitAllocation({**uniform, "head": Precision(4, 8)})
    assert traced.workload.weight_kib(apart) == pytest.approx((1.5 * TOKENS * WIDTH + 4 * WIDTH * WIDTH) / 1024)


def test_a_reader_of_shared_weights_has_no_more_bits_than_are_stored(network):
    tokens, uniform = _tokens(5), network.workload.uniform(8)
    scores = {}
    for stored, read in ((2, 8), (2, 2), (8, 2), (8, 8)):
        changed = {"table": Precision(stored, 8), "head": Precision(read, 8)}
        network.select(BitAllocation({**uniform, **changed}))
        scores[stored, read] = network(tokens)
    assert torch.equal(scores[2, 8], scores[2, 2])
    assert not torch.equal(scores[8, 2], scores[8, 8])
    used = used_widths(network, BitAllocation({**uniform, "table": Precision(2, 8)}))
    assert ("head", 2) in used and ("head", 8) in used  # what a file of trained weights must hold


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (2, 4), (4, 16), (32, 3)])
def test_operands_of_a_product_are_rounded_each_at_its_width(network, weight_bits, activation_bits):
    name = "attention.matmul"
    calls = []
    product = network.layers[name]
    product.register_forward_hook(lambda _, operands, outputs: calls.append((operands, outputs)))
    floats = network.workload.uniform(32)
    network.select(BitAllocation({**floats, name: Precision(weight_bits, activation_bits)}))
    network(_tokens(5))

    def rounded(values, bits, statistics):
        values = values.double().numpy()
        if bits == 32:
            return values
        step = statistics.scale(bits)
        assert values.min() < 0 and not statistics.unsigned
        return np.clip(np.rint(values / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step

    (left, right), outputs = calls[0]
    expected = rounded(left, activation_bits, product.operands[0]) @ rounded(right, weight_bits, product.operands[1])
    assert np.allclose(outputs.double().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_attention_weights_have_an_unsigned_grid(network):
    assert network.layers["attention.matmul#2"].operands[0].unsigned  # they come from a softmax


def test_an_embedding_has_a_scale_for_every_row(network):
    table = network.weighted["table"]
    table.prepare(3)
    prepared = table.prepared[3]
    assert prepared.integers.shape == (TOKENS, WIDTH) and prepared.scales.shape == (TOKENS,)
    network.select(BitAllocation({**network.workload.uniform(32), "table": Precision(3, 2)}))
    rows = []
    table.register_forward_hook(lambda _, given, out: rows.append((given[0], out)))
    network(_tokens(4))
    indices, looked_up = rows[0]
    expected = (prepared.integers.double() * prepared.scales.double()[:, None])[indices]
    assert torch.allclose(looked_up.double(), expected, rtol=1e-6)


def test_both_engines_compute_the_same(traced, network):
    integers = QuantizedNetwork(traced, _tokens(64))
    if integers.why_float is not None:
        pytest.skip(integers.why_float)
    assert set(integers.in_float) == {"attention.matmul", "attention.matmul#2"}
    tokens = _tokens(9)
    allocations = list(_random_allocations(network, 20))
    for allocation in allocations:
        network.select(allocation)
        integers.select(allocation)
        assert integers.runs_on_integers and torch.equal(integers(tokens, "batch"), network(tokens))
    for _, position, scores in integers.sweep(allocations[:6], [tokens]):
        network.select(allocations[position])
        assert torch.equal(scores, network(tokens))


def test_allocations_that_run_together_and_a_pickled_copy_compute_the_same(network):
    tokens = _tokens(7)
    allocations = list(_random_allocations(network, 4))
    together = network.run_together(allocations, tokens)
    copied = pickle.loads(pickle.dumps(network))
    for allocation, scores in zip(allocations, together, strict=True):
        network.select(allocation)
        copied.select(allocation)
        assert torch.allclose(network(tokens), scores, atol=1e-6)
        assert torch.equal(network(tokens), copied(tokens))


@pytest.mark.parametrize("measure", ["squared-error", "fisher", "hessian"])
def test_every_layer_has_a_sensitivity_that_falls_with_the_width(network, measure):
    samples = Samples(_tokens(32), torch.zeros(32, dtype=torch.int64))
    precisions = [Precision(bits, bits) for bits in (2, 8, 32)]
    narrow, wide, exact = measure_sensitivity(network, samples, precisions, measure, 16).T
    assert narrow.shape == (6,) and narrow.sum() > 10 * wide.sum() > 0 and np.allclose(exact, 0)
    if measure != "hessian":  # an estimated curvature may come out below zero, and then counts as none
        assert (narrow > wide).all() and (wide > 0).all()


def test_what_is_trained_is_what_the_network_computes_afterwards(network):
    network.prepare((4, 8))
    trained = TrainedNetwork(network)
    allocation = BitAllocation({**network.workload.uniform(4), "attention.matmul": Precision(8, 4)})
    trained.start_at(allocation)
    network.select(allocation)
    tokens = _tokens(8)
    assert torch.allclose(trained(tokens), network(tokens), atol=1e-5)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.05)
    before = trained.trained_layers()["attention.in_proj"].weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(trained(tokens), torch.arange(8)).backward()
        optimizer.step()
    assert not torch.equal(before, trained.trained_layers()["attention.in_proj"].weight)
    trained.export()
    network.select(allocation)
    network._plan = None
    assert torch.allclose(trained(tokens), network(tokens), atol=1e-4)
    assert torch.equal(network.weighted["head"].prepared[4].integers, network.weighted["table"].prepared[4].integers)
