"""A network whose layers can be switched to any width: on integers where it can, in float everywhere.

Weights: symmetric, one scale an output channel. Activations: one scale a tensor, unsigned where calibration never saw a
negative value, signed otherwise. All scales come from one calibration pass and are prepared once per (layer, width).
Results that more than one reader needs are kept at 8 bits (`quantization.graph`), as long as no layer reads floats.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import fx, nn

from amed_env.errors import DataError, NonFiniteError
from amed_env.problem.allocation import BitAllocation
from amed_env.quantization.equalization import equalize
from amed_env.quantization.float_run import FloatProgram
from amed_env.quantization.graph import find_graph
from amed_env.quantization.integer import IntegerEngine, Plan
from amed_env.quantization.kernels import integer_kernels_are_exact
from amed_env.quantization.layers import PreparedWidth, Quantizable, QuantizedLayer, StoredTensor, channels_last
from amed_env.quantization.products import QuantizedProduct
from amed_env.quantization.reuse import ResultMemory
from amed_env.quantization.together import run_together, stacked_settings
from amed_env.tracing.groups import Group
from amed_env.tracing.lowering import EmbeddingTable, Product, QuantizableModule
from amed_env.tracing.traced_network import TracedNetwork

logger = logging.getLogger(__name__)

Engine = Literal["auto", "float"]
Bias = Literal["float", "int32"]
# One batch at a time: neighbours in a sorted list share their first layers, and only these results are kept.
SWEEP_MIB = 1024
"""Memory of a sweep for results of one batch."""

# The activations of all of them are in memory at once.
TOGETHER = 16
"""Allocations that run in one pass on a GPU."""


class QuantizedNetwork:
    """A traced network whose layers can be switched to any precision.

    Args:
        traced: The network; it is copied.
        calibration: Float tensor (N, …) of samples that were not set apart for search or test.
        batch_size: Samples of one forward pass.
        reuse_mib: Memory in MiB for results of layers that the next allocation may share; 0 for none.
        engine: `auto` runs on integers where it can, `float` always on fake-quantized floats.
        device: Where floats are computed (`cpu`, `cuda`); integers are computed on the CPU only.
        equalize_layers: Whether channels are scaled for equal ranges first (`quantization.equalization`).
        bias: `int32` rounds biases as integer-only devices do, where a layer computes on integers.

    Attributes:
        why_float: Why nothing runs on integers, or None if allocations of at most 8 bits do.

    Raises:
        DataError: If there is no calibration sample.
        NonFiniteError: If a layer reads NaN or infinity during calibration, or its weights have them; it is named.
    """

    def __init__(
        self,
        traced: TracedNetwork,
        calibration: torch.Tensor,
        batch_size: int = 128,
        reuse_mib: int = 0,
        engine: Engine = "auto",
        device: str = "cpu",
        equalize_layers: bool = False,
        bias: Bias = "float",
    ) -> None:
        if calibration.shape[0] == 0:
            raise DataError("calibration needs at least one sample; it has none.")
        self.workload = traced.workload
        self.fixed_batch = traced.batch_size
        self.batch_size, self.device = traced.batch_size or batch_size, torch.device(device)
        self.memory, self.bias = ResultMemory(reuse_mib), bias
        self._source = _Source(traced, self.filled(calibration[: traced.batch_size or 2]), engine, equalize_layers)
        self._build()
        self._calibrate(calibration)

    def _build(self) -> None:
        """Make the modules; they are not calibrated yet."""
        source = self._source
        module = copy.deepcopy(source.traced.module)
        layers = {name: module.get_submodule(name) for name in self.workload.layer_names}
        weighted = {n: cast(Quantizable, layer) for n, layer in layers.items() if not isinstance(layer, Product)}
        for name, layer in weighted.items():
            if not torch.isfinite(layer.weight).all():
                raise NonFiniteError(f"layer {name!r} has NaN or infinite weights; repair or retrain the network.")
        # Embeddings and products of activations have no accumulators on which a device would go on computing.
        grouped: dict[str, QuantizableModule] = {
            name: layer for name, layer in weighted.items() if not isinstance(layer, EmbeddingTable)
        }
        self._graph = find_graph(module, dict(grouped), source.example)
        if source.equalize:
            equalize(self._graph, grouped, self.workload.sharing)
        self._layers: dict[str, QuantizedLayer | QuantizedProduct] = {
            name: QuantizedProduct(layer, name) if isinstance(layer, Product) else QuantizedLayer(weighted[name], name)
            for name, layer in layers.items()
        }
        for quantized in self._layers.values():
            if isinstance(quantized, QuantizedLayer):
                quantized.integer_bias = self.bias == "int32"
        self.module: fx.GraphModule = self._graph.module
        for name, quantized in self._layers.items():
            self.module.set_submodule(name, quantized)
        self.stored = [child for child in self.module.modules() if isinstance(child, StoredTensor)]
        self._program = FloatProgram(self._graph, self._layers)
        self.module.to(self.device)
        for parameter in self.module.parameters():
            parameter.data = channels_last(parameter.data)
        self.why_float = self._reason_for_float(source.engine)
        self._integer: IntegerEngine | None = None
        self._plan: Plan | None = None

    def _reason_for_float(self, engine: Engine) -> str | None:
        if engine == "float":
            return "float was asked for"
        if self.device.type != "cpu":
            return f"it runs on {self.device}"
        if not integer_kernels_are_exact():
            return "this machine has no exact integer kernels"
        return None

    def _calibrate(self, calibration: torch.Tensor) -> None:
        recording: list[QuantizedLayer | QuantizedProduct | StoredTensor] = [*self._layers.values(), *self.stored]
        calibration = self.whole_batches(calibration)  # copies that fill a batch up would count in the ranges
        # One pass of the float network for all widths: ranges depend on the values alone.
        for batch in calibration.split(self.batch_size):
            for part in recording:
                part.recording_share = batch.shape[0] / calibration.shape[0]
            self._run_module(self.filled(batch))
        for part in recording:
            part.recording_share = None
        for name, layer in self._layers.items():
            if not all(statistics.finite for statistics in layer.operands):
                raise NonFiniteError(f"layer {name!r} reads NaN or infinite activations on the calibration samples.")

    def filled(self, inputs: torch.Tensor) -> torch.Tensor:
        """A batch of the size that the network takes, if it takes one only: the last sample stands for missing ones."""
        if self.fixed_batch is None or len(inputs) == self.fixed_batch:
            return inputs
        if len(inputs) > self.fixed_batch:
            raise DataError(
                f"network {self.workload.name!r} takes batches of {self.fixed_batch}, not of {len(inputs)}."
            )
        return torch.cat([inputs, inputs[-1:].expand(self.fixed_batch - len(inputs), *inputs.shape[1:])])

    def whole_batches(self, inputs: torch.Tensor) -> torch.Tensor:
        """The samples that make whole batches, for passes that cannot be padded: all, if any batch size will do."""
        if self.fixed_batch is None:
            return inputs
        count = len(inputs) // self.fixed_batch * self.fixed_batch
        return inputs[:count] if count else self.filled(inputs)

    @property
    def layers(self) -> Mapping[str, QuantizedLayer | QuantizedProduct]:
        """The quantized layers by name, in network order."""
        return self._layers

    @property
    def example(self) -> torch.Tensor:
        """Float tensor (N, …) that the network accepts."""
        return self._source.example

    @property
    def weighted(self) -> Mapping[str, QuantizedLayer]:
        """Those that have weights."""
        return {name: layer for name, layer in self._layers.items() if isinstance(layer, QuantizedLayer)}

    @property
    def in_float(self) -> dict[str, str]:
        """Layers that are computed in float although their widths are integers, with the reason."""
        if self.why_float is not None:
            return dict.fromkeys(self._layers, self.why_float)
        return dict(self._engine().in_float)

    def prepare(self, widths: Iterable[int]) -> None:
        """Prepare all layers at some widths ahead of time."""
        for bits in widths:
            for layer in self._layers.values():
                layer.prepare(bits)

    def prepare_all(self, allocation: BitAllocation) -> None:
        """Prepare every layer at the widths of an allocation."""
        for name, precision in allocation.items():
            for bits in precision:
                self._layers[name].prepare(bits)

    def use(self, name: str, bits: int, prepared: PreparedWidth) -> None:
        """Let a layer use weights and scales that were found elsewhere at a width."""
        self.weighted[name].replace(bits, prepared)
        self._plan = None
        self.memory.clear()

    def use_stored(self, number: int, scale: float) -> None:
        """Let a result that is kept at 8 bits use a scale that was found elsewhere.

        Args:
            number: Its position in `stored`.
            scale: Value of one step, with 16 significant bits (`quantization.statistics.short_scale`).
        """
        self.stored[number].use(scale)
        self._plan = None
        self.memory.clear()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Whatever is used in place of the weights and scales of now, while this lasts, is forgotten afterwards."""
        before = {name: dict(layer.prepared) for name, layer in self.weighted.items()}
        scales = [stored.scale for stored in self.stored]
        try:
            yield
        finally:
            for name, layer in self.weighted.items():
                layer.replace_all(before[name])
            for stored, scale in zip(self.stored, scales, strict=True):
                stored.use(scale)
            self._plan = None
            self.memory.clear()

    def select(self, allocation: BitAllocation) -> None:
        """Switch every layer to its precision in `allocation`.

        Raises:
            AllocationError: If the allocation does not have exactly this network's layers.
            UnsupportedPrecisionError: If a width cannot be evaluated.
        """
        allocation = allocation.require_layers(self.workload.layer_names, f"network {self.workload.name!r}")
        allocation = self.as_stored(allocation)
        if self._plan is not None and self._plan.allocation == allocation:
            self.memory.start_pass()
            return
        self._plan = self._plan_of(allocation)
        for name, precision in allocation.items():
            self._layers[name].select(*precision)
        for stored in self.stored:
            stored.active = IntegerEngine.runs(allocation)
        self.memory.start_pass()

    def as_stored(self, allocation: BitAllocation) -> BitAllocation:
        """The allocation with the widths at which shared weights are read.

        They are stored once, at the width of the first layer that has them: a wider reader finds no more bits than
        that, a narrower one rounds as it reads.
        """
        narrowed = {}
        for layer in self.workload:
            if layer.shares_weights_with:
                own, stored = allocation[layer.name], allocation[layer.shares_weights_with].weight_bits
                narrowed[layer.name] = own._replace(weight_bits=min(own.weight_bits, stored))
        return BitAllocation({**allocation, **narrowed}) if narrowed else allocation

    def _plan_of(self, allocation: BitAllocation) -> Plan | None:
        """How an allocation runs on integers, or None if it runs in float."""
        allocation = self.as_stored(allocation)
        if self.why_float is not None or not IntegerEngine.runs(allocation):
            return None
        self.prepare_all(allocation)
        return self._engine().plan(allocation)

    def sweep(
        self, allocations: Sequence[BitAllocation], batches: Iterable[torch.Tensor]
    ) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Class scores of many allocations, batch by batch, so that neighbours in the list share what they can.

        Args:
            allocations: Best in an order in which neighbours share their first layers.
            batches: Float tensors (N, …).

        Yields:
            Number of the batch, number of the allocation, float32 scores (N, classes).
        """
        plans = [self._plan_of(allocation) for allocation in allocations]
        if self.device.type != "cpu" and all(map(IntegerEngine.runs, allocations)):
            yield from self._sweep_together(allocations, batches)
            return
        memory = ResultMemory(SWEEP_MIB)
        for number, batch in enumerate(batches):
            count, inputs = len(batch), self.filled(batch)
            for position, (allocation, plan) in enumerate(zip(allocations, plans, strict=True)):
                memory.start_pass()
                if plan is not None:
                    outputs = self._engine()((inputs,), plan, memory, "batch")
                else:
                    self.select(allocation)
                    outputs = self._run_module(inputs, memory, "batch")
                yield number, position, outputs[:count]
            memory.clear()

    def _sweep_together(
        self, allocations: Sequence[BitAllocation], batches: Iterable[torch.Tensor]
    ) -> Iterator[tuple[int, int, torch.Tensor]]:
        for number, inputs in enumerate(batches):
            for start in range(0, len(allocations), TOGETHER):
                some = allocations[start : start + TOGETHER]
                for offset, scores in enumerate(self.run_together(some, inputs)):
                    yield number, start + offset, scores

    def run_together(self, allocations: Sequence[BitAllocation], inputs: torch.Tensor) -> torch.Tensor:
        """Class scores of one batch under several allocations, in one pass of the fake-quantized float network.

        Args:
            allocations: Of integers of at most 8 bits.
            inputs: Float tensor (N, …).

        Returns:
            float32 (allocations, N, classes), equal to what one after the other gives.

        Raises:
            NonFiniteError: If a layer meets activations that are NaN or infinite; it is named.
        """
        allocations = [self.as_stored(allocation) for allocation in allocations]
        for allocation in allocations:
            self.prepare_all(allocation)
        for stored in self.stored:
            stored.active = True
        settings = stacked_settings(self._layers, allocations)
        try:
            return run_together(self.module, self._layers, settings, inputs.to(self.device))
        except (RuntimeError, NonFiniteError) as error:
            logger.info("the network runs one allocation at a time: %s", str(error).splitlines()[0])
            selected = []
            for allocation in allocations:
                self.select(allocation)
                selected.append(self.run_in_float(inputs))
            return torch.stack(selected)

    def _engine(self) -> IntegerEngine:
        if self._integer is None:
            self._integer = IntegerEngine(self._graph, self._layers)
        return self._integer

    @property
    def groups(self) -> Mapping[fx.Node, Group]:
        """Layers with what is computed on their sums, by their last node in `module`."""
        return self._graph.groups

    @property
    def runs_on_integers(self) -> bool:
        """Whether the selected allocation does."""
        return self._plan is not None

    def float_module(self) -> nn.Module:
        """A copy of the network as plain float layers in channels-last layout."""
        module = copy.deepcopy(self._source.traced.module)
        for parameter in module.parameters():
            parameter.data = channels_last(parameter.data)
        return module

    def float_weights(self) -> list[torch.Tensor]:
        """The float weights of every layer, in order; of a product of activations a sample of its second operand."""
        return [
            layer.layer.weight.detach() if isinstance(layer, QuantizedLayer) else layer.operands[1].sample()
            for layer in self._layers.values()
        ]

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor, batch: Hashable | None = None) -> torch.Tensor:
        """Class scores, float32 of shape (N, classes), of one batch.

        Args:
            inputs: Float tensor (N, …).
            batch: A name of the batch, if the same one will come again under other allocations.
        """
        if not self.memory.limit_mib:
            batch = None
        count, inputs = len(inputs), self.filled(inputs)
        if self._plan is not None:
            return self._engine()((inputs,), self._plan, self.memory, batch)[:count]
        return self._run_module(inputs, self.memory, batch)[:count]

    def run_in_float(self, inputs: torch.Tensor) -> torch.Tensor:
        """Class scores of the fake-quantized float network at the selected precisions; nothing is kept or reused."""
        return self._run_module(self.filled(inputs))[: len(inputs)]

    @torch.no_grad()
    def _run_module(
        self, inputs: torch.Tensor, memory: ResultMemory | None = None, batch: Hashable | None = None
    ) -> torch.Tensor:
        values = channels_last(inputs.to(self.device))
        if memory is None or batch is None:
            outputs: torch.Tensor = self.module(values)
            return outputs
        return self._program(values, memory, batch)

    def __getstate__(self) -> dict[str, Any]:
        # Graphs and the kernels' packed weights cannot be pickled; both are made again from what can.
        made = ("_program", "_graph", "_layers", "module", "stored", "why_float", "_integer", "_plan")
        state = {name: value for name, value in self.__dict__.items() if name not in made}
        stored = [(stored.statistics, stored.scale) for stored in self.stored]
        state["calibrated"] = [layer.operands for layer in self._layers.values()], stored
        state["prepared"] = {name: dict(layer.prepared) for name, layer in self._layers.items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        of_layers, of_stored = state.pop("calibrated")
        prepared = state.pop("prepared")
        self.__dict__.update(state)
        self._build()
        for layer, operands in zip(self._layers.values(), of_layers, strict=True):
            layer.operands = operands
            layer.prepared = prepared[layer.name]
        for stored, (statistics, scale) in zip(self.stored, of_stored, strict=True):
            stored.statistics = statistics
            stored.use(scale)


@dataclass(frozen=True)
class _Source:
    """What a network is built from."""

    traced: TracedNetwork
    example: torch.Tensor
    engine: Engine
    equalize: bool
