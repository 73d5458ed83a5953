"""A function of one options object as a command: typer reads the object's fields, each declared once, in its class."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import typer


def command_of(function: Callable[[Any], int | None]) -> Callable[..., None]:
    """The function that typer makes a command of.

    Args:
        function: Takes one argument, whose annotation is a dataclass; the fields of that are annotated for typer
            (`Annotated[int, typer.Option(...)]`). Its docstring is the help, and what it returns the exit code of the
            command; None is 0.
    """
    (options_class,) = (get_type_hints(function)[name] for name in inspect.signature(function).parameters)
    annotations = get_type_hints(options_class, include_extras=True)

    @functools.wraps(function)
    def command(**values: Any) -> None:
        raise typer.Exit(function(options_class(**values)) or 0)

    # All keyword-only: in a class that inherits options, one without a default may follow others that have one.
    parameters = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=_default(field), annotation=annotations[field.name]
        )
        for field in dataclasses.fields(options_class)
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
