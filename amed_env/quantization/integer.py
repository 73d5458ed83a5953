"""Exact integer evaluation: the network of 8-bit integers that a device would run.

A group (`quantization.graph`) is one call of an integer kernel (`quantization.kernels`); what has no integer form is
computed in float on the very values that the codes stand for. The float fake-quantized network
(`quantization.network`) computes the same: only values that lie within float32's rounding error of the middle between
two codes may come out differently.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from amed_env.problem.allocation import BitAllocation
from amed_env.quantization.codes import WIDEST, Codes, Format, quantize
from amed_env.quantization.finiteness import check_finite
from amed_env.quantization.graph import NetworkGraph, compute_node
from amed_env.quantization.kernels import LayerKernel, Requantizer
from amed_env.quantization.layers import STORED_BITS, QuantizedLayer, StoredTensor, channels_last
from amed_env.quantization.products import QuantizedProduct
from amed_env.quantization.reuse import ResultMemory
from amed_env.tracing.groups import (
    Group,
    asks_shape,
    effective_readers,
    is_padding,
    passes_values,
    takes_maximum,
)
from amed_env.tracing.shapes import shape_of

logger = logging.getLogger(__name__)

Value = Codes | torch.Tensor


@dataclass(frozen=True)
class Step:
    """One operation, and the earlier ones whose results it needs.

    Attributes:
        node: The node whose result it makes.
        number: Its place.
        needs: The nodes whose results it needs.
        group: The group that it is, or None.
        layer: The layer that it is without a group: an embedding, or a product of activations.
        passes: Whether it only moves values.
    """

    node: fx.Node
    number: int
    needs: tuple[fx.Node, ...]
    group: Group | None
    layer: QuantizedLayer | QuantizedProduct | None
    passes: bool


@dataclass
class Plan:
    """How the network runs under one allocation.

    Attributes:
        allocation: The allocation.
        formats: What each step returns: codes of a format, or float values (None).
        keys: A number that stands for everything that led to a step's result, but the batch.
    """

    allocation: BitAllocation
    formats: dict[fx.Node, Format | None] = field(default_factory=dict)
    keys: dict[fx.Node, int] = field(default_factory=dict)


class IntegerEngine:
    """Runs a network on integers.

    Args:
        graph: The network.
        layers: Its layers by name, prepared for every width that is asked for.

    Attributes:
        in_float: Layers without an integer kernel, with the reason; they are computed in float.
        steps: What is done, in order.
        groups: Layers with what is computed on their accumulators, by their last node.
    """

    def __init__(self, graph: NetworkGraph, layers: Mapping[str, QuantizedLayer | QuantizedProduct]) -> None:
        self._graph, self.groups = graph, graph.groups
        grouped = {group.layer for group in graph.groups.values()}
        self._layers = {n: layer for n, layer in layers.items() if isinstance(layer, QuantizedLayer) and n in grouped}
        self._others = {name: layer for name, layer in layers.items() if name not in grouped}
        self.in_float: dict[str, str] = {}
        for name, other in self._others.items():
            if isinstance(other, QuantizedProduct):
                self._give_up(name, "torch has no integer kernel for a product of two activations")
        self._kernels: dict[str, LayerKernel] = {}
        for name, layer in self._layers.items():
            try:
                self._kernels[name] = LayerKernel(layer.layer)
            except NotImplementedError as error:
                self._give_up(name, str(error))
        self._requantize = Requantizer()
        self._ids: dict[Hashable, int] = {}
        self.steps = self._find_steps()
        self._output = next(step.node for step in reversed(self.steps) if step.node.op == "output")
        self._last_use = {need: step.number for step in self.steps for need in step.needs}

    def _give_up(self, name: str, reason: str) -> None:
        logger.info("layer %s has no integer kernel (%s); it is computed in float", name, reason)
        self.in_float[name] = reason

    @staticmethod
    def runs(allocation: BitAllocation) -> bool:
        """Whether all widths are integers of at most 8 bits."""
        return all(max(precision) <= WIDEST for precision in allocation.values())

    def _find_steps(self) -> list[Step]:
        """Groups become one step, and results that are stored are the steps that make them."""
        inside = {
            node
            for group in self._graph.groups.values()
            for node in (group.call, group.addition, group.output)
            if node is not None and node is not group.output
        }
        steps: list[Step] = []
        for node in self._graph.module.graph.nodes:
            if node in inside or self._is_stored(node):
                continue
            group = self._graph.groups.get(node)
            if group is None:
                needs = tuple(self.source(argument) for argument in node.all_input_nodes)
            else:
                read = group.call.all_input_nodes[0]
                needs = tuple(self.source(n) for n in (read, group.addend) if n is not None)
            layer = self._others.get(str(node.target)) if node.op == "call_module" else None
            passes = group is None and passes_values(node)
            steps.append(Step(node, len(steps), needs, group, layer, passes))
        return steps

    def _is_stored(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self._graph.module.get_submodule(str(node.target)), StoredTensor)

    def source(self, node: fx.Node) -> fx.Node:
        """The step whose result a node is."""
        return node.all_input_nodes[0] if self._is_stored(node) else node

    def plan(self, allocation: BitAllocation) -> Plan:
        """Decide what every step returns under an allocation whose layers are prepared."""
        plan = Plan(allocation)
        for step in self.steps:
            written = self._format_of(step, plan)
            plan.formats[step.node] = written
            settings: tuple[Hashable, ...] = ()
            if step.group is not None:
                precision = allocation[step.group.layer]
                settings = (*precision, written)
            elif step.layer is not None:
                settings = tuple(allocation[step.layer.name])
            # What a step returns follows from its settings and from what it reads: equal keys are equal results, so
            # that allocations which share their first layers share these steps.
            key = (step.number, *settings, *(plan.keys[need] for need in step.needs))
            plan.keys[step.node] = self._ids.setdefault(key, len(self._ids))
        return plan

    def _format_of(self, step: Step, plan: Plan) -> Format | None:
        if step.group is not None:
            return self._written_format(step.group, plan.allocation)
        if step.passes:
            read = {plan.formats[need] for need in step.needs if need in plan.formats and shape_of(need) is not None}
            return read.pop() if len(read) == 1 else None
        return None

    def _written_format(self, group: Group, allocation: BitAllocation) -> Format | None:
        for user in group.output.users:
            if self._is_stored(user):
                stored = self._graph.module.get_submodule(str(user.target))
                assert isinstance(stored, StoredTensor)
                return Format.of(stored.scale, STORED_BITS, stored.statistics.unsigned)
        readers = list(effective_readers(group.output))
        if len(readers) == 1 and readers[0].op == "call_module":
            reader = self._graph.module.get_submodule(str(readers[0].target))
            if isinstance(reader, QuantizedLayer) and not reader.reads_indices:
                return self.read_format(reader, allocation)
        return None

    def read_format(self, layer: QuantizedLayer, allocation: BitAllocation) -> Format:
        """What a layer reads."""
        bits = allocation[layer.name].activation_bits
        return Format.of(layer.prepared[bits].activation_scale, bits, layer.statistics.unsigned)

    @torch.no_grad()
    def __call__(
        self, inputs: tuple[torch.Tensor, ...], plan: Plan, memory: ResultMemory, batch: Hashable | None = None
    ) -> torch.Tensor:
        """The network's output, float32, for one batch.

        Args:
            inputs: Float tensors (N, …).
            plan: What to run.
            memory: Results of earlier runs.
            batch: A name of the batch if the same one comes again; None keeps nothing.
        """
        values: dict[fx.Node, Value] = {}
        missing = self._missing_steps(plan, memory, batch, values)
        self._run_steps(missing, inputs, plan, values, memory, batch)
        result = values[self._output]
        assert isinstance(result, torch.Tensor)
        return result

    def _run_steps(
        self,
        missing: set[fx.Node],
        inputs: tuple[torch.Tensor, ...],
        plan: Plan,
        values: dict[fx.Node, Value],
        memory: ResultMemory,
        batch: Hashable | None,
    ) -> None:
        """Run what is missing; results go into `values`, and those worth it into the memory."""
        given = iter(inputs)
        for step in self.steps:
            value: Value
            if step.node.op == "placeholder":
                value = next(given)
                if step.node in missing:
                    values[step.node] = channels_last(value)
                continue
            if step.node not in missing:
                continue
            value = self._run(step, plan, values)
            values[step.node] = value
            if batch is not None and step.group is not None:
                memory.keep(plan.keys[step.node], batch, step.number, _tensor_of(value))
            for need in step.needs:  # memory that is free again is memory that is in the processor's cache
                if self._last_use[need] == step.number:
                    values.pop(need, None)

    def _missing_steps(
        self, plan: Plan, memory: ResultMemory, batch: Hashable | None, values: dict[fx.Node, Value]
    ) -> set[fx.Node]:
        """The steps that must run; results that are known already go into `values`."""
        missing: set[fx.Node] = set()
        wanted = {self._output}
        for step in reversed(self.steps):
            if step.node not in wanted:
                continue
            if batch is not None and step.group is not None:
                known = memory.find(plan.keys[step.node], batch)
                if known is not None:
                    written = plan.formats[step.node]
                    values[step.node] = known if written is None else Codes(known, written)
                    continue
            missing.add(step.node)
            wanted.update(step.needs)
        return missing

    def _run(self, step: Step, plan: Plan, values: dict[fx.Node, Value]) -> Value:
        if step.group is not None:
            return self._run_group(step.group, plan, values)
        written = plan.formats[step.node]
        if written is not None:
            return Codes(self._run_on_codes(step.node, written, values), written)
        shape_only = asks_shape(step.node)

        def argument(node: fx.Node) -> Any:
            value = values[self.source(node)]
            if isinstance(value, Codes):
                return value.tensor if shape_only else value.values()
            return value

        if step.layer is not None:
            operands = [argument(node) for node in step.node.args]  # type: ignore[arg-type]
            return step.layer.at(plan.allocation[step.layer.name], *operands)
        return compute_node(self._graph.module, step.node, argument)  # type: ignore[no-any-return]

    def _run_on_codes(self, node: fx.Node, written: Format, values: dict[fx.Node, Value]) -> torch.Tensor:
        """An operation that only moves values, or takes the largest, on the codes themselves."""

        def argument(source: fx.Node) -> Any:
            value = values[self.source(source)]
            return value.tensor if isinstance(value, Codes) else value

        if is_padding(node):
            padded: torch.Tensor = F.pad(argument(node.all_input_nodes[0]), node.args[1], value=written.zero_point)  # type: ignore[arg-type]
            return padded
        if takes_maximum(node):  # torch's own kernel for uint8 refuses larger tensors
            return compute_node(self._graph.module, node, lambda source: argument(source).float()).to(torch.uint8)  # type: ignore[no-any-return]
        return compute_node(self._graph.module, node, argument)  # type: ignore[no-any-return]

    def _run_group(self, group: Group, plan: Plan, values: dict[fx.Node, Value]) -> Value:
        layer, precision = self._layers[group.layer], plan.allocation[group.layer]
        source = values[self.source(group.call.all_input_nodes[0])]
        read_format = self.read_format(layer, plan.allocation)
        if isinstance(source, Codes):
            read = self._requantize(source, read_format)
        else:
            read = _quantize_finite(source, read_format, group.layer)
        addend = None if group.addend is None else values[self.source(group.addend)]
        written = plan.formats[group.output]
        # The kernel adds codes only: floats are added to the accumulators afterwards, before anything is rounded.
        if written is not None and not isinstance(addend, torch.Tensor):
            codes = self._by_kernel(layer, read, precision.weight_bits, written, group.low, group.high, addend)
            if codes is not None:
                return Codes(codes, written)
        result = self._by_kernel(layer, read, precision.weight_bits, None)
        if result is None:
            result = layer.on_integers(read.integers(), read.format.scale, precision.weight_bits)
        if addend is not None:
            result = result.add_(addend.values() if isinstance(addend, Codes) else addend)
        if written is not None:
            return _quantize_finite(result, written, group.layer, group.low, group.high)
        return result.clamp_(group.low, group.high) if (group.low, group.high) != _NO_LIMITS else result

    def _by_kernel(
        self, layer: QuantizedLayer, read: Codes, weight_bits: int, written: Format | None, *clamped_and_added: Any
    ) -> torch.Tensor | None:
        """What the layer's kernel returns, or None if it has none for this input."""
        kernel = self._kernels.get(layer.name)
        if kernel is None:
            return None
        prepared = layer.prepared_for(weight_bits, read.format.scale)
        try:
            result: torch.Tensor = kernel(read, prepared, weight_bits, written, *clamped_and_added)
            return result
        except RuntimeError as error:
            self._give_up(layer.name, str(error).strip().splitlines()[0])
            del self._kernels[layer.name]
            return None


_NO_LIMITS = (float("-inf"), float("inf"))


def _tensor_of(value: Value) -> torch.Tensor:
    return value.tensor if isinstance(value, Codes) else value


def _quantize_finite(
    values: torch.Tensor, written: Format, layer: str, low: float = -math.inf, high: float = math.inf
) -> Codes:
    """Codes of float values, after checking them: codes know no NaN, so it would be lost.

    Raises:
        NonFiniteError: If a value is NaN or infinite; the layer is named.
    """
    check_finite(values, layer)
    return quantize(values, written, low, high)
