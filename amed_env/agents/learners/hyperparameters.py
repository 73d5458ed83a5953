"""Hyperparameters of an algorithm against its constructor: names, and types as the library annotates them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from amed_env.errors import AgentError

_GIVEN = {"env", "policy", "seed", "gamma", "tensorboard_log", "verbose", "self", "_init_setup_model", "device"}
"""Arguments of an algorithm's constructor that are not for recipes to set."""


def constructor_options(algorithm: type[Any]) -> list[str]:
    """What may be given to the constructor of an algorithm; those of variants with masks are of the class itself."""
    return [parameter.name for parameter in _parameters(algorithm)]


def check_types(agent: str, algorithm: type[Any], options: Mapping[str, Any]) -> None:
    """Refuse values that the algorithm's annotations do not allow; the library itself often finds out in mid-training.

    Args:
        agent: The agent's name, for messages.
        algorithm: The algorithm.
        options: Hyperparameter to value.

    Raises:
        AgentError: If a value is of the wrong type; all of them are named, with the library's default.
    """
    faults = []
    for parameter in _parameters(algorithm):
        if parameter.name in options and not _allowed(parameter.annotation, options[parameter.name]):
            default = "" if parameter.default is inspect.Parameter.empty else f"; the default is {parameter.default!r}"
            expected = inspect.formatannotation(parameter.annotation)
            hint = _number_hint(options[parameter.name])
            faults.append(f"{parameter.name} is {options[parameter.name]!r}, expected {expected}{default}{hint}")
    if faults:
        raise AgentError(f"agent {agent!r}: {'; '.join(faults)}.")


def _parameters(algorithm: type[Any]) -> Iterator[inspect.Parameter]:
    """Of the class, and of its parents as far as its constructor hands on what it does not know (`**keywords`)."""
    seen = set(_GIVEN)
    for known in algorithm.__mro__:
        if "__init__" not in vars(known):
            continue
        handed_on = False
        for parameter in inspect.signature(vars(known)["__init__"]).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                handed_on |= parameter.kind == parameter.VAR_KEYWORD
            elif parameter.name not in seen:
                seen.add(parameter.name)
                yield parameter
        if not handed_on:
            return


def _number_hint(value: Any) -> str:
    """YAML 1.1 reads a number such as 3e-4 as text."""
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        number = math.nan
    if math.isnan(number):
        return ""
    plain = f"{number:.10f}".rstrip("0")
    return f"; YAML takes this for text, write {plain}{'0' if plain.endswith('.') else ''}"


def _allowed(annotation: Any, value: Any) -> bool:
    if annotation is inspect.Parameter.empty:
        return True
    if isinstance(value, list):
        value = tuple(value)  # YAML and JSON have no tuples
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except (PydanticUserError, NameError):  # names that only type checkers see
        return True
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError:
        return False
    return True
