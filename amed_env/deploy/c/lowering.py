"""A network under an allocation as steps that the C kernels have, with the formats of what they read and write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from amed_env.deploy.c.moves import Loops, moved
from amed_env.deploy.program import Program
from amed_env.errors import ExportError
from amed_env.problem.memory_plan import MemoryPlan, buffers_under, plan_memory
from amed_env.quantization.codes import Format
from amed_env.quantization.layers import StoredTensor
from amed_env.quantization.network import QuantizedNetwork
from amed_env.tracing.execution.sequence import execution_of, positions
from amed_env.tracing.execution.steps import Codes, Execution, MoveStep, OtherStep, Tensor, results_of


@dataclass(frozen=True)
class Lowered:
    """A network as steps.

    Attributes:
        program: The network under its allocation.
        execution: Its steps; it has one input and one output.
        formats: What codes stand for.
        loops: Of every step that only moves values, by its number: operand and loops.
        plan: Where results lie.
    """

    program: Program
    execution: Execution
    formats: Mapping[Codes, Format]
    loops: Mapping[int, Sequence[tuple[int, Loops]]]
    plan: MemoryPlan

    @property
    def input(self) -> Tensor:
        """What the caller gives, float, as torch has it."""
        return self.execution.inputs[0]

    @property
    def output(self) -> Tensor:
        """What the caller gets, float, as torch has it."""
        return self.execution.outputs[0]

    def format_of(self, tensor: Tensor) -> Format | None:
        """What a tensor's codes stand for; None for floats."""
        return None if tensor.codes is None else self.formats[tensor.codes]


def lower(network: QuantizedNetwork, program: Program) -> Lowered:
    """The steps of a network under an allocation.

    Raises:
        ExportError: If something in it has no form in C; it is named.
    """
    wide = [name for name, precision in program.allocation.items() if max(precision) > 8]
    if wide:
        raise ExportError(
            f"C is exported for integers of at most 8 bits; {wide[0]!r} has {program.allocation[wide[0]]}"
            f"{_and_more(wide)}. Give every layer an integer width, or export to onnx, which keeps layers in float."
        )
    if program.products:
        raise ExportError(
            f"C has no product of two activations ({', '.join(map(repr, program.products))}); export to onnx."
        )
    if network.fixed_batch not in (None, 1):
        raise ExportError(
            f"network {program.name!r} takes batches of {network.fixed_batch} only, and C runs one sample; let its "
            "forward take any number of samples."
        )
    stored, formats = _stored(network, program)
    modules = {name: layer.module for name, layer in program.layers.items()}
    execution = execution_of(
        network.module,
        {name: module for name, module in modules.items() if isinstance(module, nn.Module)},
        network.groups,
        stored,
        program.example[:1],
        skipped=lambda node: _is_stored(network, node),
    )
    if len(execution.inputs) != 1:
        raise ExportError("C takes one input; join the network's inputs to one tensor.")
    if len(execution.outputs) != 1:
        raise ExportError("C returns one tensor; let the network return one, or give `outputs=`.")
    loops = {}
    for number, step in enumerate(execution.steps):
        if isinstance(step, OtherStep):
            raise _refusal(step.what)
        if isinstance(step, MoveStep):
            loops[number] = _loops(step)
    plan = plan_memory(buffers_under(results_of(execution), program.allocation))
    return Lowered(program, execution, formats, loops, plan)


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _refusal(what: str) -> ExportError:
    return ExportError(
        f"C cannot hold {what}. It has convolutions in one and two dimensions, linear layers, poolings, additions, "
        "clamping activations and what moves values; export to onnx, which keeps the rest in float."
    )


def _is_stored(network: QuantizedNetwork, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(network.module.get_submodule(str(node.target)), StoredTensor)


def _stored(network: QuantizedNetwork, program: Program) -> tuple[list[fx.Node], dict[Codes, Format]]:
    """The results that several readers share, and what all codes stand for."""
    formats = {
        Codes(name, False): layer.read.format for name, layer in program.layers.items() if layer.read is not None
    }
    stored = []
    for node in network.module.graph.nodes:
        if _is_stored(network, node):
            output = node.all_input_nodes[0]
            stored.append(output)
            formats[Codes(network.groups[output].layer, True)] = program.stored[str(node.target)].format
    return stored, formats


def _loops(step: MoveStep) -> list[tuple[int, Loops]]:
    sources = [positions(source.shape, source.order) for source in step.sources]
    loops = moved(sources, step.target.order, step.operation)
    if loops is None:
        raise _refusal(f"{step.what}, which moves values in no regular way")
    return loops


def is_padded(step: MoveStep, loops: Sequence[tuple[int, Loops]]) -> bool:
    """Whether places of the result are zero that nothing moves to."""
    return sum(math.prod(part.counts) for _, part in loops) < step.target.elements
