"""Single-layer sensitivities that need gradients or the quantized tensors: what `amed_env.tasks.proxies` reads.

All are measured on the float network. For layer i at one precision, Δw is the change of its (folded) weights, Δx that
of what it reads, and Δz that of its output when both are rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from amed_env.datasets import Samples
from amed_env.errors import NonFiniteError
from amed_env.evaluation.quality import GradientMeasure
from amed_env.problem.allocation import FLOAT_BITS, BitAllocation, Precision
from amed_env.quantization.layers import QuantizedLayer
from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.products import QuantizedProduct

_Layer = QuantizedLayer | QuantizedProduct

GRADIENT_BATCH = 32
"""Samples of one pass of `gradient`: the square of a sum of gradients is in the mean the sum of their squares, as each
label is drawn by itself, and a pass of one sample would cost much more."""
HUTCHINSON_PROBES = 16
"""Random vectors a batch of the trace estimate; its error falls with their root, and batches average it further."""
_SEED = 20_220_530  # of the probes and of the labels that are drawn, so that the same network gives the same numbers


def measure_sensitivity(
    network: QuantizedNetwork,
    samples: Samples,
    precisions: Sequence[Precision],
    measure: GradientMeasure | Literal["gradient"],
    batch: int,
    class_axis: int | None = 1,
) -> npt.NDArray[np.float64]:
    """What every layer loses at every precision alone.

    - `squared-error`: |Δw|²/|w|² + |Δx|²/|x|², the sum of both noise-to-signal ratios; no unit.
    - `fisher`: ½ E[(∂ℓ/∂z · Δz)²] with labels drawn from the network's own probabilities, which is the
      second-order term of the Kullback-Leibler divergence, in nats.
    - `hessian`: ½ (mean diagonal of the Hessian) · |Δ|² for weights and for what is read, in nats; diagonals by
      Hutchinson's estimate, labels drawn as for `fisher`. HAWQ-V2 (arXiv 1911.03852) has the weights' part.
    - `gradient`: ½ Σ E[g²] Δw² + ½ E[Σ g² Δx²] with gradients g of the same loss: the diagonal of the Fisher matrix
      instead of its product with the change, in nats. One pass forward and backward.

    Outputs that are no class scores are taken for means of normal distributions of the outputs' own variance, from
    which targets are drawn: the divergence of these is half the squared error over that variance.

    Args:
        network: The network; it is left at 32 bits.
        samples: Samples that belong to neither search nor test.
        precisions: P precisions.
        measure: Which of them.
        batch: Samples of one forward pass.
        class_axis: Axis of the classes among the outputs, or None if these are no class scores.

    Returns:
        float64 (L, P), not negative.

    Raises:
        NonFiniteError: If a value is NaN or infinite.
    """
    layers = list(network.layers.values())
    for layer in layers:
        for bits in {width for precision in precisions for width in precision}:
            layer.prepare(bits)
    network.select(BitAllocation.uniform(list(network.layers), FLOAT_BITS))
    passes = _Passes(network, torch.Generator().manual_seed(_SEED), class_axis)
    totals = np.zeros((len(layers), len(precisions)))
    # Labels are drawn from the network's own probabilities: then the second-order term is that of the divergence.
    for inputs, _ in samples.batches(batch):  # labels of calibration samples may be made up
        share = len(inputs) / len(samples)
        totals += share * _MEASURES[measure](passes, inputs, precisions)
    if not np.isfinite(totals).all():
        raise NonFiniteError(f"the {measure} sensitivity is NaN or infinite on the calibration samples.")
    # Estimates of a curvature may come out below zero; a proxy that rewards narrow widths would mislead every solver.
    return np.maximum(totals, 0.0)


@dataclass
class _Record:
    """What one layer read and returned in a forward pass; one entry a call.

    Attributes:
        seconds: Its weights, or the second operands of a product of activations.
        inputs: What it read, or the first operands.
        outputs: What it returned.
    """

    seconds: list[torch.Tensor] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)

    @property
    def read_values(self) -> list[torch.Tensor]:
        """What it read, but for indices."""
        return [tensor for tensor in self.inputs if tensor.is_floating_point()]

    def samples(self, layer: _Layer) -> int:
        """Over how many samples the second operands go: weights belong to all of them."""
        return 1 if isinstance(layer, QuantizedLayer) else len(self.seconds[0])


class _Passes:
    """Differentiable float passes whose layers keep what they read and return."""

    def __init__(self, network: QuantizedNetwork, generator: torch.Generator, class_axis: int | None) -> None:
        self.network, self.generator, self.class_axis = network, generator, class_axis
        self.layers = list(network.layers.values())

    @contextmanager
    def recorded(self, inputs: torch.Tensor) -> Iterator[tuple[torch.Tensor, list[_Record]]]:
        """Scores of a batch and the record of every layer; weights and what is read can be differentiated by."""
        records = [_Record() for _ in self.layers]
        for layer, record in zip(self.layers, records, strict=True):
            layer.learning = _recording(layer, record)
        try:
            with torch.enable_grad():
                yield self.network.module(inputs.to(self.network.device)), records
        finally:
            for layer in self.layers:
                layer.learning = None

    def loss(self, outputs: torch.Tensor) -> torch.Tensor:
        """Sum over the samples of the negative log-likelihood of targets that are drawn from the network's own answer.

        Of pixels and tokens of a sample it is the mean, as that of the divergence is.
        """
        if self.class_axis is None:
            values = outputs.detach()
            spread = values.var().clamp_min(1e-12)
            noise = torch.randn(values.shape, generator=self.generator).to(values) * spread.sqrt()
            return (outputs - values - noise).square().sum() / (2 * spread) / self.positions(outputs)
        rows = outputs.movedim(self.class_axis, -1).flatten(0, -2)
        probabilities = F.softmax(rows.detach().double().cpu(), dim=1)
        drawn = torch.multinomial(probabilities, 1, generator=self.generator).squeeze(1).to(rows.device)
        return F.cross_entropy(rows, drawn, reduction="sum") / self.positions(outputs)

    def positions(self, outputs: torch.Tensor) -> int:
        """Pixels, tokens or values of a sample."""
        return outputs[0].numel() // (1 if self.class_axis is None else outputs.shape[self.class_axis])

    def signs(self, like: torch.Tensor) -> torch.Tensor:
        """A random tensor of +1 and -1."""
        return (torch.randint(0, 2, like.shape, generator=self.generator) * 2 - 1).to(like)


def _recording(layer: _Layer, record: _Record) -> Callable[..., torch.Tensor]:
    if isinstance(layer, QuantizedLayer):
        record.seconds.append(layer.layer.weight.detach().clone().requires_grad_())

    def compute(values: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        inputs = _differentiable(values)
        if isinstance(layer, QuantizedLayer):
            outputs = layer.compute(inputs, record.seconds[0], layer.layer.bias)
        else:
            assert other is not None
            record.seconds.append(_differentiable(other))
            outputs = layer.product(inputs, record.seconds[-1])
        record.inputs.append(inputs)
        record.outputs.append(outputs)
        return outputs.clone()  # what follows may change it in place

    return compute


def _differentiable(values: torch.Tensor) -> torch.Tensor:
    """A tensor of the same values to differentiate by, whatever they depend on; indices stay as they are."""
    if not values.is_floating_point():
        return values
    return values.clone() if values.requires_grad else values.clone().requires_grad_()


def _rounded_inputs(layer: _Layer, values: torch.Tensor, bits: int) -> torch.Tensor:
    return layer.rounded_inputs(values, bits) if isinstance(layer, QuantizedLayer) else layer.rounded(values, 0, bits)


def _rounded_second(layer: _Layer, values: torch.Tensor, bits: int) -> torch.Tensor:
    if isinstance(layer, QuantizedLayer):
        return values if bits == FLOAT_BITS else layer.prepared[bits].weight.to(values.device)
    return layer.rounded(values, 1, bits)


def _rounded_output(
    layer: _Layer, read: torch.Tensor, second: torch.Tensor, weight_bits: int, activation_bits: int
) -> torch.Tensor:
    rounded = _rounded_inputs(layer, read, activation_bits)
    if not isinstance(layer, QuantizedLayer):
        outputs: torch.Tensor = layer.product(rounded, _rounded_second(layer, second, weight_bits))
        return outputs
    bias = layer.layer.bias if weight_bits == FLOAT_BITS else layer.prepared[weight_bits].bias
    moved = None if bias is None else bias.detach().to(second.device)
    return layer.compute(rounded, _rounded_second(layer, second, weight_bits), moved)


def _squared_errors(
    passes: _Passes, records: list[_Record], precisions: Sequence[Precision]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(L, P) |Δw|² and |Δx|², the latter a sample; of a product of activations both are."""
    of_weights, of_inputs = np.zeros((2, len(records), len(precisions)))
    for row, (layer, record) in enumerate(zip(passes.layers, records, strict=True)):
        by_weight = {precision.weight_bits: 0.0 for precision in precisions}
        for bits in by_weight:
            for second in record.seconds:
                error = _rounded_second(layer, second.detach(), bits) - second.detach()
                by_weight[bits] += _energy(error) / record.samples(layer)
        by_input = {precision.activation_bits: 0.0 for precision in precisions}
        for bits in by_input:
            for values in record.inputs:
                error = _rounded_inputs(layer, values.detach(), bits) - values.detach()
                by_input[bits] += _energy(error) / len(values)
        of_weights[row] = [by_weight[p.weight_bits] for p in precisions]
        of_inputs[row] = [by_input[p.activation_bits] for p in precisions]
    return of_weights, of_inputs


def _energy(values: torch.Tensor) -> float:
    return float(values.detach().double().square().sum())


def _relative_errors(passes: _Passes, inputs: torch.Tensor, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
    with passes.recorded(inputs) as (_, records):
        of_weights, of_inputs = _squared_errors(passes, records, precisions)
        weight_energy = np.asarray(
            [
                sum(_energy(second) for second in record.seconds) / record.samples(layer)
                for layer, record in zip(passes.layers, records, strict=True)
            ]
        )
        input_energy = np.asarray([sum(_energy(x) / len(x) for x in record.inputs) for record in records])
    relative = of_weights / np.maximum(weight_energy, 1e-30)[:, None]
    return np.asarray(relative + of_inputs / np.maximum(input_energy, 1e-30)[:, None])


def _fisher(passes: _Passes, inputs: torch.Tensor, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
    with passes.recorded(inputs) as (scores, records):
        # Squares of a mean over P independent positions are 1/P of the mean of their squares.
        loss = passes.loss(scores) * passes.positions(scores) ** 0.5
        every = [output for record in records for output in record.outputs]
        gradients = iter(torch.autograd.grad(loss, every, allow_unused=True))
    sensitivities = np.zeros((len(records), len(precisions)))
    for row, (layer, record) in enumerate(zip(passes.layers, records, strict=True)):
        slopes = [next(gradients) for _ in record.outputs]
        for column, (weight_bits, activation_bits) in enumerate(precisions):
            change = torch.zeros(len(inputs), dtype=torch.float64)
            with torch.no_grad():
                seconds = cycle(record.seconds)  # weights are the same at every call
                for read, second, returned, slope in zip(record.inputs, seconds, record.outputs, slopes, strict=False):
                    output = _rounded_output(layer, read.detach(), second.detach(), weight_bits, activation_bits)
                    if slope is not None:
                        part = ((output - returned) * slope).reshape(len(inputs), -1)
                        change += part.double().sum(dim=1).cpu()
            # Half the mean square of first-order changes: the Fisher matrix is the curvature of the divergence.
            sensitivities[row, column] = 0.5 * float(change.square().mean())
    return sensitivities


def _hessian(passes: _Passes, inputs: torch.Tensor, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
    with passes.recorded(inputs) as (scores, records):
        loss = passes.loss(scores)
        leaves = [tensor for record in records for tensor in (*record.seconds, *record.read_values)]
        # What does not reach the scores, an auxiliary head for example, has no gradient.
        gradients = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
        slopes = [
            torch.zeros_like(leaf) if slope is None else slope for slope, leaf in zip(gradients, leaves, strict=True)
        ]
        traces = np.zeros(len(leaves))
        curved = [position for position, slope in enumerate(slopes) if slope.requires_grad]  # not linear in it
        for _ in range(HUTCHINSON_PROBES if curved else 0):
            # One product with the whole Hessian: what other tensors' probes add to a tensor's own has mean zero.
            probes = [passes.signs(leaf) for leaf in leaves]
            products = torch.autograd.grad(
                [slopes[p] for p in curved], leaves, [probes[p] for p in curved], retain_graph=True, allow_unused=True
            )
            for position, (probe, product) in enumerate(zip(probes, products, strict=True)):
                if product is not None:
                    traces[position] += float((product * probe).double().sum()) / HUTCHINSON_PROBES
        of_weights, of_inputs = _squared_errors(passes, records, precisions)
    # Sums over the batch become means: of the loss for weights, of each sample's own trace for what is read.
    remaining = iter(traces / len(inputs))
    sensitivities = np.zeros((len(records), len(precisions)))
    for row, (layer, record) in enumerate(zip(passes.layers, records, strict=True)):
        elements = sum(second.numel() for second in record.seconds) / record.samples(layer)
        of_weight = sum(next(remaining) for _ in record.seconds) / elements
        read = sum(next(remaining) for _ in record.read_values)
        of_read = read / max(1, sum(x[0].numel() for x in record.read_values))
        sensitivities[row] = 0.5 * (of_weight * of_weights[row] + of_read * of_inputs[row])
    return sensitivities


def _gradient(passes: _Passes, inputs: torch.Tensor, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
    totals = np.zeros((len(passes.layers), len(precisions)))
    for part in inputs.split(passes.network.fixed_batch or GRADIENT_BATCH):
        with passes.recorded(part) as (scores, records):
            loss = passes.loss(scores) * passes.positions(scores) ** 0.5  # as for `fisher`
            leaves = [tensor for record in records for tensor in (*record.seconds, *record.read_values)]
            slopes = iter(torch.autograd.grad(loss, leaves, allow_unused=True))
        for row, (layer, record) in enumerate(zip(passes.layers, records, strict=True)):
            of_seconds = [next(slopes) for _ in record.seconds]
            of_inputs = [next(slopes) for _ in record.read_values]
            by_weight = {
                bits: _second_order(record.seconds, of_seconds, partial(_rounded_second, layer, bits=bits))
                for bits in {precision.weight_bits for precision in precisions}
            }
            by_input = {
                bits: _second_order(record.read_values, of_inputs, partial(_rounded_inputs, layer, bits=bits))
                for bits in {precision.activation_bits for precision in precisions}
            }
            totals[row] += [by_weight[p.weight_bits] + by_input[p.activation_bits] for p in precisions]
    return np.asarray(totals / len(inputs))


@torch.no_grad()
def _second_order(
    tensors: Sequence[torch.Tensor],
    slopes: Sequence[torch.Tensor | None],
    rounded: Callable[[torch.Tensor], torch.Tensor],
) -> float:
    """½ Σ g² Δ² over tensors, of which those without a gradient do not reach the outputs."""
    total = 0.0
    for tensor, slope in zip(tensors, slopes, strict=True):
        if slope is not None:
            values = tensor.detach()
            total += 0.5 * _energy((rounded(values) - values) * slope)
    return total


_MEASURES = {"squared-error": _relative_errors, "fisher": _fisher, "hessian": _hessian, "gradient": _gradient}
