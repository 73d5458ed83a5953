"""Bit-widths that other tools chose, as allocations of ours.

Three forms are read, all JSON:

- AIMET's encodings of versions 0.6.1 (names to encodings), 1.0.0 (lists of encodings with names) and 2.0.0 (one list,
  with types such as `int4`). A file seldom says what a layer reads, but what is written where; if all activations in
  it have one width, it is that.
- ModelOpt's `quant_cfg`: `num_bits` of the quantizers `LAYER.weight_quantizer` and `LAYER.input_quantizer`. Entries are
  patterns, of which the last one that fits decides: a list of entries in version 0.47, an object in older ones.
- a mapping from layer to a width, or to a pair of them (weights, activations), as anyone writes it by hand or from the
  result of a search, MCT's for example.

Scales, and how values are rounded, are not taken over: the widths alone are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from amed_env.errors import AllocationError, did_you_mean
from amed_env.problem.allocation import FLOAT_BITS, BitAllocation, Precision, check_bits

Widths = dict[str, int]


def foreign_allocation(
    document: Any, kinds: Mapping[str, str], where: str, activation_bits: int | None = None
) -> BitAllocation:
    """The allocation of a network by the widths of a document.

    Args:
        document: The parsed JSON.
        kinds: Kind of each of the network's layers, in order.
        where: File name, for messages.
        activation_bits: Width of activations that the document says nothing of.

    Raises:
        AllocationError: If the document has another form, lacks a layer, or names one that the network lacks.
    """
    layers = tuple(kinds)
    if not isinstance(document, dict) or not document:
        raise AllocationError(f"{where}: expected a JSON object of layers, found {type(document).__name__}.")
    if "param_encodings" in document or isinstance(document.get("encodings"), list):
        weights, activations = _aimet(document, layers, where)
    elif "quant_cfg" in document or any(name.endswith(_WEIGHTS) for name in document):
        weights, activations = _modelopt(document.get("quant_cfg", document), kinds, where)
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
_WEIGHT, _BIAS = ".weight", ".bias"


def _aimet(document: Mapping[str, Any], layers: tuple[str, ...], where: str) -> tuple[Widths, Widths]:
    if "encodings" in document:
        encodings = _named(document["encodings"], f"{where}: 'encodings'")
        parameters = [(name, encoding) for name, encoding in encodings if name.endswith((_WEIGHT, _BIAS))]
        written = [(name, encoding) for name, encoding in encodings if not name.endswith((_WEIGHT, _BIAS))]
    else:
        parameters = _named(document["param_encodings"], f"{where}: 'param_encodings'")
        written = _named(document.get("activation_encodings", {}), f"{where}: 'activation_encodings'")
    weights: Widths = {}
    for name, encoding in parameters:
        if name.endswith(_WEIGHT):
            weights[name.removesuffix(_WEIGHT)] = _bits_of(encoding, f"{where}: {name}")
    activations: Widths = {}
    everywhere: set[int] = set()
    for name, encoding in written:
        for side, given in _sides(encoding):
            bits = _bits_of(given, f"{where}: {side} of {name}")
            everywhere.add(bits)
            if side == "input" and name in weights:
                activations.setdefault(name, bits)
    if len(everywhere) == 1:
        activations = dict.fromkeys(layers, everywhere.pop()) | activations
    return weights, activations


def _named(encodings: Any, where: str) -> list[tuple[str, Any]]:
    if isinstance(encodings, dict):
        return list(encodings.items())
    if isinstance(encodings, list) and all(isinstance(one, dict) and "name" in one for one in encodings):
        return [(str(one["name"]), one) for one in encodings]
    raise AllocationError(f"{where} is neither an object nor a list of objects with names.")


def _sides(encoding: Any) -> list[tuple[str, Any]]:
    """Encodings of what an operation reads ("input") and writes, or of a tensor by its own name ("value")."""
    if not isinstance(encoding, dict) or not {"input", "output"} & set(encoding):
        return [("value", encoding)]
    sides = []
    for side in ("input", "output"):
        given = encoding.get(side)
        if isinstance(given, dict):
            sides += [(side, given[number]) for number in sorted(given)]
    return sides


_TYPE = re.compile(r"u?int([0-9]+)")


def _bits_of(encoding: Any, where: str) -> int:
    first = encoding[0] if isinstance(encoding, list) and encoding else encoding
    if isinstance(first, dict) and "output_dtype" in first:
        integers = _TYPE.fullmatch(str(first["output_dtype"]))
        return check_bits(int(integers[1]), where) if integers else FLOAT_BITS
    if not isinstance(first, dict) or not {"bw", "bitwidth"} & set(first):
        raise AllocationError(f"{where} has no 'bw', 'bitwidth' or 'output_dtype'.")
    if str(first.get("dtype", "int")).lower() == "float":
        return FLOAT_BITS
    return check_bits(first.get("bw", first.get("bitwidth")), where)


# What rules for a class of torch concern; those for others, such as BatchNorm2d, concern no layer that has widths.
_KINDS = {
    "ConvTranspose": ("transposed",),
    "Conv": ("conv", "depthwise"),
    "Linear": ("linear",),
    "Embedding": ("embedding",),
}


def _modelopt(rules: Any, kinds: Mapping[str, str], where: str) -> tuple[Widths, Widths]:
    found: dict[str, Widths] = {_WEIGHTS: {}, _INPUT: {}}
    for pattern, class_, rule in _modelopt_rules(rules, where):
        if class_ is None and pattern.endswith(_WEIGHTS) and not set("*?[") & set(pattern):
            found[_WEIGHTS][pattern.removesuffix(_WEIGHTS)] = _modelopt_bits(rule, f"{where}: {pattern}")
            continue
        for name, kind in kinds.items():
            for suffix, widths in found.items():
                if fnmatchcase(name + suffix, pattern) and _concerns(class_, kind):
                    widths[name] = _modelopt_bits(rule, f"{where}: {pattern}")
    return found[_WEIGHTS], found[_INPUT]


def _concerns(class_: str | None, kind: str) -> bool:
    """Whether a rule for a class of torch, or for all (None), concerns layers of a kind."""
    if class_ is None:
        return True
    return kind in next((kinds for start, kinds in _KINDS.items() if class_.split(".")[-1].startswith(start)), ())


def _modelopt_rules(rules: Any, where: str) -> Iterable[tuple[str, str | None, Mapping[str, Any]]]:
    """Pattern, class and attributes of each rule, in the order in which they hold."""
    if isinstance(rules, dict):
        # The default holds before all patterns, wherever it stands.
        for pattern, rule in sorted(rules.items(), key=lambda item: item[0] != "default"):
            if isinstance(rule, dict) and any(isinstance(inner, dict) for inner in rule.values()):
                for inner, attributes in rule.items():  # `nn.BatchNorm2d: {"*": …}`
                    yield inner, pattern, attributes
            elif isinstance(rule, dict):
                yield ("*" if pattern == "default" else pattern), None, rule
            elif str(pattern).endswith((_WEIGHTS, _INPUT)):
                raise AllocationError(f"{where}: {pattern} is {rule!r}, expected an object with 'num_bits'.")
        return
    if not isinstance(rules, list):
        raise AllocationError(f"{where}: 'quant_cfg' is {type(rules).__name__}, expected a list or an object of rules.")
    for number, rule in enumerate(rules):
        if not isinstance(rule, dict) or not isinstance(rule.get("quantizer_name"), str):
            raise AllocationError(f"{where}: 'quant_cfg' entry {number} has no 'quantizer_name'.")
        attributes = rule.get("cfg")
        if isinstance(attributes, list):
            raise AllocationError(f"{where}: {rule['quantizer_name']} is quantized twice; one width is read.")
        yield rule["quantizer_name"], rule.get("parent_class"), {**(attributes or {}), **_enabled(rule)}


def _enabled(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {"enable": rule["enable"]} if "enable" in rule else {}


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
