"""From a torch module and an example input to a `Workload`: which layers run, in which order, with which shapes.

What runs is captured by `torch.export` (`capture`), its products with constant weights become layers (`lowering`), and
batch norms that alone read a layer are folded into it (`norms`). The result must compute what the network itself does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from amed_env.errors import AmedError, NetworkError
from amed_env.problem.workload import Layer, Workload
from amed_env.support.text import first_few
from amed_env.tracing.capture import HALF_TYPES, PARAMETERS, capture, constant_of, module_path, quiet
from amed_env.tracing.comparison import compare, difference_in_float64
from amed_env.tracing.execution.memory import memory_of
from amed_env.tracing.execution.operations import operations_of
from amed_env.tracing.finite import check_finite_weights
from amed_env.tracing.kept_programs import drop, find, keep, place_of
from amed_env.tracing.lowering import PATH, QUANTIZABLE, Lowered, lower
from amed_env.tracing.norms import fold_batch_norms
from amed_env.tracing.original import Call, Outputs, answer, suited_to
from amed_env.tracing.packing import InputForm, Inputs, of_size, packed_inputs
from amed_env.tracing.programs import Given, given_network
from amed_env.tracing.shapes import LayerCall, known_shape, layer_of_calls, record_shapes, shape_of
from amed_env.tracing.traced_network import KeptFloat, TracedNetwork

logger = logging.getLogger(__name__)
aten = torch.ops.aten

Network = nn.Module | ExportedProgram | str | Path
"""A module, an exported program, or the path of its `.pt2` file."""

RELATIVE_TOLERANCE = 1e-4
"""Largest difference from the untouched network, as a part of the largest output: sums in another order differ less."""
FIXED_BATCH, FIXED_ELEMENTS = 64, 2**20
"""Samples of a batch of a program that takes one size only, if the network itself takes any: enough to run fast. Fewer
where their inputs have more elements than that together, as memory must hold all results of such a batch."""
_HALF_TOLERANCE = 3e-2
"""The same where the untouched network computes in half precision, which rounds to 8 or 11 bits."""
_PRODUCTS: tuple[Any, ...] = (aten.mm.default, aten.bmm.default, aten.matmul.default, aten.baddbmm.default)


@torch.no_grad()
def trace(
    network: Network,
    example_input: Inputs | None = None,
    name: str | None = None,
    samples: torch.Tensor | None = None,
    outputs: Outputs | None = None,
) -> TracedNetwork:
    """Find the quantizable layers of a network and their shapes.

    Args:
        network: Any module that `torch.export` can follow, an exported program, or the path of its `.pt2` file; it is
            not changed.
        example_input: What the network takes: a tensor (N, …), a tuple of arguments, a dict of keyword arguments, or a
            nested tree of these; costs are per sample. The traced module takes all tensors of it packed into one
            (`packing.packed_inputs`). By default that with which a program was exported.
        name: Name of the workload; by default the name of the class, or of the file.
        samples: Further inputs, packed likewise, on which the result is compared with the network.
        outputs: Picks what counts of what the network returns; everything by default.

    Raises:
        NetworkError: If the network cannot be captured or run, has no quantizable layer, answers differently when it is
            called again, or if what was captured computes something else; what is at fault is named.
        NonFiniteError: If a weight, or what the network returns on the example, is NaN or infinite; it is named.
    """
    traced, example = _traced(network, example_input, name, samples, outputs)
    return replace(traced, workload=_with_graph(traced, of_size(example, traced.batch_size or 1)))


def _with_graph(traced: TracedNetwork, sample: torch.Tensor) -> Workload:
    """The workload with its operations, and what they keep in memory."""
    workload = traced.workload
    try:
        operations = operations_of(traced.module, workload, sample)
        return replace(workload, operations=operations, memory=memory_of(traced.module, workload, sample))
    except Exception as error:  # an operation that nobody thought of must not refuse a network that can be quantized
        logger.warning("memory of network %r is not known: %s: %s", workload.name, type(error).__name__, error)
        return workload


def _traced(
    network: Network,
    example_input: Inputs | None,
    name: str | None,
    samples: torch.Tensor | None,
    outputs: Outputs | None,
) -> tuple[TracedNetwork, torch.Tensor]:
    """The traced network, and an example of what it takes."""
    given = given_network(network)
    network, name = given.module, name or given.name
    example, form = _packed_example(given, example_input, name)
    call = Call(suited_to(network, form), outputs)
    check_finite_weights(network, name)
    expected = answer(network, call, example, name)
    place = place_of(network, example, call, name)
    kept = None if place is None else _kept_program(place, network, call, example, expected, samples)
    if kept is not None:
        return kept, example
    program = capture(network, example, call, name, any_batch=given.batch_size is None)
    tolerance = _HALF_TOLERANCE if program.has_half or _uses_half(network) else RELATIVE_TOLERANCE
    plain = _flat_outputs(program.module)
    if program.batch_size is None and not _takes_any_batch(plain, network, call, example, tolerance):
        program = capture(network, example, call, name, any_batch=False)
        plain = _flat_outputs(program.module)
    size = min(FIXED_BATCH, FIXED_ELEMENTS // example[0].numel())
    if given.batch_size is None and program.batch_size is not None and program.batch_size < size:
        several = of_size(example, size)
        answers = _outputs_of_batch(network, call, several, expected, tolerance)
        if answers is not None:  # only its capture is of one size, as after `len(x)`: of a size that runs fast then
            example, expected = several, answers
            program = capture(network, example, call, name, any_batch=False)
            plain = _flat_outputs(program.module)
    try:
        compare(plain(example), expected, tolerance, f"what was captured of network {name!r}", None)
    except NetworkError as error:
        raise NetworkError(f"{error}{_padding_hint(network)}") from error
    module = _own_copy(program.module)
    lowered = lower(module, network)
    layers = lowered.layers
    norms = fold_batch_norms(module, layers)
    module = _own_copy(module)
    if not layers:
        raise NetworkError(
            f"network {name!r} has no layer to quantize: no convolution, linear layer, embedding or product runs."
        )
    record_shapes(module, example)
    workload = Workload(name, tuple(_observed(module, lowered, len(example))), _edges(module, set(layers)))
    unquantized = (*_kept(module, network, norms, len(example)), *_idle(network, program.module, layers))
    traced = TracedNetwork(module, workload, unquantized, program.batch_size, program.remarks)
    traced = _compared(traced, network, call, (example, expected), samples, tolerance, plain)
    if place is not None:
        keep(place, traced, {"tolerance": tolerance}, example)
    return traced, example


def _kept_program(
    place: Path,
    network: nn.Module,
    call: Call,
    example: torch.Tensor,
    expected: list[torch.Tensor],
    samples: torch.Tensor | None,
) -> TracedNetwork | None:
    """The network as it was captured before, if there is such a file and it computes what the network does."""
    found = find(place)
    if found is None:
        return None
    traced, facts = found
    try:
        if traced.batch_size not in (None, len(example)):
            example = of_size(example, traced.batch_size)
            expected = answer(network, call, example, traced.workload.name)
        return _compared(traced, network, call, (example, expected), samples, facts["tolerance"], None)
    except Exception as error:  # of whatever type, from an operation in the program
        logger.warning("%s is no longer what the network computes (%s); it is captured again", place, error)
        drop(place)
        return None


def _compared(
    traced: TracedNetwork,
    network: nn.Module,
    call: Call,
    known: tuple[torch.Tensor, list[torch.Tensor]],
    samples: torch.Tensor | None,
    tolerance: float,
    plain: fx.GraphModule | None,
) -> TracedNetwork:
    """The traced network with its largest difference from the untouched one.

    Args:
        traced: The traced network.
        network: The untouched network.
        call: How it is called.
        known: An example, and what the network returns for it.
        samples: Further inputs.
        tolerance: The largest difference that rounding explains.
        plain: The program before anything was folded, to find the first operation that differs.

    Raises:
        NetworkError: If they differ.
    """
    module, name = traced.module, traced.workload.name
    example, expected = known

    def run(inputs: torch.Tensor) -> tuple[fx.GraphModule, fx.GraphModule, torch.Tensor] | None:
        return None if plain is None else (plain, module, inputs)

    folded = f"network {name!r} with its batch norms folded"
    try:
        differences = [compare(module(example), expected, tolerance, folded, run(example))]
    except NetworkError:
        # Deep networks amplify float32's rounding beyond the limit; in float64 only a real difference is left.
        difference = difference_in_float64(network, module, call, example)
        if difference is None or difference > tolerance:
            raise
        differences, tolerance = [difference], 10 * tolerance  # of further samples, in float32
    if samples is not None:
        batch = traced.batch_size or len(samples)
        for part in (of_size(part, batch) for part in samples.split(batch)):
            wanted = answer(network, call, part, name)
            differences.append(compare(module(part), wanted, tolerance, f"network {name!r} as captured", run(part)))
    return replace(traced, difference=max(differences))


def _padding_hint(network: nn.Module) -> str:
    """What to do about torch's encoders, which return zeros at padded positions without gradients only."""
    encoders = [
        path
        for path, child in network.named_modules()
        if isinstance(child, nn.TransformerEncoder) and getattr(child, "use_nested_tensor", False)
    ]
    if not encoders:
        return ""
    return (
        f" With a padding mask {first_few(encoders)} takes nested tensors, which cannot be captured: set its "
        "use_nested_tensor to False, or make it with enable_nested_tensor=False."
    )


def _outputs_of_batch(
    network: nn.Module, call: Call, several: torch.Tensor, expected: list[torch.Tensor], tolerance: float
) -> list[torch.Tensor] | None:
    """What the untouched network returns for the example over and over, or None if that is not what it should be."""
    try:
        outputs = answer(network, call, several, "network")
        compare(
            [found[: len(one)] for found, one in zip(outputs, expected, strict=True)], expected, tolerance, "", None
        )
    except AmedError as error:
        logger.info("the network takes one batch size only (%s)", error)
        return None
    return outputs if all(len(found) == len(several) for found in outputs) else None


def _takes_any_batch(
    program: fx.GraphModule, network: nn.Module, call: Call, example: torch.Tensor, tolerance: float
) -> bool:
    """Whether a program also runs with another number of samples than it was captured with, and computes the same."""
    for batch in (example, example[:1], torch.cat([example, example, example[:1]])):
        try:
            with torch.no_grad(), quiet():
                outputs = program(batch)
            compare(outputs, answer(network, call, batch, "network"), tolerance, "network", None)
        except Exception as error:  # of whatever type, from an operation in the program
            logger.info("the program takes one batch size only (%s)", error)
            return False
    return True


def _packed_example(given: Given, example_input: Inputs | None, name: str) -> tuple[torch.Tensor, InputForm]:
    """The example as one tensor, of the size that an exported program takes, and the form of its inputs."""
    inputs = given.example if example_input is None else example_input
    if inputs is None:
        raise NetworkError(f"network {name!r} needs an example input: a tensor (N, ...), or what else it takes.")
    try:
        example, form = packed_inputs(inputs)
    except ValueError as error:
        raise NetworkError(f"the example input of network {name!r} cannot be used: {error}") from error
    return (example if given.batch_size is None else of_size(example, given.batch_size)), form


def _uses_half(network: nn.Module) -> bool:
    tensors = (*network.parameters(), *network.buffers())
    return any(tensor.dtype in HALF_TYPES for tensor in tensors)


def _flat_outputs(module: fx.GraphModule) -> fx.GraphModule:
    """The same program, called with one tensor, that returns one tensor or a tuple of them."""
    return fx.GraphModule(module, _flat_graph(module))


def _flat_graph(module: fx.GraphModule) -> fx.Graph:
    """A copy of a program's graph whose output is one tensor, or a tuple of them."""
    graph = fx.Graph()
    output = graph.graph_copy(module.graph, {})
    values = output if isinstance(output, tuple | list) else (output,)
    tensors = tuple(value for value in values if isinstance(value, fx.Node))
    graph.output(tensors[0] if len(tensors) == 1 else tensors)
    return graph


def _own_copy(module: fx.GraphModule) -> fx.GraphModule:
    """The program with copies of what it uses, and nothing else; constants get plain names."""
    graph = _flat_graph(module)
    parts: dict[str, Any] = {}
    names: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            parts[str(node.target)] = module.get_submodule(str(node.target))
        elif node.op == "get_attr":
            before = str(node.target)
            if before not in names:
                plain = before.removeprefix("network.").replace(".", "_")
                plain = plain if plain.startswith("constant_") else f"constant_{plain}"
                while plain in parts:  # `a.b` and `a_b`
                    plain += "_"
                names[before] = plain
                value = constant_of(module, node)
                parts[names[before]] = None if value is None else value.detach().clone()
            if before.startswith("network."):
                node.meta[PATH] = before.removeprefix("network.")
            node.target = names[before]
    made = fx.GraphModule(parts, graph)
    for name, part in parts.items():
        if isinstance(part, torch.Tensor):  # a plain attribute would not move between devices
            delattr(made, name)
            made.register_buffer(name, part)
    return made.eval()


def _observed(module: fx.GraphModule, lowered: Lowered, batch: int) -> Iterator[Layer]:
    """The layers in the order in which they first run."""
    calls: dict[str, list[LayerCall]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            reads = tuple(known_shape(source) for source in node.args)
            calls.setdefault(str(node.target), []).append(LayerCall(reads, known_shape(node)))
    for name, of_layer in calls.items():
        layer = layer_of_calls(name, lowered.layers[name], of_layer, batch)
        owner = lowered.shared.get(name, "")
        # A norm that was folded into one of the two made them different.
        same = owner and torch.equal(lowered.layers[owner].weight, lowered.layers[name].weight)  # type: ignore[arg-type]
        yield replace(layer, shares_weights_with=owner) if same else layer


def _edges(module: fx.GraphModule, names: set[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of layers of which the second computes with what the first returns, in the order in which they run."""
    behind: dict[fx.Node, frozenset[str]] = {}
    edges: dict[tuple[str, str], None] = {}
    for node in module.graph.nodes:
        sources = frozenset[str]().union(*(behind[source] for source in node.all_input_nodes))
        if node.op == "call_module" and str(node.target) in names:
            edges.update(dict.fromkeys((source, str(node.target)) for source in sorted(sources)))
            sources = frozenset([str(node.target)])
        behind[node] = sources
    return tuple(edges)


def _kept(module: fx.GraphModule, network: nn.Module, norms: list[fx.Node], batch: int) -> Iterator[KeptFloat]:
    """Operations with weights, and products, that are in no layer: one entry for what a module computes."""
    unfolded = {node.name for node in norms}
    parameters = {f"constant_{key.replace('.', '_')}" for key, _ in network.named_parameters()}
    users_modules = dict(network.named_modules(remove_duplicate=False))
    entries: dict[tuple[str, str], tuple[str, int]] = {}
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        operation = str(node.target).removeprefix("aten.").partition(".")[0].strip("_")
        macs = _macs(node, batch)
        if node.name in unfolded or "batch_norm" in operation:
            reason = "it does not directly follow a layer, so it is not folded"
        elif macs:
            reason = "a product of computed values: neither quantized nor part of any cost"
        elif _has_weights(module, node, parameters):
            reason = "this kind of operation is not quantized"
        else:
            continue
        path = module_path(node)
        running = users_modules.get(path)
        whole = path != "" and running is not None and next(running.children(), None) is None and not macs
        name = path if whole else f"{path}.forward" if path else "forward"
        key = name, type(running).__name__ if whole else operation
        entries[key] = reason, entries.get(key, ("", 0))[1] + macs
    for (name, kind), (reason, macs) in entries.items():
        yield KeptFloat(name, kind, f"{reason}, {macs:,} multiplications a sample" if macs else reason, macs)


def _has_weights(module: fx.GraphModule, node: fx.Node, parameters: set[str]) -> bool:
    """Whether an operation takes a parameter, or another constant of several floating-point values."""
    for source in node.all_input_nodes:
        constant = constant_of(module, source)
        if constant is None or not constant.is_floating_point():
            continue
        if constant.numel() > 1 or str(source.target) in parameters:
            return True
    return False


def _macs(node: fx.Node, batch: int) -> int:
    """Multiply-accumulate operations a sample of a product that is in no layer; 0 for another operation."""
    written = shape_of(node)
    if written is None:
        return 0
    name = str(node.target)
    if node.target in _PRODUCTS:
        left: Any = node.args[-2] if node.target is aten.baddbmm.default else node.args[0]
        return int(written.numel() * known_shape(left)[-1] // batch)
    if node.target in (aten.mv.default, aten.cdist.default, aten.bilinear.default):
        # The weight of a bilinear form is (outputs, left, right).
        bilinear = node.target is aten.bilinear.default
        source: Any = node.args[2] if bilinear else node.args[0]
        sizes = known_shape(source)
        terms = sizes[1:].numel() if bilinear else sizes[-1]
        return int(written.numel() * terms // batch)
    if name.startswith(("aten.conv", "aten.linear", "aten.addmm")):
        weights = [known_shape(source) for source in node.all_input_nodes[1:2]]
        return int(written.numel() * weights[0][1:].numel() // batch) if weights else 0
    return 0


def _idle(network: nn.Module, program: fx.GraphModule, layers: dict[str, nn.Module]) -> Iterator[KeptFloat]:
    """Layers of the network whose weights nothing reads."""
    used = {name.partition("#")[0] for name in layers}
    users_modules = dict(network.named_modules(remove_duplicate=False))
    running = {id(users_modules[name]) for name in used & users_modules.keys()}  # by whichever of its names
    read = {path for node in program.graph.nodes if node.op == "get_attr" for path in node.meta[PARAMETERS]}
    for path, child in network.named_modules():
        if not isinstance(child, QUANTIZABLE) or id(child) in running or not path:
            continue
        if any(f"{path}.{key}" in read for key, _ in child.named_parameters(recurse=False)):
            continue
        if not any(path == name or path.startswith(f"{name}.") or name.startswith(f"{path}.") for name in used):
            yield KeptFloat(path, type(child).__name__, "it does not run on the example input")
