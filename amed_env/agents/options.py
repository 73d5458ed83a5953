"""What agents check before they start: their options, and the libraries that are extras."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from amed_env.errors import AgentError, UnknownNameError
from amed_env.support.typed_fields import faults_of

M = TypeVar("M", bound=BaseModel)


def check_options(agent: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Refuse options that an agent does not have.

    Raises:
        UnknownNameError: For the first unknown option; the message has the nearest names.
    """
    known = set(known)
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of agent {agent!r}", option, known)


def parse_agent_options(agent: str, model: type[M], options: Mapping[str, Any]) -> M:
    """The options of an agent as an instance of their model.

    Args:
        agent: The agent's name, for messages.
        model: The model; its fields are the options.
        options: Option to value.

    Raises:
        UnknownNameError: For the first unknown option; the message has the nearest names.
        AgentError: If values are of the wrong type or out of range; all of them are named.
    """
    check_options(agent, options, model.model_fields)
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        raise AgentError(f"agent {agent!r}: {'; '.join(faults_of(error))}.") from error


def import_optional(module: str, agent: str, distribution: str) -> Any:
    """Import a module of an optional library.

    Raises:
        AgentError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise AgentError(
            f"agent {agent!r} needs {distribution}, which cannot be imported ({error}); "
            f"install it with: pip install 'amed-env[search]'."
        ) from error


def true_or_false(option: str, value: object) -> bool:
    """The value of an option that is true or false.

    Raises:
        AgentError: If it is neither.
    """
    if not isinstance(value, bool):
        raise AgentError(f"{option} is {value!r}; give true or false.")
    return value


def whole_number(option: str, value: object, least: int = 1) -> int:
    """The value of an option that is a whole number.

    Raises:
        AgentError: If it is none, or less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise AgentError(f"{option} is {value!r}; give a whole number of at least {least}.")
    return value


def number_between(option: str, value: object, low: float, high: float = sys.float_info.max) -> float:
    """The value of an option that is a finite number in an interval, ends included.

    Raises:
        AgentError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        interval = f"of at least {low:g}" if high == sys.float_info.max else f"from {low:g} to {high:g}"
        raise AgentError(f"{option} is {value!r}; give a number {interval}.")
    return float(value)
