"""Precisions and bit allocations: which width every layer of a network gets.

The file format `amed-allocation/1` is plain JSON::

    {"format": "amed-allocation/1", "network": "digits-cnn", "layers": {"stem": {"w": 8, "a": 8}, ...}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from amed_env.errors import AllocationError
from amed_env.support.files import read_limited
from amed_env.support.text import repeated

FORMAT = "amed-allocation/1"
_LARGEST_FILE_MIB = 64  # far above that of the largest network
DEFAULT_BITS = (2, 3, 4, 8)
"""The widths that AMED chooses from (arXiv 2205.15437), where nothing else is asked for."""
FLOAT_BITS = 32
"""The width that stands for "not quantized, kept in float32"."""
MAX_BITS = 16
"""The widest integer precision; above it only `FLOAT_BITS` is allowed."""
_WRITTEN = re.compile(r"(?:(\d+)(?:\s*/\s*(\d+))?)|(?:[wW](\d+)[aA](\d+))")


class Precision(NamedTuple):
    """Widths of one layer in bits: its weights, and the activations that it reads.

    `32` stands for float32, not quantized. Integer widths go from 1 to 16.
    """

    weight_bits: int
    activation_bits: int

    def __str__(self) -> str:
        return f"w{self.weight_bits}a{self.activation_bits}"


def check_bits(bits: object, where: str) -> int:
    """Return `bits` as an int, or raise if it is not a width.

    Args:
        bits: The candidate; a bool or a float with a fraction is refused.
        where: What it is the width of, for the message.

    Raises:
        AllocationError: If it is not an integer from 1 to 16, nor 32.
    """
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise AllocationError(f"{where}: bit-width {bits!r} is not an integer; give 1 to {MAX_BITS}, or 32 for float.")
    if not (1 <= bits <= MAX_BITS or bits == FLOAT_BITS):
        raise AllocationError(f"{where}: bit-width {bits} is out of range; give 1 to {MAX_BITS}, or 32 for float.")
    return int(bits)


def parse_precision(value: object, where: str) -> Precision:
    """A precision as people write it: `8` for both, `(8, 4)`, `"8/4"` or `"w8a4"` for weights and activations apart.

    Args:
        value: What is written.
        where: What it is the precision of, for the message.

    Raises:
        AllocationError: If it is none of these, or a width is out of range.
    """
    widths: tuple[object, ...] = tuple(value) if isinstance(value, tuple | list) else (value,)
    if isinstance(value, str):
        match = _WRITTEN.fullmatch(value.strip())
        if match is None:
            raise AllocationError(
                f"{where}: {value!r} is no width; write 8, or 8/4 (or w8a4) for weights and activations."
            )
        widths = tuple(int(part) for part in match.groups() if part is not None)
    if len(widths) == 1:
        widths *= 2
    if len(widths) != 2:
        raise AllocationError(
            f"{where}: {value!r} has {len(widths)} widths; give one, or those of weights and activations."
        )
    return Precision(*(check_bits(bits, where) for bits in widths))


def at_least(wanted: Precision, choices: Iterable[Precision]) -> Precision:
    """The choice that stands for a precision where that is not to be had.

    Its weights have the next width that is not narrower, or else the widest that there is; among those choices the
    same decides about the activations.
    """
    of_weights = list(choices)
    weight_bits = _next_width(wanted.weight_bits, {choice.weight_bits for choice in of_weights})
    of_activations = {choice.activation_bits for choice in of_weights if choice.weight_bits == weight_bits}
    return Precision(weight_bits, _next_width(wanted.activation_bits, of_activations))


def _next_width(wanted: int, widths: Collection[int]) -> int:
    return min((bits for bits in widths if bits >= wanted), default=max(widths))


class BitAllocation(Mapping[str, Precision]):
    """A precision for each layer, in network order: immutable and hashable.

    Args:
        precisions: Layer name to precision, or to a `(weight_bits, activation_bits)` pair.

    Raises:
        AllocationError: If it is empty, or a width or a name is not valid.
    """

    __slots__ = ("_hash", "_precisions")

    def __init__(self, precisions: Mapping[str, Precision | tuple[int, int]]) -> None:
        if not precisions:
            raise AllocationError("a bit allocation needs at least one layer; it has none.")
        checked: dict[str, Precision] = {}
        for name, pair in precisions.items():
            if not isinstance(name, str) or not name:
                raise AllocationError(f"layer names are non-empty strings, not {name!r}.")
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise AllocationError(f"layer {name!r} is {pair!r}, expected (weight bits, activation bits).")
            weight_bits, activation_bits = pair
            checked[name] = Precision(
                check_bits(weight_bits, f"layer {name!r}, weights"),
                check_bits(activation_bits, f"layer {name!r}, activations"),
            )
        self._precisions = checked
        # Once: allocations are the keys of every cache, and a search looks up the same ones again and again.
        self._hash = hash(tuple(checked.items()))

    @classmethod
    def uniform(cls, layers: Iterable[str], weight_bits: int, activation_bits: int | None = None) -> BitAllocation:
        """The same precision for every layer; activations as wide as weights unless given."""
        precision = Precision(weight_bits, weight_bits if activation_bits is None else activation_bits)
        return cls(dict.fromkeys(layers, precision))

    def replace(self, changes: Mapping[str, Precision | tuple[int, int]]) -> BitAllocation:
        """A copy with some layers changed.

        Raises:
            AllocationError: If a name is not a layer of this allocation.
        """
        for name in changes:
            if name not in self._precisions:
                raise AllocationError(f"no layer {name!r} in this allocation; it has {', '.join(self._precisions)}.")
        return BitAllocation({**self._precisions, **changes})

    def __getitem__(self, name: str) -> Precision:
        return self._precisions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._precisions)

    def __len__(self) -> int:
        return len(self._precisions)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        """Equal if the same layers, in the same order, have the same precisions."""
        if not isinstance(other, BitAllocation):
            return NotImplemented
        return list(self._precisions.items()) == list(other._precisions.items())

    def __repr__(self) -> str:
        return f"BitAllocation({', '.join(f'{n}={p}' for n, p in self._precisions.items())})"

    def __reduce__(self) -> tuple[object, ...]:
        return BitAllocation, (self._precisions,)

    def key(self) -> str:
        """A canonical text of the widths in layer order (`"8/8 4/4"`): the key of the trial store."""
        return " ".join(f"{p.weight_bits}/{p.activation_bits}" for p in self._precisions.values())

    def require_layers(self, names: Iterable[str], owner: str) -> BitAllocation:
        """This allocation in the order of `names`, after checking that it covers exactly those layers.

        Args:
            names: The layers that it must have, in order.
            owner: Whose layers they are, for the message.

        Raises:
            AllocationError: If layers are missing or unknown; all of them are named.
        """
        required = list(names)
        missing = [name for name in required if name not in self._precisions]
        unknown = [name for name in self._precisions if name not in set(required)]
        faults = []
        if missing:
            faults.append(f"it lacks {', '.join(map(repr, missing))}")
        if unknown:
            faults.append(f"it has the unknown {', '.join(map(repr, unknown))}")
        if faults:
            raise AllocationError(f"the allocation does not fit {owner}: {' and '.join(faults)}.")
        if required == list(self._precisions):
            return self
        return BitAllocation({name: self._precisions[name] for name in required})

    def plain(self) -> BitAllocation:
        """The allocation as an object of this very class, whatever a subclass thinks of equality."""
        return self if type(self) is BitAllocation else BitAllocation(dict(self.items()))

    def to_json(self, network: str | None = None) -> dict[str, Any]:
        """The allocation as a JSON document in format `amed-allocation/1`."""
        layers = {n: {"w": p.weight_bits, "a": p.activation_bits} for n, p in self._precisions.items()}
        return {"format": FORMAT, "network": network, "layers": layers}

    @classmethod
    def from_json(cls, document: object, where: str = "allocation") -> BitAllocation:
        """Read a document in format `amed-allocation/1`.

        Args:
            document: The parsed JSON.
            where: File name or other origin, for messages.

        Raises:
            AllocationError: If the format, a key or a width is wrong.
        """
        if not isinstance(document, dict):
            raise AllocationError(f"{where}: expected a JSON object, found {type(document).__name__}.")
        if document.get("format") != FORMAT:
            raise AllocationError(f"{where}: 'format' is {document.get('format')!r}, expected {FORMAT!r}.")
        unknown = sorted(set(document) - {"format", "network", "layers"})
        if unknown:
            raise AllocationError(
                f"{where}: unknown keys {', '.join(map(repr, unknown))}; allowed: 'format', 'network', 'layers'."
            )
        if not isinstance(document.get("network"), str | None):
            raise AllocationError(f"{where}: 'network' is {document['network']!r}, expected a string or null.")
        layers = document.get("layers")
        if not isinstance(layers, dict) or not layers:
            raise AllocationError(f"{where}: 'layers' must be a non-empty object of layer name to {{'w': …, 'a': …}}.")
        precisions: dict[str, Precision] = {}
        for name, entry in layers.items():
            if not isinstance(entry, dict) or set(entry) != {"w", "a"}:
                raise AllocationError(f"{where}: layer {name!r} is {entry!r}, expected exactly the keys 'w' and 'a'.")
            precisions[name] = Precision(
                check_bits(entry["w"], f"{where}: layer {name!r}, 'w'"),
                check_bits(entry["a"], f"{where}: layer {name!r}, 'a'"),
            )
        return cls(precisions)

    def save(self, path: str | Path, network: str | None = None) -> None:
        """Write the allocation as a JSON file."""
        Path(path).write_text(json.dumps(self.to_json(network), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> BitAllocation:
        """Read an allocation file.

        Raises:
            AllocationError: If the file is missing, is no JSON, repeats a layer, or is malformed.
        """
        return cls.from_json(read_json(path), where=str(path))


def read_json(path: str | Path) -> Any:
    """The document of a file, whatever it is.

    Raises:
        AllocationError: If the file is missing, is no JSON, or repeats a key.
    """

    def reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Python's JSON keeps the last of equal keys and says nothing.
        twice = repeated(key for key, _ in pairs)
        if twice:
            raise AllocationError(f"{path}: {', '.join(map(repr, twice))} is repeated.")
        return dict(pairs)

    try:
        text = read_limited(path, _LARGEST_FILE_MIB, pipes=True).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise AllocationError(f"cannot read the allocation file {path}: {error}.") from error
    try:
        return json.loads(text, object_pairs_hook=reject_duplicates)
    except (ValueError, RecursionError) as error:
        raise AllocationError(f"{path} is no valid JSON: {error}.") from error
