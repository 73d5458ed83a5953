"""Tables in files: this package's CSV and NPY, AMED's CSV and HAQ's NPY.

CSV of this package: lines `# key: value` with the provenance, then the columns `layer,w_bits,a_bits` and a column for
every metric, whose unit is known by its name (`latency_ms`) or written behind it (`area:mm2`); a layer can run at the
precisions that it has rows for. AMED's CSV has a row a layer, its name first, and columns `latency_2` and so on in ms.
An NPY file has the axes (metric,) layer, weight width, activation width, and a JSON file of the same name that
describes them; without one it is HAQ's: cycles, layers x 8 x 8 widths from 1 to 8. A YAML file in format
`amed-table/1` may name the table and say how to read it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from amed_env.errors import AllocationError, DeviceError, did_you_mean
from amed_env.hardware.files.device_files import LARGEST_TABLE_MIB
from amed_env.hardware.files.yaml_faults import Text
from amed_env.hardware.metrics import METRIC_UNITS, known_metric
from amed_env.hardware.tables.lookup_table import Interpolation, LookupTable, precision_axes
from amed_env.problem.allocation import Precision, check_bits
from amed_env.problem.units import plain_unit
from amed_env.support.files import read_limited
from amed_env.support.text import CsvTable, read_csv

FORMAT = "amed-table/1"
KEY_COLUMNS = ("layer", "w_bits", "a_bits")
# HAQ's tables (Wang et al., CVPR 2019) have cycles of every layer at 1 to 8 bits of weights and of activations.
HAQ_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)
# AMED's tables have one column a width, since it ties the widths of weights and activations.
_AMED_COLUMN = re.compile(r"latency_(\d+)")
_SIDECAR_KEYS = {"format", "layers", "weight_bits", "activation_bits", "metrics", "clock_mhz", "provenance"}


class TableConfig(BaseModel):
    """A table of costs as a device.

    Attributes:
        name: The device's name.
        description: One line.
        table: Path of the `.csv` or `.npy` file, relative to this one.
        layers: The network's name of a layer by the table's, for layers that are called otherwise; null for rows that
            belong to no layer of the network.
        clock_mhz: Clock that turns cycles into milliseconds.
        interpolation: `linear` for widths between those of the table; `none` refuses them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["amed-table/1"]
    name: Text
    description: Text = "A table of costs"
    table: Text
    layers: dict[Text, Text | None] = {}
    clock_mhz: Annotated[float, Field(strict=True, gt=0, le=1e5, allow_inf_nan=False)] | None = None
    interpolation: Interpolation = "none"


def load_table(path: Path, clock_mhz: float | None = None) -> LookupTable:
    """The table in a file.

    Args:
        path: A `.csv` or `.npy` file.
        clock_mhz: Clock that turns the metric `cycles` into `latency_ms`.

    Raises:
        DeviceError: If the file cannot be read or is malformed, rows are repeated, or a clock is given for a table
            without cycles; the message has file, line, layer and precision.
    """
    if path.suffix.lower() == ".npy":
        return _read_npy(path, clock_mhz)
    try:
        text = read_limited(path, LARGEST_TABLE_MIB).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise DeviceError(f"cannot read the table {path}: {error}.") from error
    return with_clock(parse_csv(text, str(path)), clock_mhz)


def with_clock(table: LookupTable, clock_mhz: float | None) -> LookupTable:
    """The table with `latency_ms` from its cycles, if a clock is given.

    Raises:
        DeviceError: If it has no cycles, has a latency already, or the clock is no positive number.
    """
    if clock_mhz is None:
        return table
    if isinstance(clock_mhz, bool) or not isinstance(clock_mhz, int | float) or not 0 < clock_mhz < float("inf"):
        raise DeviceError(f"{table.where}: clock_mhz is {clock_mhz!r}; give a positive number.")
    if "cycles" not in table.metrics or "latency_ms" in table.metrics:
        raise DeviceError(
            f"{table.where}: a clock turns cycles into latency_ms, but the table has {', '.join(table.metrics)}; "
            "leave clock_mhz out."
        )
    return replace(
        table,
        metrics={"latency_ms": table.metrics["cycles"] / (clock_mhz * 1e3), **table.metrics},
        units={"latency_ms": "ms", **table.units},
        provenance={**table.provenance, "clock_mhz": f"{clock_mhz:g}"},
    )


def with_names(table: LookupTable, names: Mapping[str, str | None], where: str) -> LookupTable:
    """The table with other names of layers.

    Args:
        table: A table with names.
        names: New name by old one; None leaves the layer out.
        where: File that says so, for messages.

    Raises:
        DeviceError: If the table has no names or lacks a given one, two layers get the same name, or none is left.
    """
    if not names:
        return table
    if table.layers is None:
        raise DeviceError(f"{where}: the layers of {table.where} have no names; leave 'layers' out.")
    unknown = [name for name in names if name not in table.layers]
    if unknown:
        raise DeviceError(
            f"{where}: layers: {table.where} has no {unknown[0]!r}; {did_you_mean(unknown[0], table.layers)}"
        )
    kept = [row for row, name in enumerate(table.layers) if names.get(name, name) is not None]
    original = {str(names.get(name, name)): name for name in (table.layers[row] for row in kept)}
    if len(original) != len(kept):
        raise DeviceError(f"{where}: layers: two layers of {table.where} get the same name.")
    facts = dict(table.provenance)
    if len(kept) < len(table.layers):
        facts.pop("workload", None)  # the shapes of all its layers, which the network does not have
    return replace(
        table,
        layers=tuple(original),
        metrics={metric: values[kept] for metric, values in table.metrics.items()},
        provenance=facts,
        original_names=original,
    )


def parse_csv(text: str, where: str) -> LookupTable:
    """A table from CSV text, in the format of this package or of AMED.

    Raises:
        DeviceError: As `load_table`.
    """
    table = read_csv(text, where, f"{','.join(KEY_COLUMNS)} and metrics", DeviceError, comments=True)
    if not table.rows:
        raise DeviceError(f"{where}: there are no rows below the header in line {table.header_line}.")
    metric_columns = table.header[1:]
    if metric_columns and all(_AMED_COLUMN.fullmatch(column) for column in metric_columns):
        return _amed_table(table, where)
    return _own_table(table, where)


def _own_table(table: CsvTable, where: str) -> LookupTable:
    header_at = f"{where}, line {table.header_line}"
    metric_columns = [column for column in table.header if column not in KEY_COLUMNS]
    units, factors = _units_of_columns(metric_columns, header_at)
    missing = [column for column in KEY_COLUMNS if column not in table.header]
    if missing or not units:
        raise DeviceError(
            f"{header_at}: columns missing: {', '.join(missing) or 'a metric'}; expected "
            f"{','.join(KEY_COLUMNS)} and metrics like latency_ms (AMED's tables have latency_2, latency_3 …)."
        )
    costs: dict[tuple[str, Precision], list[float]] = {}
    lines: dict[tuple[str, Precision], int] = {}
    for line, cells in table.rows:
        here = f"{where}, line {line}"
        widths = [_width(cells[column], f"{here}, column {column!r}") for column in KEY_COLUMNS[1:]]
        key = (cells["layer"], Precision(*widths))
        if key in costs:
            raise DeviceError(
                f"{here}: layer {key[0]!r} at {key[1]} is a duplicate of line {lines[key]}; keep one of them."
            )
        numbers = [_number(cells[column], f"{here}, column {column!r}") for column in metric_columns]
        costs[key] = [number * factor for number, factor in zip(numbers, factors, strict=True)]
        lines[key] = line
    layers = tuple(dict.fromkeys(layer for layer, _ in costs))
    precisions = tuple(sorted({precision for _, precision in costs}))
    # What a layer has no row for, it cannot run at.
    values = np.full((len(layers), len(precisions), len(units)), np.nan)
    rows, columns = ({name: number for number, name in enumerate(axis)} for axis in (layers, precisions))
    for (layer, precision), of_row in costs.items():
        values[rows[layer], columns[precision]] = of_row
    metrics = {metric: values[:, :, i] for i, metric in enumerate(units)}
    return LookupTable(where, layers, precisions, metrics, units, table.comments)


def _amed_table(table: CsvTable, where: str) -> LookupTable:
    """AMED's layout: the layer first, under any heading, then its latency in ms at equal widths."""
    layer_column, *latency_columns = table.header
    widths = [_width(column.removeprefix("latency_"), f"{where}: column {column!r}") for column in latency_columns]
    lines: dict[str, int] = {}
    latencies = []
    for line, cells in table.rows:
        layer = cells[layer_column]
        if layer in lines:
            raise DeviceError(f"{where}, line {line}: layer {layer!r} is a duplicate of line {lines[layer]}.")
        lines[layer] = line
        here = f"{where}, line {line}"
        latencies.append([_number(cells[column], f"{here}, column {column!r}") for column in latency_columns])
    facts = {"imported from": "AMED, latency in ms at equal widths of weights and activations", **table.comments}
    precisions = tuple(Precision(bits, bits) for bits in widths)
    metrics = {"latency_ms": np.array(latencies)}
    return LookupTable(where, tuple(lines), precisions, metrics, {"latency_ms": "ms"}, facts)


def _read_npy(path: Path, clock_mhz: float | None) -> LookupTable:
    where = str(path)
    try:
        array = _array_of(read_limited(path, LARGEST_TABLE_MIB))
    except Exception as error:  # whatever a damaged file makes numpy raise
        raise DeviceError(f"cannot read the table {path}: {error}.") from error
    if array.dtype.kind not in "fiu":
        raise DeviceError(f"{where}: expected an array of numbers, found {array.dtype}.")
    if np.isnan(array).any():
        raise DeviceError(f"{where}: the array has values that are no numbers; a cost is finite and not negative.")
    sidecar = path.with_suffix(".json")
    facts = _read_sidecar(sidecar) if sidecar.exists() else {}
    weights = [_width(bits, f"{sidecar}: 'weight_bits'") for bits in facts.get("weight_bits", HAQ_WIDTHS)]
    activations = [_width(bits, f"{sidecar}: 'activation_bits'") for bits in facts.get("activation_bits", HAQ_WIDTHS)]
    declared = facts.get("metrics", {"cycles": "cycles"})
    metrics, factors = _units_of_columns([f"{metric}:{unit}" for metric, unit in declared.items()], str(sidecar))
    # HAQ's arrays have no axis of metrics.
    if array.ndim == 3 and len(metrics) == 1:
        array = array[None]
    layers = tuple(facts["layers"]) if "layers" in facts else None
    count = array.shape[1] if layers is None and array.ndim == 4 else len(layers or ())
    expected = (len(metrics), count, len(weights), len(activations))
    if array.shape != expected:
        advice = f"{sidecar.name} says so"
        if not facts:
            advice = "without a JSON file of the same name HAQ's widths 1 to 8 are expected"
        raise DeviceError(
            f"{where}: the array has shape {array.shape}, expected {expected} for (metrics, layers, weight widths, "
            f"activation widths): {advice}."
        )
    values = array.astype(np.float64).reshape(len(metrics), count, len(weights) * len(activations))
    values *= np.array(factors)[:, None, None]
    provenance = dict(facts.get("provenance", {}))
    if not facts:
        provenance = {"imported from": "HAQ, cycles at 1 to 8 bits"}
    precisions = tuple(Precision(*pair) for pair in product(weights, activations))
    table = LookupTable(where, layers, precisions, dict(zip(metrics, values, strict=True)), metrics, provenance)
    return with_clock(table, facts.get("clock_mhz") if clock_mhz is None else clock_mhz)


def _array_of(content: bytes) -> np.ndarray[Any, Any]:
    """The array of an NPY file.

    Raises:
        ValueError: If it is none, or its header announces more than the file has.
    """
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    # Before numpy allocates it: a few bytes of header can announce any size.
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"its header announces {dtype} of shape {shape}, which is not the size of the file")
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(read_limited(path, LARGEST_TABLE_MIB).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DeviceError(f"cannot read {path}: {error}.") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise DeviceError(f"{path}: expected a JSON object with 'format': {FORMAT!r}.")
    unknown = sorted(set(facts) - _SIDECAR_KEYS)
    if unknown:
        raise DeviceError(f"{path}: unknown keys {', '.join(map(repr, unknown))}; allowed: {', '.join(_SIDECAR_KEYS)}.")
    for key, kind in {"layers": str, "weight_bits": int, "activation_bits": int}.items():
        entry = facts.get(key, [])
        if not isinstance(entry, list) or not all(isinstance(item, kind) for item in entry):
            raise DeviceError(f"{path}: {key!r} must be a list of {'names' if kind is str else 'whole numbers'}.")
    for key in ("metrics", "provenance"):
        entry = facts.get(key, {})
        if not isinstance(entry, dict) or not all(isinstance(item, str) for item in entry.values()):
            raise DeviceError(f"{path}: {key!r} must be an object of texts, such as {{'latency_ms': 'ms'}}.")
    return facts


def csv_text(table: LookupTable) -> str:
    """The table as CSV; `parse_csv` reads it back to the last bit."""
    stream = io.StringIO()
    plain = csv.writer(stream, lineterminator="\n")
    quoting = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    for key, value in {"format": FORMAT, **table.provenance}.items():
        stream.write(f"# {key}: {' '.join(value.split())}\n")
    columns = [m if METRIC_UNITS.get(m) == unit else f"{m}:{unit}" for m, unit in table.units.items()]
    plain.writerow([*KEY_COLUMNS, *columns])
    for row in range(len(table)):
        name = table.layers[row] if table.layers is not None else str(row)
        # Without quotes these would be a comment, lose their spaces, or end a line.
        writer = quoting if name.startswith("#") or name != name.strip() or "\r" in name else plain
        for column, precision in enumerate(table.precisions):
            if not table.runnable[row, column]:
                continue
            cells = []
            for metric in table.units:
                number = float(table.metrics[metric][row, column])
                cells.append(int(number) if number.is_integer() else number)
            writer.writerow([name, *precision, *cells])
    return stream.getvalue()


def npy_files(table: LookupTable) -> tuple[bytes, dict[str, Any]]:
    """The table as an NPY file with the axes metric, layer, weight width, activation width, and its JSON file.

    Raises:
        DeviceError: If it, or a layer, lacks pairs of its widths, which an array has no place for.
    """
    weights, activations = precision_axes(table.precisions)
    if len(table.precisions) != len(weights) * len(activations) or not table.runnable.all():
        raise DeviceError(
            f"{table.where}: not every layer has every weight width with every activation width, which an array cannot "
            "say; write a .csv file."
        )
    order = [table.precisions.index(Precision(*pair)) for pair in product(weights, activations)]
    shape = (len(table), len(weights), len(activations))
    stream = io.BytesIO()
    np.save(stream, np.stack([table.metrics[metric][:, order].reshape(shape) for metric in table.units]))
    facts = {
        "format": FORMAT,
        **({} if table.layers is None else {"layers": list(table.layers)}),
        "weight_bits": weights,
        "activation_bits": activations,
        "metrics": dict(table.units),
        "provenance": dict(table.provenance),
    }
    return stream.getvalue(), facts


def _units_of_columns(columns: Sequence[str], here: str) -> tuple[dict[str, str], list[float]]:
    """Metrics with their units, and what the numbers of each column are multiplied by."""
    units: dict[str, str] = {}
    factors = []
    for column in columns:
        metric, separator, unit = (part.strip() for part in column.partition(":"))
        known = known_metric(metric)
        if known is not None and (not separator or metric.endswith(f"_{plain_unit(unit)}")):
            metric, factor = known
            separator, unit = "", METRIC_UNITS[metric]
        else:
            factor = 1.0
        if metric in units:
            raise DeviceError(f"{here}: column {column!r} is {metric}, which another column is too; keep one of them.")
        factors.append(factor)
        if not separator and metric not in METRIC_UNITS:
            raise DeviceError(
                f"{here}: the unit of column {column!r} is not known; write it behind the name ({column}:mm2). Known "
                f"are {', '.join(METRIC_UNITS)}."
            )
        units[metric] = unit if separator else METRIC_UNITS[metric]
        _check_unit(metric, units[metric], here)
    return units, factors


def _check_unit(metric: str, unit: str, here: str) -> None:
    if not unit or METRIC_UNITS.get(metric, unit) != unit:
        raise DeviceError(f"{here}: metric {metric!r} is in {METRIC_UNITS.get(metric, 'some unit')}, not in {unit!r}.")


def _width(text: object, here: str) -> int:
    try:
        return check_bits(int(text) if isinstance(text, str) else text, here)
    except ValueError:
        raise DeviceError(f"{here}: {text!r} is no width.") from None
    except AllocationError as error:
        raise DeviceError(str(error)) from error


def _number(text: str, here: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise DeviceError(f"{here}: {text!r} is no number.") from None
    if not (np.isfinite(number) and number >= 0):
        raise DeviceError(f"{here}: {text} is not finite or negative; a cost is neither.")
    return number
