"""Divergences of the outputs when one or two layers alone are narrowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
import torch

from amed_env.datasets import Samples
from amed_env.errors import NonFiniteError
from amed_env.evaluation.comparisons import Comparison, counted
from amed_env.evaluation.outputs import RunningSpread
from amed_env.evaluation.quality import Progress
from amed_env.problem.allocation import FLOAT_BITS, BitAllocation, Precision
from amed_env.problem.workload import Workload
from amed_env.quantization.network import QuantizedNetwork

# Not float: the whole sweep then runs on integers, and it is what narrowing the layer does to the network that a search
# starts from.
SENSITIVITY_BITS = 8
"""Width of all other layers meanwhile, unless activations stay in float."""
AT_ONCE = 1_024
"""Allocations of one sweep, whose plans are kept in memory together."""

FloatArray = npt.NDArray[np.float64]
Cell = tuple[int, int]
"""Number of a layer, and of a precision."""


def measure_divergences(
    network: QuantizedNetwork,
    comparison: Comparison,
    samples: Samples,
    precisions: Sequence[Precision],
    batch_size: int,
    progress: Progress | None = None,
    cells: Iterable[Cell] | None = None,
) -> FloatArray:
    """Mean divergence from a wide network when one layer is changed: float64 (L, P), not negative.

    That network has 8 bits, or where no precision rounds activations the weights of the float network: nothing runs on
    integers then, and rounding the activations of all other layers would take time and answer another question.

    Args:
        network: The network.
        comparison: What compares the outputs.
        samples: Calibration samples.
        precisions: P precisions.
        batch_size: Samples of one forward pass.
        progress: Called with the steps done and all steps.
        cells: Numbers of the layers and precisions to measure; all by default. Others are 0.

    Raises:
        NonFiniteError: If the network returns NaN or infinity.
    """
    names, base = network.workload.layer_names, network.workload.uniform(base_bits(precisions))
    every = product(range(len(names)), range(len(precisions)))
    # From the last layer to the first, so that each shares all layers before its own with the one before.
    ordered = sorted(every if cells is None else cells, key=lambda cell: (-cell[0], cell[1]))
    allocations = [base.replace({names[row]: precisions[column]}) for row, column in ordered]
    divergences = np.zeros((len(names), len(precisions)))
    values = _divergences(network, comparison, base, allocations, samples, batch_size, progress)
    for cell, value in zip(ordered, values, strict=True):
        divergences[cell] = value
    return divergences


def base_bits(precisions: Sequence[Precision]) -> int:
    """Width of the layers that are not changed."""
    in_float = all(precision.activation_bits == FLOAT_BITS for precision in precisions)
    return FLOAT_BITS if in_float else SENSITIVITY_BITS


def pair_cells(layers: int, precisions: Sequence[Precision], reach: int) -> list[tuple[int, int, int, int]]:
    """(layer, precision, later layer, precision) of every pair that is measured: none at the width of all others."""
    base = base_bits(precisions)
    changed = [c for c, precision in enumerate(precisions) if precision != (base, base)]
    return [
        (first, m, second, n)
        for first in reversed(range(layers))
        for m in changed
        for second in reversed(range(first + 1, min(layers, first + reach + 1)))
        for n in changed
    ]


def pair_allocations(workload: Workload, precisions: Sequence[Precision], reach: int) -> list[BitAllocation]:
    """The allocations that `measure_pairs` runs, besides the 8-bit one."""
    bits = base_bits(precisions)
    names, base = workload.layer_names, workload.uniform(bits)
    changed = [precision for precision in precisions if precision != (bits, bits)]
    single = [base.replace({name: precision}) for name in reversed(names) for precision in changed]
    pairs = [
        base.replace({names[i]: precisions[m], names[j]: precisions[n]})
        for i, m, j, n in pair_cells(len(names), precisions, reach)
    ]
    return [*single, *pairs]


def measure_pairs(
    network: QuantizedNetwork,
    comparison: Comparison,
    samples: Samples,
    precisions: Sequence[Precision],
    batch_size: int,
    reach: int,
    progress: Progress | None = None,
) -> FloatArray:
    """KL(i, j) - KL(i) - KL(j) in nats: what two changed layers do together beyond the sum of each alone.

    Args:
        network: The network.
        comparison: What compares the outputs.
        samples: Calibration samples.
        precisions: P precisions.
        batch_size: Samples of one forward pass.
        reach: Pairs further apart than so many layers are left at 0.
        progress: Called with the steps done and all steps.

    Returns:
        float64 (L, P, L, P), symmetric.

    Raises:
        NonFiniteError: If the network returns NaN or infinity.
    """
    names = network.workload.layer_names
    layers, count = len(names), len(precisions)
    base = network.workload.uniform(base_bits(precisions))
    allocations = pair_allocations(network.workload, precisions, reach)
    values = _divergences(network, comparison, base, allocations, samples, batch_size, progress)
    known = dict(zip(allocations, values, strict=True))
    alone = np.array([[known.get(base.replace({name: p}), 0.0) for p in precisions] for name in names])
    interactions = np.zeros((layers, count, layers, count))
    for i, m, j, n in pair_cells(layers, precisions, reach):
        together = known[base.replace({names[i]: precisions[m], names[j]: precisions[n]})]
        interactions[i, m, j, n] = interactions[j, n, i, m] = together - alone[i, m] - alone[j, n]
    return interactions


def _divergences(
    network: QuantizedNetwork,
    comparison: Comparison,
    base: BitAllocation,
    allocations: list[BitAllocation],
    samples: Samples,
    batch_size: int,
    progress: Progress | None,
) -> FloatArray:
    """Mean divergence of each allocation's outputs from those of `base`: float64, one each."""
    batches = [inputs for inputs, _ in samples.batches(batch_size)]
    means = np.zeros(len(allocations))
    spread = RunningSpread()
    done, steps = 0, len(batches) * len(allocations)
    for start in range(0, len(allocations), AT_ONCE):
        part = allocations[start : start + AT_ONCE]
        reference = torch.empty(0)
        for number, position, outputs in network.sweep([base, *part], batches):
            counting = samples.counting(batches[number])
            outputs = counted(outputs.cpu(), counting)
            if position == 0:
                reference = outputs
                if comparison.normalised and start == 0:
                    spread.add(reference.double().reshape(len(reference), -1))
                continue
            means[start + position - 1] += float(comparison.values(outputs, reference, counting).sum()) / len(samples)
            done += 1
            if progress is not None:
                progress(done, steps)
    if comparison.normalised:
        means /= spread.per_sample
    if not np.isfinite(means).all():
        raise NonFiniteError("the network returns NaN or infinity on the calibration samples when quantized.")
    return means
