"""YAML against a pydantic model, with every fault as a sentence that has file, line and field."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from amed_env.errors import DeviceError
from amed_env.hardware.yaml_lines import YamlDocument

M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], document: YamlDocument) -> M:
    """The document as an instance of a flat model.

    Raises:
        DeviceError: If a field is missing, unknown, of the wrong type or out of range; all faults are listed.
    """
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        faults = [_sentence(fault, document, model.model_fields) for fault in error.errors(include_url=False)]
        raise DeviceError("\n".join(faults)) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the allowed names if none is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; allowed: {', '.join(known)}"


def _sentence(fault: Any, document: YamlDocument, fields: Iterable[str]) -> str:
    location = tuple(part for part in fault["loc"] if part != "[key]")
    field = ".".join(map(str, location))
    here = f"{document.where}, line {document.line(location)}: "
    if fault["type"] == "extra_forbidden":
        return f"{here}unknown key {field!r}{nearest(str(location[-1]), fields)}."
    if fault["type"] == "missing":
        return f"{here}{field!r} is missing."
    message = fault["msg"].removeprefix("Value error, ").removesuffix(".")
    value = fault["input"]
    found = "" if isinstance(value, dict | list | tuple | BaseModel) else f", found {repr(value)[:60]}"
    return f"{here}{field or 'device'}: {message[:1].lower()}{message[1:]}{found}."
