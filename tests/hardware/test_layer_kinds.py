"""Kinds of layers that came later: what devices that do not know them make of them, and what they cost."""

import json

import numpy as np
import pytest

from amed_env import BitAllocation, Layer, Precision, Workload
from amed_env.hardware import load_device
from amed_env.hardware.costs import cost_table, evaluate_cost
from amed_env.hardware.external.command_format import request_text
from amed_env.hardware.protocol import Capabilities

EMBEDDING = Layer(
    "table", "embedding", m=6, n=32, k=1, input_elements=6, weight_elements=32_000, output_elements=6 * 32
)
PRODUCT = Layer("scores", "matmul", m=6, n=6, k=16, groups=2)
TRANSPOSED = Layer("up", "transposed", m=64, n=4 * 16, k=32, kernel=(2, 2), stride=(2, 2))
HEAD = Layer("head", "linear", m=6, n=1_000, k=32, shares_weights_with="table")
WORKLOAD = Workload("tokens", (EMBEDDING, PRODUCT, TRANSPOSED, HEAD))


@pytest.mark.parametrize("kind", ["transposed", "embedding"])
def test_a_device_that_does_not_know_a_kind_takes_it_for_a_basic_one(kind):
    old = Capabilities(
        weight_bits={"conv": (4, 8), "linear": (2, 8)}, activation_bits={"conv": (8,), "linear": (8,)}, metrics={}
    )
    expected = {"transposed": (4, 8), "embedding": (2, 8)}[kind]
    assert [p.weight_bits for p in old.precisions(kind)] == list(expected)
    layer = EMBEDDING if kind == "embedding" else TRANSPOSED
    old.require(layer, Precision(8, 8), "old")
    new = Capabilities(
        weight_bits={"conv": (4, 8), "linear": (2, 8), kind: (16,)},
        activation_bits={"conv": (8,), "linear": (8,), kind: (16,)},
        metrics={},
    )
    assert new.precisions(kind) == (Precision(16, 16),)


def test_a_request_to_a_program_has_the_four_kinds_of_its_format():
    layers = json.loads(request_text(WORKLOAD, WORKLOAD.uniform(8)))["layers"]
    assert [layer["kind"] for layer in layers] == ["linear", "matmul", "conv", "linear"]
    assert [layer["weight_elements"] for layer in layers] == [6 * 32, 6 * 16 * 2, 64 * 32, 32_000]


def test_memory_counts_what_is_stored():
    table = cost_table(load_device("bitfusion"), WORKLOAD, (8,), (8,))
    stored = [32_000, 0, 64 * 32, 0]  # the product has no weights, the head those of the table
    assert np.allclose(table.metrics["weight_kib"][:, 0, 0], np.array(stored) / 1024)
    cost = evaluate_cost(load_device("bitfusion"), WORKLOAD, WORKLOAD.uniform(8))
    assert cost.metrics["weight_kib"] == pytest.approx(sum(stored) / 1024)


def test_an_embedding_moves_the_rows_that_are_looked_up():
    few, many = (
        Workload("t", (Layer("t", "embedding", m=6, n=32, k=1, input_elements=6, weight_elements=rows * 32),))
        for rows in (10, 100_000)
    )
    device = load_device("bitfusion")
    few_cost, many_cost = (evaluate_cost(device, workload, workload.uniform(8)).metrics for workload in (few, many))
    assert few_cost["latency_ms"] == many_cost["latency_ms"] and few_cost["weight_kib"] < many_cost["weight_kib"]


def test_the_second_operand_of_a_product_has_the_weight_width():
    wide = Workload("w", (PRODUCT,))
    costs = {
        bits: evaluate_cost(load_device("bitfusion"), wide, BitAllocation({"scores": Precision(*bits)})).metrics
        for bits in ((2, 8), (8, 2), (8, 8))
    }
    assert costs[2, 8]["bops"] == costs[8, 2]["bops"] == costs[8, 8]["bops"] / 4
    assert costs[2, 8]["energy_uj"] < costs[8, 8]["energy_uj"]
