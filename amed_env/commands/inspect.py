"""`amed inspect`: the layers of a network, what of it is quantized, and what stays in float and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from amed_env.commands.options import JsonOption, NetworkOption, OptionalTaskArgument
from amed_env.commands.output import Output
from amed_env.commands.parsing import check_task_or_network, parse_bits
from amed_env.commands.tables import MISSING, number, table_of
from amed_env.problem.allocation import FLOAT_BITS
from amed_env.tasks.catalogue import TABULAR_PREFIX, named_network
from amed_env.tasks.parts import calibration_of, example_of, imported_parts

if TYPE_CHECKING:
    import torch

    from amed_env.problem.workload import Layer
    from amed_env.tracing.packing import Inputs
    from amed_env.tracing.traced_network import TracedNetwork

SAMPLES = 128
"""Calibration samples that signs are taken from."""


@dataclass(frozen=True)
class Call:
    """What a layer reads and writes.

    Attributes:
        input_shape: Shape of one sample's input at its first call.
        output_shape: Shape of one sample's output at its first call.
        calls: How often it runs in one pass.
        signed: Whether it reads negative values; None without real samples.
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    calls: int
    signed: bool | None


def inspect(
    task: OptionalTaskArgument = None,
    network: NetworkOption = None,
    bits: Annotated[
        str | None,
        typer.Option("--bits", metavar="LIST", help="Widths, 2,4,8: the error of the scores with each in all layers."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the layers of a network, with shapes and work: what is quantized, and what stays in float and why.

    [b]Examples:[/b]

    amed inspect cifar10-resnet20

    amed inspect --network my_package.nets:make --bits 4,8

    amed inspect --network net.pt2     (as torch.export.save writes it)
    """
    with Output(as_json) as output:
        check_task_or_network(task, network)
        with output.status(f"tracing {task or network}"):
            traced, inputs, are_samples = _trace_task(task) if task is not None else _trace_own(network or "")
            calls = observe(traced, inputs, are_samples)
            in_float = without_integer_kernel(traced, inputs)
            errors = score_errors(traced, inputs, parse_bits(bits) or ()) if bits else {}
        signs, arithmetic = _signs_text(are_samples), _arithmetic_text(in_float, len(traced.workload))
        output.show(_layer_table(traced, calls), signs, *_float_tables(traced), *arithmetic, *_capture_lines(traced))
        if errors:
            output.show(_error_table(errors))
        output.document(
            {
                "network": traced.workload.name,
                "macs": traced.workload.macs,
                "weights": traced.workload.weight_elements,
                "signs_from_samples": len(inputs) if are_samples else None,
                "layers": [_layer_json(layer, calls[layer.name]) for layer in traced.workload],
                "kept_float": [asdict(kept) for kept in traced.kept_float],
                "without_integer_kernel": in_float,
                "difference": traced.difference,
                "batch_size": traced.batch_size,
                "remarks": list(traced.remarks),
                **({"errors": {str(bits): error for bits, error in errors.items()}} if errors else {}),
            }
        )


def _trace_task(name: str) -> tuple[TracedNetwork, torch.Tensor, bool]:
    """A named network, trained and with samples where both are at hand; of a table the network behind it."""
    from amed_env.tracing.trace import trace

    entry = named_network(name)
    if entry.table is not None:
        entry = named_network(name.removeprefix(TABULAR_PREFIX))
    if entry.missing() is not None:
        return trace(entry.untrained(), entry.zeros(), name), _packed(entry.zeros()), False
    calibration = entry.splits().calibration
    return trace(entry.trained(), calibration.example(), name), calibration.inputs[:SAMPLES], True


def _trace_own(path: str) -> tuple[TracedNetwork, torch.Tensor, bool]:
    from amed_env.tracing.original import OneTensor, as_rows
    from amed_env.tracing.trace import trace

    parts = imported_parts(path)
    example = example_of(parts, path)
    outputs = parts.get("outputs")
    picked = as_rows if outputs is None else OneTensor(outputs)
    traced = trace(parts["network"], example, parts["name"], outputs=picked)
    if parts.get("calibration") is not None:
        return traced, calibration_of(parts).inputs[:SAMPLES], True
    return traced, _packed(example), False


def _packed(inputs: Inputs) -> torch.Tensor:
    from amed_env.tracing.packing import packed_inputs

    return packed_inputs(inputs)[0]


def observe(traced: TracedNetwork, inputs: torch.Tensor, are_samples: bool) -> dict[str, Call]:
    """Run a network once and note what its layers read and write.

    Args:
        traced: The network.
        inputs: Float tensor (N, ...) that the traced module takes.
        are_samples: Whether they are real samples, so that signs mean something.
    """
    import torch

    from amed_env.tracing.packing import of_size

    calls: dict[str, Call] = {}
    batch = inputs if traced.batch_size is None else of_size(inputs, traced.batch_size)
    count = len(batch)

    def hook(name: str) -> Any:
        def note(_: Any, arguments: Any, keywords: dict[str, Any], written: torch.Tensor) -> None:
            read = arguments[0] if arguments else keywords["input"]
            known_sign = are_samples and read.is_floating_point()  # indices have none
            signed = bool(read.min() < 0) if known_sign else None
            known = calls.get(name)
            if known is None:
                calls[name] = Call(_per_sample(read.shape, count), _per_sample(written.shape, count), 1, signed)
            else:
                calls[name] = Call(known.input_shape, known.output_shape, known.calls + 1, known.signed or signed)

        return note

    handles = [
        traced.module.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True)
        for name in traced.workload.layer_names
    ]
    with torch.no_grad():
        traced.module(batch)
    for handle in handles:
        handle.remove()
    return calls


def _per_sample(shape: Sequence[int], count: int) -> tuple[int, ...]:
    """A shape without the samples, on whatever axis they stand: recurrent layers have time before them."""
    sizes = list(shape)
    if count in sizes:
        sizes.remove(count)
    elif sizes[0] % count == 0:
        sizes[0] //= count
    return tuple(sizes)


def without_integer_kernel(traced: TracedNetwork, inputs: torch.Tensor) -> dict[str, str]:
    """Quantized layers that are evaluated by fake quantization in float here, with the reason.

    Args:
        traced: The network.
        inputs: Float tensor (N, ...) that the traced module takes.
    """
    from amed_env.quantization.network import QuantizedNetwork

    network = QuantizedNetwork(traced, inputs)
    network.select(network.workload.uniform(8))
    network(inputs[:1])  # some kernels refuse only what they are given
    return network.in_float


def score_errors(traced: TracedNetwork, inputs: torch.Tensor, widths: Sequence[int]) -> dict[int, float]:
    """How far the outputs with one width in all layers are from the float network's, by width.

    Weights are rounded to the nearest, nothing is learned.

    Args:
        traced: The network.
        inputs: Tensor (N, ...) that the traced module takes.
        widths: Bit-widths.

    Returns:
        Width to the norm of the difference as a part of the norm of the float outputs.
    """
    import torch

    from amed_env.quantization.network import QuantizedNetwork

    network = QuantizedNetwork(traced, inputs)

    def outputs(bits: int) -> torch.Tensor:
        network.select(network.workload.uniform(bits))
        parts = [network(part) for part in inputs.split(network.batch_size)]
        return torch.cat([part.reshape(len(part), -1) for part in parts])

    exact = outputs(FLOAT_BITS)
    return {bits: float((outputs(bits) - exact).norm() / exact.norm().clamp_min(1e-30)) for bits in widths}


def _capture_lines(traced: TracedNetwork) -> list[Table | str]:
    lines: list[Table | str] = [
        f"What was captured computes what the network does: largest difference {traced.difference:.1g} of the largest "
        "output."
    ]
    if traced.batch_size is not None:
        lines.append(f"It is captured for batches of {traced.batch_size} samples; the last batch is filled up.")
    return [*lines, *(f"{remark}." for remark in traced.remarks)]


def _error_table(errors: dict[int, float]) -> Table:
    table = table_of("Error of the outputs with one width in all layers, weights rounded to the nearest")
    table.add_column("bits", justify="right")
    table.add_column("error, relative to the float outputs", justify="right")
    for bits, error in errors.items():
        table.add_row(str(bits), f"{error:.4f}")
    return table


def _layer_json(layer: Layer, call: Call) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "input_shape": list(call.input_shape),
        "output_shape": list(call.output_shape),
        "kernel": list(layer.kernel),
        "stride": list(layer.stride),
        "groups": layer.groups,
        "calls": call.calls,
        "macs": layer.macs,
        "weights": layer.stored_weights,
        "signed_activations": call.signed,
    }


def _layer_table(traced: TracedNetwork, calls: dict[str, Call]) -> Table:
    workload = traced.workload
    all_macs = workload.macs + sum(kept.macs for kept in traced.kept_float)
    table = table_of(f"{workload.name}: {len(workload)} quantized layers")
    table.add_column("layer", no_wrap=True)
    for column in ("kind", "reads", "writes", "kernel", "stride"):
        table.add_column(column)
    for column in ("groups", "calls", "MACs", "% of MACs", "weights"):
        table.add_column(column, justify="right")
    table.add_column("activations")
    for layer in workload:
        call = calls[layer.name]
        sign = MISSING if call.signed is None else "signed" if call.signed else "unsigned"
        sizes = (_by(call.input_shape), _by(call.output_shape), _by(layer.kernel), _by(layer.stride))
        share = f"{100 * layer.macs / all_macs:.1f}"
        counts = (number(layer.groups), number(call.calls), number(layer.macs), share, number(layer.stored_weights))
        table.add_row(layer.name, layer.kind, *sizes, *counts, sign)
    table.add_section()
    covered = f"{100 * workload.macs / all_macs:.1f}"
    total = [""] * 7 + [number(workload.macs), covered, number(workload.weight_elements), ""]
    table.add_row("total", *total, style="bold")
    return table


def _by(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _signs_text(are_samples: bool) -> str:
    if are_samples:
        return f"Activations are those that a layer reads, on up to {SAMPLES} calibration samples."
    return "Whether activations are signed is not known without calibration samples."


def _arithmetic_text(in_float: dict[str, str], layers: int) -> list[Table | str]:
    """Which layers are evaluated on integers."""
    if not in_float:
        return ["Up to 8 bits, every layer is evaluated on integers."]
    reasons = set(in_float.values())
    if len(in_float) == layers and len(reasons) == 1:
        return [f"Every layer is evaluated by fake quantization in float: {reasons.pop()}."]
    table = table_of("Quantized, but evaluated by fake quantization in float")
    for column in ("layer", "why"):
        table.add_column(column, overflow="fold")
    for name, reason in in_float.items():
        table.add_row(name, reason)
    return [table]


def _float_tables(traced: TracedNetwork) -> list[Table | str]:
    """What stays in float: modules with their reason, and what is no module."""
    rest = (
        "Additions, activations, pooling and concatenation are no layers: their results are rounded as they are read."
    )
    if not traced.kept_float:
        return [f"Every module with weights is quantized, and there are no other products. {rest}"]
    table = table_of("Kept in float")
    for column in ("module", "type", "why"):
        table.add_column(column, overflow="fold")
    for kept in traced.kept_float:
        table.add_row(kept.name, kept.type, kept.reason)
    return [table, rest]
