"""`amed table`: what every layer of a network costs on a device at every precision, as a file."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import amed_env._version as version
from amed_env.commands.options import DeviceOption, JsonOption, LayersOption, NetworkShapesOption
from amed_env.commands.output import Output
from amed_env.commands.parsing import network_shapes, parse_bits
from amed_env.errors import InputError, UnsupportedPrecisionError
from amed_env.problem.allocation import Precision
from amed_env.support.files import json_text, write_atomically
from amed_env.tasks.make import DEFAULT_DEVICE

if TYPE_CHECKING:
    from amed_env.hardware import HardwareBackend, LookupTable
    from amed_env.problem.workload import Workload


def table(
    device: DeviceOption = DEFAULT_DEVICE,
    network: NetworkShapesOption = None,
    layers: LayersOption = None,
    bits: Annotated[
        str | None,
        typer.Option("--bits", metavar="LIST", help="Widths of the table, 2,3,4,8; by default all of the device."),
    ] = None,
    tied: Annotated[bool, typer.Option("--tied", help="Weights and activations of equal width only.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help=".csv or .npy (with a .json beside it); stdout without it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write what every layer costs at every precision, with where the numbers come from; the file is a device itself.

    [b]Examples:[/b]

    amed table --device onnxruntime-cpu --network cifar10-resnet20 --out my_cpu.csv

    amed search cifar10-resnet20 --device my_cpu.csv --bits 8,32 --budget latency=0.8 --out runs/cpu
    """
    with Output(as_json) as output:
        from amed_env.hardware import build_table, csv_text, load_device
        from amed_env.hardware.files.device_files import FILE_SUFFIXES, TABLE_SUFFIXES, device_file_digest

        if out is not None and out.suffix.lower() not in TABLE_SUFFIXES:
            raise InputError(f"--out {out}: a table ends in {' or '.join(TABLE_SUFFIXES)}.")
        widths = None if bits is None else parse_bits(bits)
        backend = load_device(device)
        workload = network_shapes(output, network, layers)
        precisions = table_precisions(backend, workload, widths, tied)
        facts = {
            "amed_env": version.__version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if device.lower().endswith(FILE_SUFFIXES) and Path(device).is_file():
            facts["device sha256"] = device_file_digest(Path(device))
        with output.status(f"{len(precisions)} precisions of {len(workload)} layers on {backend.name}"):
            built = build_table(backend, workload, precisions, facts)
        written = [] if out is None else _write(built, out)
        if out is None and not as_json:
            output.data(csv_text(built).rstrip("\n"))
        output.show(*(f"wrote {path}" for path in written))
        output.document(
            {
                "device": backend.name,
                "network": workload.name,
                "provenance": dict(built.provenance),
                "units": dict(built.units),
                "layers": list(workload.layer_names),
                "precisions": [list(precision) for precision in precisions],
                "costs": {metric: _with_gaps(values.tolist()) for metric, values in built.metrics.items()},
                "files": [str(path) for path in written],
            }
        )


def _with_gaps(rows: list[list[float]]) -> list[list[float | None]]:
    """Costs of layers by precision, with null where a layer cannot run at it."""
    return [[None if math.isnan(value) else value for value in row] for row in rows]


def _write(built: LookupTable, out: Path) -> list[Path]:
    from amed_env.hardware.tables.lookup_files import csv_text, npy_files

    if out.suffix.lower() != ".npy":
        write_atomically(out, csv_text(built))
        return [out]
    array, sidecar = npy_files(built)
    beside = out.with_suffix(".json")
    write_atomically(out, array)
    write_atomically(beside, json_text(sidecar))
    return [out, beside]


def table_precisions(
    backend: HardwareBackend, workload: Workload, widths: tuple[int, ...] | None, tied: bool
) -> tuple[Precision, ...]:
    """The precisions that some layer can run at, of the given widths if any.

    Raises:
        UnsupportedPrecisionError: If a layer can run at none of them, or the device lacks a width that was asked for.
    """
    from amed_env.hardware.choices import every_precision, layer_precisions
    from amed_env.hardware.costs import backend_capabilities

    capabilities = backend_capabilities(backend)
    wanted = every_precision(backend, workload)
    if widths is not None:
        known = {bits for precision in wanted for bits in precision}
        for bits in widths:
            if bits not in known:
                capabilities.require(workload.layers[0], Precision(bits, bits), backend.name)
        wanted = tuple(precision for precision in wanted if set(precision) <= set(widths))
    if tied:
        wanted = tuple(precision for precision in wanted if precision.weight_bits == precision.activation_bits)
    allowed = layer_precisions(backend, workload, wanted)
    for layer, of_layer in zip(workload, allowed, strict=True):
        if not of_layer:
            raise UnsupportedPrecisionError(
                f"device {backend.name!r} has no such precision for layer {layer.name!r} ({layer.kind}) of "
                f"{workload.name!r}; see `amed devices show {backend.name}`."
            )
    return tuple(sorted({precision for of_layer in allowed for precision in of_layer}))
