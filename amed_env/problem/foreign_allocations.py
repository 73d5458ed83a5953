"""Bit-widths that other tools chose, as allocations of ours.

Three forms are read, all JSON:

- AIMET's encodings, as `QuantizationSimModel.export` writes them: of version 0.6.1 (names to encodings) and 1.0.0
  (lists of encodings with names). Widths of activations are those that a layer reads, which only files for torch tell.
- ModelOpt's `quant_cfg`: `LAYER.weight_quantizer` and `LAYER.input_quantizer` with `num_bits`.
- a mapping from layer to a width, or to a pair of them (weights, activations), as anyone writes it by hand or from the
  result of a search, MCT's for example.

Scales, and how values are rounded, are not taken over: the widths alone are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amed_env.errors import AllocationError, did_you_mean
from amed_env.problem.allocation import FLOAT_BITS, BitAllocation, Precision, check_bits

Widths = dict[str, int]


def foreign_allocation(
    document: Any, layers: tuple[str, ...], where: str, activation_bits: int | None = None
) -> BitAllocation:
    """The allocation of a network by the widths of a document.

    Args:
        document: The parsed JSON.
        layers: Names of the network's layers.
        where: File name, for messages.
        activation_bits: Width of activations that the document says nothing of.

    Raises:
        AllocationError: If the document has another form, lacks a layer, or names one that the network lacks.
    """
    if not isinstance(document, dict) or not document:
        raise AllocationError(f"{where}: expected a JSON object of layers, found {type(document).__name__}.")
    if "param_encodings" in document:
        weights, activations = _aimet(document, where)
    elif "quant_cfg" in document or any(name.endswith(_WEIGHTS) for name in document):
        weights, activations = _modelopt(document.get("quant_cfg", document), where)
    else:
        weights, activations = _plain(document, where)
    unknown = [name for name in weights if name not in layers]
    if unknown:
        raise AllocationError(
            f"{where}: the network has no layer {', '.join(map(repr, unknown[:3]))}"
            f"{f' (and {len(unknown) - 3} more)' if len(unknown) > 3 else ''}; {did_you_mean(unknown[0], layers)}"
        )
    missing = [name for name in layers if name not in weights]
    if missing:
        raise AllocationError(f"{where}: there is no width of the weights of {', '.join(map(repr, missing[:5]))}.")
    untold = [name for name in layers if name not in activations]
    if untold and activation_bits is None:
        raise AllocationError(
            f"{where}: there is no width of what {', '.join(map(repr, untold[:3]))} reads; give --activation-bits N "
            "(32 for float)."
        )
    pairs = {name: (weights[name], activations.get(name, activation_bits or FLOAT_BITS)) for name in layers}
    return BitAllocation({name: Precision(*pair) for name, pair in pairs.items()})


_WEIGHTS, _INPUT = ".weight_quantizer", ".input_quantizer"


def _aimet(document: Mapping[str, Any], where: str) -> tuple[Widths, Widths]:
    weights: Widths = {}
    for name, encoding in _named(document["param_encodings"], where):
        if name.endswith(".weight"):
            weights[name.removesuffix(".weight")] = _bits_of(encoding, f"{where}: {name}")
    activations: Widths = {}
    given = document.get("activation_encodings", {})
    for name, encoding in given.items() if isinstance(given, dict) else []:
        read = encoding.get("input") if isinstance(encoding, dict) else None
        if isinstance(read, dict) and read:
            first = read[min(read)]
            activations[name] = _bits_of(first, f"{where}: input of {name}")
    # What several layers read has its encoding at the layer that writes it; only those of weights are layers here.
    return weights, {name: bits for name, bits in activations.items() if name in weights}


def _named(encodings: Any, where: str) -> list[tuple[str, Any]]:
    if isinstance(encodings, dict):
        return list(encodings.items())
    if isinstance(encodings, list) and all(isinstance(one, dict) and "name" in one for one in encodings):
        return [(str(one["name"]), one) for one in encodings]
    raise AllocationError(f"{where}: 'param_encodings' is neither an object nor a list of objects with names.")


def _bits_of(encoding: Any, where: str) -> int:
    first = encoding[0] if isinstance(encoding, list) and encoding else encoding
    if not isinstance(first, dict) or not {"bw", "bitwidth"} & set(first):
        raise AllocationError(f"{where} has no 'bw' or 'bitwidth'.")
    if str(first.get("dtype", "int")).lower() == "float":
        return FLOAT_BITS
    return check_bits(first.get("bw", first.get("bitwidth")), where)


def _modelopt(quantizers: Any, where: str) -> tuple[Widths, Widths]:
    if not isinstance(quantizers, dict):
        raise AllocationError(f"{where}: 'quant_cfg' is {type(quantizers).__name__}, expected an object.")
    found: dict[str, Widths] = {_WEIGHTS: {}, _INPUT: {}}
    for name, attributes in quantizers.items():
        for suffix, widths in found.items():
            if name.endswith(suffix) and "*" not in name and isinstance(attributes, dict):
                widths[name.removesuffix(suffix)] = _modelopt_bits(attributes, f"{where}: {name}")
    if not found[_WEIGHTS]:
        raise AllocationError(
            f"{where}: no quantizer of a single layer's weights; patterns such as '*weight_quantizer' are not "
            "resolved, as only ModelOpt knows which layers they mean."
        )
    return found[_WEIGHTS], found[_INPUT]


def _modelopt_bits(attributes: Mapping[str, Any], where: str) -> int:
    if attributes.get("enable") is False:
        return FLOAT_BITS
    bits = attributes.get("num_bits")
    if isinstance(bits, list | tuple):
        raise AllocationError(f"{where}: {bits} are bits of a floating-point format; widths of integers are read.")
    return check_bits(bits, where)


def _plain(document: Mapping[str, Any], where: str) -> tuple[Widths, Widths]:
    weights: Widths = {}
    activations: Widths = {}
    for name, value in document.items():
        pair = value if isinstance(value, list) else [value]
        if not 1 <= len(pair) <= 2:
            raise AllocationError(f"{where}: {name!r} is {value!r}, expected a width or a pair of them.")
        weights[name] = check_bits(pair[0], f"{where}: {name!r}")
        if len(pair) == 2:
            activations[name] = check_bits(pair[1], f"{where}: {name!r}")
    return weights, activations
