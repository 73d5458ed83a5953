"""A quantized network whose weights and step sizes are trained, and its way back into the integer network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from amed_env.problem.allocation import FLOAT_BITS, BitAllocation, Precision
from amed_env.quantization.integer import IntegerEngine
from amed_env.quantization.layers import channels_last
from amed_env.quantization.network import QuantizedNetwork
from amed_env.quantization.products import QuantizedProduct
from amed_env.training.layers import NORM_MOMENTUM, LearnedSteps, OutputMoments, TrainedLayer, TrainedStore

NORM_SAMPLES = 1_024
"""Calibration samples whose statistics batch norms have when they are folded."""


class TrainedNetwork(nn.Module):
    """Trains a quantized network in place of its layers; what it computes is what the network will compute.

    Args:
        network: The network, calibrated and prepared; `export` changes what it uses at the selected widths.
        per_channel: Whether every output channel of a weight has a step size of its own.
        normalise: Whether convolutions are followed by a batch norm while they are trained; see `TrainedLayer`.

    Attributes:
        allocation: What is selected.
    """

    def __init__(self, network: QuantizedNetwork, per_channel: bool = True, normalise: bool = False) -> None:
        super().__init__()
        self._network = [network]  # in a list: its modules are no part of this one
        made = {name: TrainedLayer(layer, per_channel, normalise) for name, layer in network.weighted.items()}
        for shape in network.workload:
            if shape.shares_weights_with:
                made[shape.name].share_weights(made[shape.shares_weights_with])
        layers = list(made.values())
        self.layers = nn.ModuleList(layers)
        self.stores = nn.ModuleList(TrainedStore(stored, network.device) for stored in network.stored)
        self.allocation = network.workload.uniform(FLOAT_BITS)
        for layer in layers:
            layer.weight.data = channels_last(layer.weight.data)

    @property
    def network(self) -> QuantizedNetwork:
        """The network that is trained."""
        return self._network[0]

    def trained_layers(self) -> dict[str, TrainedLayer]:
        """The layers by name, in network order."""
        return dict(zip(self.network.weighted, self.layers, strict=True))  # type: ignore[arg-type]

    def all_steps(self) -> Iterator[LearnedSteps]:
        """All step sizes of all widths."""
        return (module for module in self.modules() if isinstance(module, LearnedSteps))

    def add_widths(self, widths: Iterable[int]) -> None:
        """Have step sizes of these widths for every layer."""
        for bits in widths:
            for layer in self.trained_layers().values():
                layer.add_width(bits)

    def start_at(self, allocation: BitAllocation) -> None:
        """Select an allocation, and start with exactly what post-training quantization makes of it."""
        for name, layer in self.trained_layers().items():
            for bits in allocation[name]:
                layer.add_width(bits)
            layer.start_from(allocation[name].weight_bits)
        self.select(allocation)

    def select(self, allocation: BitAllocation) -> None:
        """Switch every layer to its precision; all widths were added."""
        self.allocation = allocation.require_layers(self.network.workload.layer_names, "the trained network")
        as_stored = self.network.as_stored(self.allocation)
        for name, layer in self.trained_layers().items():
            layer.add_width(as_stored[name].weight_bits)
            layer.select(*as_stored[name])
        self.network.prepare_all(self.allocation)
        for store in self.stores:
            store.active = IntegerEngine.runs(self.allocation)  # type: ignore[assignment]

    @contextmanager
    def _attached(self) -> Iterator[None]:
        layers = list(zip(self.network.weighted.values(), self.layers, strict=True))
        products = [layer for layer in self.network.layers.values() if isinstance(layer, QuantizedProduct)]
        stores = list(zip(self.network.stored, self.stores, strict=True))
        for layer, trained in layers:
            layer.learning = trained.forward
        for stored, trained in stores:
            stored.learning = trained.forward
        allocation = self.network.as_stored(self.allocation)
        for product in products:
            product.learning = partial(_straight_through, product, allocation[product.name])
        try:
            yield
        finally:
            for layer, _ in layers:
                layer.learning = None
            for product in products:
                product.learning = None
            for stored, _ in stores:
                stored.learning = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Class scores (N, classes) of float inputs (N, …) at the selected widths, differentiable."""
        count, inputs = len(inputs), self.network.filled(inputs)
        with self._attached():
            scores: torch.Tensor = self.network.module(channels_last(inputs.to(self.network.device)))
        return scores[:count]

    @torch.no_grad()
    def observe(self, batches: Iterable[torch.Tensor]) -> dict[str, OutputMoments]:
        """Measure the outputs of every layer at the selected widths, and let batch norms begin with them.

        Args:
            batches: Float tensors (N, …).

        Returns:
            Moments by layer; none of layers that stay in float.
        """
        trained = {n: layer for n, layer in self.trained_layers().items() if layer.weight_bits != FLOAT_BITS}
        for layer in trained.values():
            layer.moments = OutputMoments()
        try:
            for batch in batches:
                self(batch)
        finally:
            moments_of = {name: layer.moments for name, layer in trained.items() if layer.moments is not None}
            for layer in trained.values():
                layer.moments = None
        for name, moments in moments_of.items():
            trained[name].set_norm(moments)
        return moments_of

    @torch.no_grad()
    def refresh_norms(self, batches: Iterable[torch.Tensor]) -> None:
        """Let batch norms have the mean statistics of some batches at the selected widths, and of nothing before.

        Args:
            batches: Float tensors (N, …).
        """
        if not any(layer.normalises for layer in self.trained_layers().values()):
            return
        self.train()
        for number, batch in enumerate(batches, start=1):
            for layer in self.trained_layers().values():
                layer.momentum = 1.0 / number
            self(batch)
        for layer in self.trained_layers().values():
            layer.momentum = NORM_MOMENTUM

    def keep_positive(self) -> None:
        """Undo steps of the optimizer that took a step size too near to zero."""
        for steps in self.all_steps():
            steps.keep_positive()

    def export(self) -> None:
        """Let the integer network use what was trained for the selected allocation."""
        for name, layer in self.trained_layers().items():
            for bits, width in layer.export().items():
                self.network.use(name, bits, width)
        for number, store in enumerate(self.stores):
            assert isinstance(store, TrainedStore)
            self.network.use_stored(number, store.scale())


def _straight_through(
    product: QuantizedProduct, precision: Precision, left: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    """A product of rounded activations whose gradient is that of the activations; its steps stay as calibrated."""
    rounded = []
    for operand, values, bits in ((0, left, precision.activation_bits), (1, right, precision.weight_bits)):
        rounded.append(values + (product.rounded(values.detach(), operand, bits) - values).detach())
    outputs: torch.Tensor = product.product(*rounded)
    return outputs
