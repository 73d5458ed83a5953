"""Tables of what was found."""

import io

import torch
from rich.console import Console
from torch import nn

import amed_env
from amed_env.commands.tables import allocation_table
from amed_env.commands.training_run import _mean_weight_bits


class Attention(nn.Module):
    """A product of two activations between two layers with weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, inputs):
        keys = self.first(inputs)
        return self.last((inputs @ keys.mT @ keys).mean(dim=1))


def test_products_of_activations_have_no_weights_to_store():
    samples = torch.rand(3, 30, 5, 8, generator=torch.Generator().manual_seed(0))
    task = amed_env.make_task(network=Attention(), calibration=samples[0], search=samples[1], recipe="nearest")
    allocation = task.uniform(2).replace({name: (8, 8) for name in task.workload.layer_names if "matmul" in name})
    trial = task.measure(allocation)
    result = amed_env.SearchResult(task, "none", 0, trial, [trial], "latency_ms", [trial], 1, 1, 0.0)
    console = Console(file=io.StringIO(), width=150)
    console.print(allocation_table(result))
    rows = [line.split() for line in console.file.getvalue().splitlines() if " matmul " in line or " linear " in line]
    shown = [0.0 if row[4] == "–" else float(row[4]) for row in rows]
    assert sum(kind == "matmul" for _, kind, *_ in rows) == 2
    assert abs(sum(shown) - trial.costs["weight_kib"]) < 1e-4 and trial.costs["weight_kib"] > 0
    assert _mean_weight_bits(task, allocation) == 2.0
