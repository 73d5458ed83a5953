"""What the float network returns for the samples of a split: computed once, kept as long as it is small."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from amed_env.datasets import Samples
from amed_env.evaluation.comparisons import counted
from amed_env.evaluation.outputs import RunningSpread
from amed_env.problem.allocation import FLOAT_BITS
from amed_env.quantization.network import QuantizedNetwork

KEPT_MIB = 512
"""Memory for the outputs of one split; those of 8,000 samples and 1,000 classes are 31 MiB, masks are often larger."""
_MIB = 2**20


@dataclass(frozen=True)
class FloatOutputs:
    """The outputs of one split.

    Attributes:
        batches: float32, as they come batch by batch; None if they are too large to keep, and so computed again.
        spread: How much they vary; see `RunningSpread.per_sample`.
    """

    batches: tuple[torch.Tensor, ...] | None
    spread: float


def measure_float_outputs(
    network: QuantizedNetwork, samples: Samples, batch_size: int, with_spread: bool
) -> FloatOutputs:
    """Run the float network over samples.

    Args:
        network: The network; it is left at 32 bits.
        samples: The samples.
        batch_size: Samples of one forward pass.
        with_spread: Whether their spread is needed; it takes a pass that is otherwise saved where they are too large.
    """
    network.select(network.workload.uniform(FLOAT_BITS))
    kept: list[torch.Tensor] | None = []
    spread = RunningSpread()
    for inputs, _ in samples.batches(batch_size):
        outputs = counted(network(inputs).cpu(), samples.counting(inputs))
        if with_spread:
            spread.add(outputs.double().reshape(len(outputs), -1))
        if outputs[0].numel() * outputs.element_size() * len(samples) > KEPT_MIB * _MIB:
            kept = None
            if not with_spread:
                break
        if kept is not None:
            kept.append(outputs)
    return FloatOutputs(None if kept is None else tuple(kept), spread.per_sample if with_spread else 1.0)
