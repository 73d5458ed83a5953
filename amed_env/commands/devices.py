"""`amed devices`: the devices that there are, one in detail, and whether it keeps its promises."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from amed_env.commands.listing import Row, show_rows
from amed_env.commands.options import DeviceArgument, JsonOption, LayersOption, NetworkShapesOption
from amed_env.commands.output import Output
from amed_env.commands.parsing import network_shapes
from amed_env.problem.workload import KINDS

if TYPE_CHECKING:
    from amed_env.hardware import HardwareBackend


def devices(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the devices: shipped, registered, and of plug-ins; show and check one.

    [b]Examples:[/b] amed devices      amed devices show bitfusion      amed devices check my_device.yaml
    """
    if context.invoked_subcommand is None:
        with Output(as_json) as output:
            show_rows(output, "devices", _device_rows())


def _device_rows() -> list[Row]:
    """Every device with `name`, `description`, `source`, and `problem` or None."""
    from amed_env.hardware import list_devices

    return [
        {"name": i.name, "description": i.description, "source": i.source, "problem": i.error}
        for i in list_devices().values()
    ]


def show(device: DeviceArgument, as_json: JsonOption = False) -> None:
    """Show what a device can run, what it reports, and its constants with their sources.

    [b]Example:[/b] amed devices show eyeriss-ws
    """
    with Output(as_json) as output:
        import yaml

        from amed_env.hardware import load_device

        facts = _facts(load_device(device))
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for name in ("name", "description", "metrics", "deterministic", "additive", "timeout_s", "retries"):
            table.add_row(name, _text(facts[name]))
        for kind, precisions in (facts["layers"] or facts["precisions"]).items():
            table.add_row(kind, _text(precisions))
        output.show(table)
        if facts["config"] is not None:
            output.show("", yaml.safe_dump(facts["config"], sort_keys=False, allow_unicode=True, width=110).rstrip())
        output.document(facts)


def _facts(backend: HardwareBackend) -> dict[str, Any]:
    from pydantic import BaseModel

    from amed_env.hardware.costs import backend_capabilities

    capabilities = backend_capabilities(backend)
    config = getattr(backend, "config", None)
    provenance = getattr(getattr(backend, "lookup", None), "provenance", None)
    description = getattr(backend, "description", None) or (type(backend).__doc__ or "").strip()
    return {
        "name": backend.name,
        "description": str(description).partition("\n")[0],
        "metrics": dict(capabilities.metrics),
        "deterministic": capabilities.deterministic,
        "additive": capabilities.additive,
        "timeout_s": backend.timeout_s,
        "retries": backend.retries,
        "precisions": {kind: [list(p) for p in capabilities.precisions(kind)] for kind in KINDS},
        "layers": _layers(backend),
        "config": config.model_dump(mode="json", exclude_none=True) if isinstance(config, BaseModel) else provenance,
    }


def _layers(backend: HardwareBackend) -> dict[str, list[list[int]]] | None:
    """Precisions by layer of a device that knows the layers of one network only, where these differ; else None."""
    from amed_env.hardware.choices import every_precision, layer_precisions

    workload = backend.sample_workload()
    if workload is None:
        return None
    allowed = layer_precisions(backend, workload, every_precision(backend, workload))
    if len(set(allowed)) == 1:
        return None
    named = zip(workload.layer_names, allowed, strict=True)
    return {name: [list(precision) for precision in of_layer] for name, of_layer in named}


def _text(value: Any) -> str:
    """A fact as a person reads it; precisions that form a grid as their widths."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{metric} ({unit})" for metric, unit in value.items())
    if isinstance(value, list):
        if not value:
            return "not supported"
        weights, activations = (sorted({pair[i] for pair in value}) for i in (0, 1))
        if len(value) < len(weights) * len(activations):
            return ", ".join(f"w{weight}a{activation}" for weight, activation in value)
        widths = [" ".join(map(str, bits)) for bits in (weights, activations)]
        return f"{widths[0]} bits" if widths[0] == widths[1] else f"weights {widths[0]}, activations {widths[1]} bits"
    return "none" if value is None else str(value)


def check(
    device: DeviceArgument,
    network: NetworkShapesOption = None,
    layers: LayersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that a device keeps its promises; ends with 1 if it breaks one.

    [b]Examples:[/b]

    amed devices check my_device.yaml

    amed devices check my_module:MyNpu --network digits-cnn
    """
    with Output(as_json) as output:
        from amed_env.hardware import load_device
        from amed_env.hardware.check import CHECKS, conformance_workload, run_checks, warn_if_not_monotone
        from amed_env.hardware.costs import backend_capabilities

        backend = load_device(device)
        given = None if network is None and layers is None else network_shapes(output, network, layers)
        workload = conformance_workload(backend, given)
        with output.status(f"checking {backend.name}"):
            passed, failed = run_checks(backend, workload)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if not failed:
                warn_if_not_monotone(backend, backend_capabilities(backend), workload)
        for name in CHECKS:
            output.show(f"FAILED  {name}: {failed[name]}" if name in failed else f"ok      {name}")
        for warning in caught:
            output.warn(str(warning.message))
        output.document(
            {
                "device": backend.name,
                "network": workload.name,
                "passed": list(passed),
                "failed": failed,
                "warnings": [str(warning.message) for warning in caught],
            }
        )
    raise typer.Exit(1 if failed else 0)
