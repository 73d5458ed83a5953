"""Units of costs: which of them measure the same, and by which factor they differ."""

from __future__ import annotations

_DIMENSIONS: tuple[dict[str, int], ...] = (
    {"us": 10**3, "ms": 10**6, "s": 10**9, "ns": 1},
    {"nj": 10**3, "uj": 10**6, "mj": 10**9, "j": 10**12, "pj": 1},
    {"b": 1, "kb": 1000, "kib": 1024, "mb": 10**6, "mib": 1024**2},
    {"bops": 1, "kbops": 10**3, "mbops": 10**6, "gbops": 10**9},
)
"""Units in lower case that can be converted into each other, in multiples of the smallest: whole numbers, so that
factors are rounded once."""
_SYNONYMS = {"bit operations": "bops", "bytes": "b", "byte": "b"}


def plain_unit(unit: str) -> str:
    """A unit as it is compared: in lower case, with one spelling of micro and of each unit."""
    # Two characters look like this prefix: the micro sign, and the Greek letter.
    text = " ".join(unit.replace("µ", "u").replace("μ", "u").lower().split())
    return _SYNONYMS.get(text, text)


def units_like(unit: str) -> tuple[str, ...]:
    """The units that values in one unit may be given in: all of its dimension, else its own text alone."""
    plain = plain_unit(unit)
    for dimension in _DIMENSIONS:
        if plain in dimension:
            return tuple(dimension)
    return (unit,)


def unit_factor(given: str, declared: str) -> float | None:
    """What a value in one unit is multiplied by to be in another, or None if they do not measure the same."""
    given, declared = plain_unit(given), plain_unit(declared)
    if given == declared:
        return 1.0
    for dimension in _DIMENSIONS:
        if given in dimension and declared in dimension:
            return dimension[given] / dimension[declared]
    return None
