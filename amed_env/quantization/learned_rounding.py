"""Learned rounding: which weights go up, which down, so that the network changes least.

A weight may go to either neighbour of where it starts on its grid, never further, so this is rounding and no
retraining: no label is used, only inputs of the calibration split and what the float network makes of them. Every
(layer, width) has one rounding, to be used in whatever allocation it stands. So all of them are learned together: each
step draws an allocation at random, now and then a uniform one, and corrects the roundings that it contains. Scales and
biases can be learned with them.

Sources: the choice between neighbours, learned layer by layer, is AdaRound (Nagel et al., ICML 2020); losses over
blocks are BRECQ's (Li et al., ICLR 2021); step sizes are learned as in LSQ (Esser et al., ICLR 2020). Learning all
widths together over random allocations is this project's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from amed_env.errors import NonFiniteError
from amed_env.problem.allocation import FLOAT_BITS
from amed_env.quantization.layers import (
    PreparedWidth,
    QuantizedLayer,
    StoredTensor,
    channels_last,
    prepared_width,
    round_to_nearest,
)
from amed_env.quantization.layerwise import solved
from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.ranges import quantize_weight
from amed_env.quantization.recipe import LEARNED_WIDTHS, Recipe
from amed_env.quantization.rounding import integer_range
from amed_env.quantization.statistics import short_scale

logger = logging.getLogger(__name__)

TEMPERATURE = 2.0  # training images are classified with near certainty; softer probabilities tell more
# Added to the loss that normalises a step. Without normalising, gradients of 2-bit allocations drown the rest:
# ResNet-20 at 4 bits 89.5 % without, 90.1 % with it, 3,000 steps each.
LOSS_FLOOR = 0.02
# A solved choice is right together with all the others of its row, so it is held more firmly than its distance says.
CERTAINTY = 0.3
# Layers whose rounding is not learned in a step are as wide as in the sensitivities that searches start from.
OTHER_WIDTH = 8


class _RoundActivations(torch.autograd.Function):
    """Rounds to a grid; gradients pass inside the range, and the step size gets LSQ's, with its gradient scale.

    Written out, because autograd would keep and pass through every intermediate tensor.
    """

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, scale: torch.Tensor, low: int, high: int) -> torch.Tensor:
        steps = inputs / scale
        rounded = steps.round().clamp_(low, high)
        inside = (steps >= low) & (steps <= high)
        # d(rounded x scale)/d(scale): the rounding error inside the range, the end of the range outside.
        slope = rounded - steps.mul_(inside)
        ctx.save_for_backward(slope, inside)
        # LSQ's gradient scale 1 / sqrt(N q_high) with N values a sample: steps of a scale of the size of those of
        # weights.
        ctx.factor = 1.0 / math.sqrt(inputs[0].numel() * high)
        return rounded.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        slope, inside = ctx.saved_tensors
        (gradient,) = gradients
        return gradient * inside, (gradient * slope).sum() * ctx.factor, None, None


class LearnedWidth(nn.Module):
    """What is learned of a layer at one width.

    Args:
        layer: The layer, calibrated.
        bits: The width.
        learn_scales: Whether scales and bias are learned.
        position: Where the weights stand in steps of the grid, of the weight's shape; None is where they do.
    """

    def __init__(
        self, layer: QuantizedLayer, bits: int, learn_scales: bool, position: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.bits = bits
        weight = layer.layer.weight.detach()
        _, scales = quantize_weight(weight, bits)
        solved = position is not None
        position = weight / scales if position is None else position
        self.low, self.high = integer_range(bits, unsigned=False)
        self.activation_low, self.activation_high = integer_range(bits, layer.statistics.unsigned)
        self.lower: torch.Tensor
        self.register_buffer("lower", torch.floor(position))
        part = position - self.lower
        if solved:
            part = torch.where(part < 0.5, part * (1 - CERTAINTY), 1 - (1 - part) * (1 - CERTAINTY))
        # Not nearer to a neighbour than 1 %: the logit of an exact 0 or 1 is infinite and could never be learned.
        part = part.clamp(0.01, 0.99)
        self.up = nn.Parameter(torch.log(part / (1 - part)))  # positive: round up; starts at the nearest
        self.scales = nn.Parameter(scales, requires_grad=learn_scales)
        activation_scale = torch.tensor(1.0 if layer.reads_indices else layer.statistics.scale(bits))
        self.activation_scale = nn.Parameter(activation_scale, requires_grad=learn_scales)
        bias = layer.layer.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=learn_scales)

    def integers(self) -> torch.Tensor:
        """The weights' integers; gradients pass the choice as if it were a probability."""
        probability = torch.sigmoid(self.up)
        chosen = (self.up > 0).to(probability.dtype) + probability - probability.detach()
        return (self.lower + chosen).clamp(self.low, self.high)

    def weight(self) -> torch.Tensor:
        """The rounded weights."""
        return self.integers() * self.scales

    def round_activations(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs on the learned grid."""
        rounded: torch.Tensor = _RoundActivations.apply(
            inputs, self.activation_scale, self.activation_low, self.activation_high
        )
        return rounded

    @torch.no_grad()
    def prepared(self) -> PreparedWidth:
        """The result."""
        integers = (self.lower + (self.up > 0)).clamp(self.low, self.high)
        scale = short_scale(max(float(self.activation_scale), 1e-12))
        return prepared_width(integers, self.scales.detach(), self.bias, scale, self.bits)


class _LearningLayer:
    """What a layer computes while roundings are learned."""

    def __init__(self, layer: QuantizedLayer, recipe: Recipe, positions: Mapping[int, torch.Tensor]) -> None:
        self.layer = layer
        self.widths = {
            bits: LearnedWidth(layer, bits, recipe.learn_scales, positions.get(bits)) for bits in LEARNED_WIDTHS
        }
        self.wide = round_to_nearest(layer.layer, layer.statistics, OTHER_WIDTH)
        self.wide_weight = channels_last(self.wide.weight)
        self.alone = recipe.rounding == "layer"
        self.weight_bits = self.activation_bits = FLOAT_BITS
        self.loss: torch.Tensor | None = None

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """The layer at the selected widths; alone, it returns the float result and keeps its own error as loss."""
        rounded = self._rounded(inputs)
        if not self.alone:
            return rounded
        layer = self.layer.layer
        exact = self.layer.compute(inputs, layer.weight, layer.bias).detach()
        # Relative to the output's variance, so that layers of large outputs do not decide alone.
        spread = exact.var().clamp_min(1e-12)
        self.loss = (rounded - exact).square().mean() / spread
        return exact

    def _rounded(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.activation_bits in self.widths and not self.layer.reads_indices:
            inputs = self.widths[self.activation_bits].round_activations(inputs)
        elif self.activation_bits != FLOAT_BITS and not self.layer.reads_indices:
            scale = self.wide.activation_scale
            low, high = integer_range(OTHER_WIDTH, self.layer.statistics.unsigned)
            inputs = inputs + ((inputs.detach() / scale).round().clamp(low, high) * scale - inputs.detach())
        layer = self.layer.layer
        if self.weight_bits in self.widths:
            learned = self.widths[self.weight_bits]
            return self.layer.compute(inputs, learned.weight(), learned.bias)
        if self.weight_bits == FLOAT_BITS:
            return self.layer.compute(inputs, layer.weight, layer.bias)
        return self.layer.compute(inputs, self.wide_weight, layer.bias)


class RoundingLearner:
    """Learns all roundings of a network; its state can be saved and restored between steps.

    Args:
        network: The calibrated network.
        recipe: What is learned, and how.
        inputs: Float tensor (N, …) of calibration samples.
        seed: Of the order of samples and of the allocations.
        class_axis: Axis of the classes among the outputs; None for outputs that are no class scores: then their squared
            error is learned from instead of the divergence.
    """

    def __init__(
        self,
        network: QuantizedNetwork,
        recipe: Recipe,
        inputs: torch.Tensor,
        seed: int = 0,
        class_axis: int | None = 1,
    ) -> None:
        self.network, self.recipe, self._class_axis = network, recipe, class_axis
        self.inputs = inputs[: recipe.steps * recipe.batch_size]  # of others the float outputs would be for nothing
        self.step = 0
        # Shared weights are stored once, so what one of their layers would learn the other could not have.
        learning = [layer for name, layer in network.weighted.items() if name not in network.workload.sharing]
        positions = solved(network, inputs, learning) if recipe.start == "solved" else {}
        self._layers = [_LearningLayer(layer, recipe, positions.get(layer.name, {})) for layer in learning]
        self._generator = torch.Generator().manual_seed(seed)
        self._learned = nn.ModuleList(learned for layer in self._layers for learned in layer.widths.values())
        self._optimizer = torch.optim.Adam(self._parameter_groups())
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._blocks = _Blocks(network) if recipe.rounding == "block" else None
        self._targets = self._float_outputs()
        self._spread = 1.0 if class_axis is not None else max(1e-12, float(self._targets.var()))

    def _parameter_groups(self) -> list[dict[str, Any]]:
        widths: list[LearnedWidth] = list(self._learned)  # type: ignore[arg-type]
        groups: list[dict[str, Any]] = [
            {"params": [width.up for width in widths], "lr": self.recipe.learning_rate},
            {"params": [width.bias for width in widths if width.bias is not None], "lr": self.recipe.scale_rate},
        ]
        # Adam's steps do not depend on the size of a gradient, so each scale needs a rate of its own size.
        for width in widths:
            for scale in (width.scales, width.activation_scale):
                groups.append({"params": [scale], "lr": self.recipe.scale_rate * float(scale.detach().abs().mean())})
        for group in groups:
            group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
        return [group for group in groups if group["params"]]

    @torch.no_grad()
    def _float_outputs(self) -> torch.Tensor:
        """What the float network returns: logarithms of softened class probabilities, or values."""
        self.network.select(self.network.workload.uniform(FLOAT_BITS))
        outputs = torch.cat([self.network(batch) for batch in self.inputs.split(self.network.batch_size)])
        return outputs if self._class_axis is None else F.log_softmax(outputs / TEMPERATURE, dim=self._class_axis)

    def run(self, on_step: Callable[[int, int], None] | None = None) -> None:
        """Learn until the last step.

        Args:
            on_step: Called with the steps done and all steps.

        Raises:
            NonFiniteError: If the loss is NaN or infinite.
        """
        with self._attached():
            while self.step < self.recipe.steps:
                self._learn_once()
                self.step += 1
                if on_step is not None:
                    on_step(self.step, self.recipe.steps)

    def seconds_of_a_step(self, steps: int) -> float:
        """How long a step takes: the mean of some, after one that is not counted; they are part of no learning."""
        durations = []
        with self._attached():
            for _ in range(steps + 1):
                started = perf_counter()
                self._learn_once()
                durations.append(perf_counter() - started)
        return sum(durations[1:]) / steps

    def seconds_of_a_sample(self) -> float:
        """How long the float network takes for one sample: each is run once before the first step."""
        started = perf_counter()
        self._float_outputs()
        return (perf_counter() - started) / len(self.inputs)

    def _attached(self) -> _Attached:
        return _Attached(self._layers, self._blocks)

    def _learn_once(self) -> None:
        # Half a cosine down to zero: at the end the choices stay where they are.
        decay = 0.5 * (1 + math.cos(math.pi * self.step / self.recipe.steps))
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * decay
        self._draw_allocation()
        chosen = torch.randint(len(self.inputs), (self.recipe.batch_size,), generator=self._generator)
        batch = channels_last(self.inputs[chosen])
        if self._blocks is not None:
            self._blocks.observe(batch)
        for layer in self._layers:
            layer.loss = None
        scores = self.network.module(batch)
        losses = [layer.loss for layer in self._layers if layer.loss is not None]
        if self._blocks is not None:
            losses = self._blocks.losses()
        if self.recipe.rounding != "layer":
            losses.append(self._divergence(scores, self._targets[chosen]))
        loss = torch.stack(losses).sum()
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"learning the rounding of {self.network.workload.name!r} met NaN or infinity at step {self.step}; "
                "check the calibration samples, or use the recipe 'nearest'."
            )
        self._optimizer.zero_grad()
        # Allocations of very different quality take turns; without this the worst ones alone would decide.
        (loss / (loss.detach() + LOSS_FLOOR)).backward()
        self._optimizer.step()

    def _divergence(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self._class_axis is None:
            return (outputs - targets).square().mean() / self._spread
        found = F.log_softmax(outputs / TEMPERATURE, dim=self._class_axis)
        positions = outputs[0].numel() // outputs.shape[self._class_axis]  # pixels or tokens of a sample
        return F.kl_div(found, targets, log_target=True, reduction="batchmean") / positions * TEMPERATURE**2

    def _draw_allocation(self) -> None:
        """One width for all layers now and then, else a width for each; activations follow, or stay wide."""
        count = len(self._layers)
        uniform, tied, floating = torch.rand(3, generator=self._generator).tolist()
        widths = torch.tensor([*LEARNED_WIDTHS, OTHER_WIDTH])
        # Uniform allocations are what a search and its baselines ask for first, and a random draw of 20 layers never is
        # one. The shares of this method (a half; six tenths tied; of the rest half in float) are part of every
        # preparation for any widths of activations.
        activations = self.recipe.activations
        if uniform < (0.5 if activations == "any" else 0.3):
            drawn = widths[torch.randint(len(LEARNED_WIDTHS), (1,), generator=self._generator)].expand(count)
        else:
            drawn = widths[torch.randint(len(widths), (count,), generator=self._generator)]
            if not (drawn < OTHER_WIDTH).any():  # there must be something to learn
                drawn[torch.randint(count, (1,), generator=self._generator)] = LEARNED_WIDTHS[0]
        for layer, bits in zip(self._layers, drawn.tolist(), strict=True):
            layer.weight_bits = bits
            if activations == "any":
                layer.activation_bits = bits if tied < 0.6 else FLOAT_BITS if floating < 0.5 else OTHER_WIDTH
            else:
                layer.activation_bits = bits if activations == "tied" else FLOAT_BITS

    def results(self, layer: str) -> dict[int, PreparedWidth]:
        """What was learned of a layer, by width; nothing of one that does not learn."""
        found = next((learning for learning in self._layers if learning.layer.name == layer), None)
        if found is None:
            return {}
        return {bits: learned.prepared() for bits, learned in found.widths.items()}

    def state(self) -> dict[str, Any]:
        """All that is needed to go on from here, as tensors and plain values."""
        return {
            "step": self.step,
            "learned": self._learned.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._learned.load_state_dict(state["learned"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self.step = int(state["step"])


class _Blocks:
    """Losses at the ends of blocks: what enters a block is the float network's, what leaves it is compared with it.

    Blocks end at results that several readers share.
    """

    def __init__(self, network: QuantizedNetwork) -> None:
        self._network = network
        self.stored = network.stored
        self._exact: dict[StoredTensor, torch.Tensor] = {}
        self._losses: list[torch.Tensor] = []
        self._observing = False

    @torch.no_grad()
    def observe(self, batch: torch.Tensor) -> None:
        """Run the float network and remember what leaves each block."""
        learning = {layer: layer.learning for layer in self._network.weighted.values()}
        for layer in learning:
            layer.learning = None
        self._losses, self._observing = [], True
        self._network.module(batch)
        self._observing = False
        for layer, function in learning.items():
            layer.learning = function

    def meet(self, stored: StoredTensor, values: torch.Tensor) -> torch.Tensor:
        """What stands at the end of a block."""
        if self._observing:
            self._exact[stored] = values
            return values
        exact = self._exact[stored]
        self._losses.append((values - exact).square().mean() / exact.var().clamp_min(1e-12))
        return exact

    def losses(self) -> list[torch.Tensor]:
        """The losses of the last batch."""
        return list(self._losses)


class _Attached:
    """Lets a network compute with what is being learned, as a context manager."""

    def __init__(self, layers: list[_LearningLayer], blocks: _Blocks | None) -> None:
        self._layers, self._blocks = layers, blocks

    def __enter__(self) -> None:
        for layer in self._layers:
            layer.layer.learning = layer
        for stored in self._blocks.stored if self._blocks is not None else ():
            stored.learning = lambda values, stored=stored, blocks=self._blocks: blocks.meet(stored, values)

    def __exit__(self, *error: object) -> None:
        for layer in self._layers:
            layer.layer.learning = None
        for stored in self._blocks.stored if self._blocks is not None else ():
            stored.learning = None
