"""Layers that keep their widths while the others are searched: most papers keep the first and the last at 8 bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from amed_env.errors import AllocationError, UnknownNameError
from amed_env.problem.allocation import Precision, parse_precision

FIRST, LAST = "first", "last"


def parse_pins(pins: Mapping[str, Any] | Iterable[str] | None, layers: Sequence[str]) -> dict[str, Precision]:
    """The pinned precision of each layer that has one, in network order.

    Args:
        pins: Layer to width: `{"first": 8, "stem": (8, 4)}`, or texts `["first=8", "stem=8/4"]`. `first` and `last`
            stand for the layers at the ends, unless a layer has that very name. Two widths are those of weights and
            activations; see `parse_precision`.
        layers: The network's layers, in order.

    Raises:
        UnknownNameError: If there is no such layer.
        AllocationError: If a width is malformed, or a layer is pinned twice to different widths.
    """
    pairs: list[tuple[str, Any]] = []
    if isinstance(pins, Mapping):
        pairs = list(pins.items())
    elif pins is not None:
        for text in [pins] if isinstance(pins, str) else pins:
            name, separator, value = text.partition("=")
            if not separator:
                raise AllocationError(f"pin {text!r}: write it as layer=bits, for example first=8.")
            pairs.append((name.strip(), value))
    ends = {FIRST: layers[0], LAST: layers[-1]}
    pinned: dict[str, Precision] = {}
    for name, value in pairs:
        layer = name if name in layers else ends.get(name, name)
        if layer not in layers:
            raise UnknownNameError("layer to pin", name, [FIRST, LAST, *layers])
        precision = parse_precision(value, f"pin {name!r}")
        if pinned.setdefault(layer, precision) != precision:
            raise AllocationError(f"layer {layer!r} is pinned to {pinned[layer]} and to {precision}; choose one.")
    return {layer: pinned[layer] for layer in layers if layer in pinned}


def pins_text(pins: Mapping[str, Precision]) -> str:
    """`stem=8, classifier=8/4`, for messages and tables."""
    texts = []
    for name, (weight_bits, activation_bits) in pins.items():
        widths = f"{weight_bits}" if weight_bits == activation_bits else f"{weight_bits}/{activation_bits}"
        texts.append(f"{name}={widths}")
    return ", ".join(texts)


def pins_json(pins: Mapping[str, Precision]) -> dict[str, dict[str, int]]:
    """As in an allocation file: layer to `{"w": …, "a": …}`."""
    return {name: {"w": p.weight_bits, "a": p.activation_bits} for name, p in pins.items()}
