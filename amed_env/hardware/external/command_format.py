"""The JSON that a simulator reads and answers: formats `amed-request/1` and `/2`, and `amed-answer/1`.

A request is written with one layer a line and its keys in a fixed order, so that a program without a JSON library can
read it line by line; `docs/your_device.md` has both formats.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from amed_env.errors import BackendError, UnsupportedPrecisionError
from amed_env.hardware.protocol import Cost, LayerCost
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.operations import Operation
from amed_env.problem.workload import BASIC_KINDS, Workload
from amed_env.support.text import first_few, printable, shortened

RequestFormat = Literal["amed-request/1", "amed-request/2"]
REQUEST_FORMAT: RequestFormat = "amed-request/1"
GRAPH_FORMAT: RequestFormat = "amed-request/2"
"""With all kinds of layers by their own names, and with the operations between them."""
ANSWER_FORMAT = "amed-answer/1"
_LARGEST_CONVERTED = 2**1000  # a larger integer is no float
_SIZES = ("m", "n", "k", "groups", "input_elements")


def request_text(workload: Workload, allocation: BitAllocation, form: RequestFormat = REQUEST_FORMAT) -> str:
    """The request for a network under an allocation."""
    with_graph = form == GRAPH_FORMAT
    lines = []
    for layer in workload:
        precision = allocation[layer.name]
        entry = {
            "name": layer.name,
            # The first format has four kinds; programs that read it know no others.
            "kind": layer.kind if with_graph else BASIC_KINDS[layer.kind],
            **{size: getattr(layer, size) for size in _SIZES},
            "weight_elements": layer.read_weights,
            "output_elements": layer.output_elements,
            "kernel": list(layer.kernel),
            "stride": list(layer.stride),
            "w_bits": precision.weight_bits,
            "a_bits": precision.activation_bits,
        }
        lines.append(json.dumps(entry))
    head = f'{{"format": "{form}",\n"network": {json.dumps(workload.name)},\n"layers": [\n'
    operations = ""
    if with_graph:
        listed = ",\n".join(json.dumps(_entry(operation)) for operation in workload.operations)
        operations = f',\n"operations": [\n{listed}\n]'
    return head + ",\n".join(lines) + f"\n]{operations}}}\n"


def _entry(operation: Operation) -> dict[str, Any]:
    return {
        "name": operation.name,
        "kind": operation.kind,
        "layer": operation.layer or None,
        "inputs": list(operation.inputs),
        "input_shapes": [list(shape) for shape in operation.input_shapes],
        "output_shape": list(operation.output_shape),
        **{name: list(numbers) for name, numbers in operation.sizes.items()},
    }


def read_answer(
    text: str,
    workload: Workload,
    allocation: BitAllocation,
    device: str,
    conversions: Mapping[str, tuple[str, float]] | None = None,
) -> Cost:
    """The cost in an answer of format `amed-answer/1`; its numbers are checked where all devices' are.

    Args:
        text: What the program wrote on standard output.
        workload: The network that was asked for.
        allocation: The allocation that was asked for.
        device: Name of the device, for messages.
        conversions: For metrics in other units the name in this package, and what their values are multiplied by.

    Raises:
        UnsupportedPrecisionError: If the program says that the device cannot run it.
        BackendError: If it reports another error, or the answer is malformed.
    """
    here = f"device {device!r}"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BackendError(f"{here}: the answer is no JSON: {error}; it begins with {shortened(text)}.") from error
    if not isinstance(document, dict):
        raise BackendError(f"{here}: the answer is {type(document).__name__}, expected a JSON object.")
    if document.get("format") != ANSWER_FORMAT:
        raise BackendError(f"{here}: 'format' of the answer is {document.get('format')!r}, expected {ANSWER_FORMAT!r}.")
    for key, kind in (("unsupported", UnsupportedPrecisionError), ("error", BackendError)):
        if key in document:
            _check_keys(document, {"format", key}, here)
            advice = ""
            if kind is UnsupportedPrecisionError:
                advice = (
                    " (searches leave out what the device's file says that it cannot run: see pairs, kinds, layers)"
                )
            raise kind(f"{here}: {printable(str(document[key]))}{advice}")
    _check_keys(document, {"format", "total", "layers"}, here)
    if not isinstance(document.get("total"), dict):
        raise BackendError(f"{here}: the answer has no object 'total' of metric name to number.")
    conversions = conversions or {}
    total = _converted(document["total"], conversions)
    return Cost(device, total, _layers(document.get("layers"), workload, allocation, here, conversions))


def _converted(metrics: Mapping[str, Any], conversions: Mapping[str, tuple[str, float]]) -> dict[str, Any]:
    converted = {}
    for metric, value in metrics.items():
        name, factor = conversions.get(metric, (metric, 1.0))
        # What is no finite number is left for the checks that all devices' answers go through.
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST_CONVERTED
        converted[name] = value * factor if is_number and factor != 1.0 else value
    return converted


def _layers(
    entries: Any,
    workload: Workload,
    allocation: BitAllocation,
    here: str,
    conversions: Mapping[str, tuple[str, float]],
) -> tuple[LayerCost, ...]:
    if entries is None:
        return ()
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BackendError(f"{here}: 'layers' of the answer must be a list of objects.")
    names = tuple(entry.get("name") for entry in entries)
    if names != workload.layer_names:
        raise BackendError(
            f"{here}: the answer has the layers {first_few(names)}; expected {first_few(workload.layer_names)}, in "
            "this order."
        )
    layers = []
    for entry in entries:
        bound = entry.get("bound")
        if not isinstance(bound, str | None):
            raise BackendError(f"{here}, layer {entry['name']!r}: 'bound' is {bound!r}, expected a text.")
        metrics = {key: value for key, value in entry.items() if key not in ("name", "bound")}
        layers.append(LayerCost(entry["name"], allocation[entry["name"]], _converted(metrics, conversions), bound))
    return tuple(layers)


def _check_keys(document: dict[str, Any], allowed: set[str], here: str) -> None:
    unknown = sorted(set(document) - allowed)
    if unknown:
        raise BackendError(
            f"{here}: the answer has the unknown keys {', '.join(map(repr, unknown))}; allowed are "
            f"{', '.join(map(repr, sorted(allowed)))}."
        )
