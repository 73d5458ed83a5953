"""Where a compiled network parts from the one that was evaluated."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from amed_env.deploy.c.building import build, run_raw
from amed_env.deploy.c.lowering import Lowered
from amed_env.deploy.c.writing import Bias, Epilogue, write_c
from amed_env.quantization.codes import quantize
from amed_env.quantization.network import QuantizedNetwork
from amed_env.tracing.execution.recording import node_values
from amed_env.tracing.execution.steps import LayerStep


def first_difference(
    network: QuantizedNetwork,
    lowered: Lowered,
    sample: torch.Tensor,
    *,
    scales_first: bool,
    epilogue: Epilogue,
    bias: Bias,
) -> str | None:
    """The first layer whose codes differ on a sample, with how many of them, or None.

    Args:
        network: The network, switched to the allocation.
        lowered: Its steps.
        sample: (1, …).
        scales_first: See `Program`.
        epilogue: As the network was exported.
        bias: As the network was exported.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_c(lowered, folder, "", scales_first=scales_first, epilogue=epilogue, bias=bias, traced=True)
        written = np.frombuffer(run_raw(build(folder, folder), sample.numpy()), np.uint8)
    known = node_values(network.module, sample)
    place = 0
    for step in lowered.execution.steps:
        written_format = lowered.format_of(step.target)
        if not isinstance(step, LayerStep) or written_format is None:
            continue
        values = known[lowered.execution.nodes[step.layer]]
        expected = quantize(values, written_format, step.low, step.high).tensor
        stored = expected.permute(*step.target.order).contiguous().numpy().reshape(-1)
        found = written[place : place + stored.size]
        place += stored.size
        if not np.array_equal(stored, found):
            return f"layer {step.layer!r}: {int((stored != found).sum()):,} of {stored.size:,} codes differ"
    return None
