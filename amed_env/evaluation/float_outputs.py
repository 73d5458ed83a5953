"""What the float network returns for the samples of a split: computed once, kept as long as it is small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from amed_env.datasets import Samples
from amed_env.evaluation.comparisons import counted
from amed_env.evaluation.outputs import RunningSpread
from amed_env.problem.allocation import FLOAT_BITS
from amed_env.quantization.network import QuantizedNetwork
from amed_env.support.cache import cached_array

KEPT_MIB = 512
"""Memory for the outputs of one split; those of 8,000 samples and 1,000 classes are 31 MiB, masks are often larger."""
ON_DISK_MIB = 64
"""The same in the user's cache, so that another search of the network need not run it."""
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
    network: QuantizedNetwork, samples: Samples, batch_size: int, with_spread: bool, key: str
) -> FloatOutputs:
    """What the float network returns for samples: from the user's cache, or by running it once.

    Args:
        network: The network; it is left at 32 bits if it runs.
        samples: The samples.
        batch_size: Samples of one forward pass.
        with_spread: Whether their spread is needed; it takes a pass that is otherwise saved where they are too large.
        key: Text that changes with the network.
    """

    def outputs_of(inputs: torch.Tensor) -> torch.Tensor:
        return counted(network(inputs).cpu(), samples.counting(inputs))

    network.select(network.workload.uniform(FLOAT_BITS))
    first = outputs_of(next(iter(samples.batches(batch_size)))[0])
    size = first[0].numel() * first.element_size() * len(samples)
    if size > KEPT_MIB * _MIB:
        spread = _spread(map(outputs_of, _inputs(samples, batch_size))) if with_spread else 1.0
        return FloatOutputs(None, spread)

    def compute() -> npt.NDArray[np.float32]:
        network.select(network.workload.uniform(FLOAT_BITS))
        return torch.cat([outputs_of(inputs) for inputs in _inputs(samples, batch_size)]).numpy()

    if size > ON_DISK_MIB * _MIB:
        kept = compute()
    else:
        # Sums in another order, as of other batches or another version of torch, differ in their last bits.
        made_by = f"{batch_size} {torch.__version__} {torch.backends.cpu.get_cpu_capability()} {network.device}"
        facts = f"{key} {samples.fingerprint()} {made_by}"
        kept = cached_array("float-outputs", facts, (len(samples), *first.shape[1:]), compute, np.float32)
    batches = tuple(torch.from_numpy(kept).split(batch_size))
    return FloatOutputs(batches, _spread(batches) if with_spread else 1.0)


def _inputs(samples: Samples, batch_size: int) -> Iterator[torch.Tensor]:
    return (inputs for inputs, _ in samples.batches(batch_size))


def _spread(batches: Iterable[torch.Tensor]) -> float:
    spread = RunningSpread()
    for outputs in batches:
        spread.add(outputs.double().reshape(len(outputs), -1))
    return spread.per_sample
