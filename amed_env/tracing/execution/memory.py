"""What a traced network keeps in memory while it runs."""

from __future__ import annotations

import torch
from torch import fx

from amed_env.problem.memory_plan import NetworkMemory
from amed_env.problem.workload import Workload
from amed_env.tracing.execution.sequence import execution_of
from amed_env.tracing.execution.steps import Execution, LayerStep, results_of
from amed_env.tracing.groups import find_groups, stored_results
from amed_env.tracing.lowering import EmbeddingTable, Product
from amed_env.tracing.shapes import record_shapes

_CODES = 256
"""Codes of one byte."""


def memory_of(module: fx.GraphModule, workload: Workload, sample: torch.Tensor) -> NetworkMemory:
    """The results of a traced network, and how long they live.

    Args:
        module: The network.
        workload: Its layers.
        sample: (1, …), or a batch of the size that the network takes, whose results are then those of all its samples.
    """
    with torch.no_grad():
        record_shapes(module, sample)
    layers = {name: module.get_submodule(name) for name in workload.layer_names}
    summed = {name for name, layer in layers.items() if not isinstance(layer, EmbeddingTable | Product)}
    groups = find_groups(module, summed)
    execution = execution_of(module, layers, groups, stored_results(groups), sample)
    row = max((layer.k for layer in workload if layer.name in summed), default=1)
    return NetworkMemory(results_of(execution), row + (_CODES if reads_other_codes(execution) else 0))


def reads_other_codes(execution: Execution) -> bool:
    """Whether a layer reads codes that are kept at another width than its own."""
    layers = [step for step in execution.steps if isinstance(step, LayerStep)]
    return any(step.source.codes != (step.layer, False) for step in layers)
