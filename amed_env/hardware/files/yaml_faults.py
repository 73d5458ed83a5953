"""YAML against a pydantic model, with every fault as a sentence that has file, line and field."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError

from amed_env.errors import DeviceError, did_you_mean
from amed_env.hardware.files.yaml_lines import YamlDocument
from amed_env.support.text import shortened

M = TypeVar("M", bound=BaseModel)
Text = Annotated[str, Field(strict=True, min_length=1, pattern=r"\S")]
"""A field that holds more than spaces."""


def validated(model: type[M], document: YamlDocument) -> M:
    """The document as an instance of a model, whose fields may be models.

    Raises:
        DeviceError: If a field is missing, unknown, of the wrong type or out of range; all faults are listed.
    """
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        faults = [_sentence(fault, document, model) for fault in error.errors(include_url=False)]
        raise DeviceError("\n".join(faults)) from error


def _sentence(fault: Any, document: YamlDocument, model: type[BaseModel]) -> str:
    """One fault of pydantic as a sentence with file, line and field."""
    location = tuple(part for part in fault["loc"] if part != "[key]")
    field = ".".join(map(str, location))
    here = f"{document.where}, line {document.line(location)}: "
    kind, value = fault["type"], fault["input"]
    if kind == "extra_forbidden":
        return f"{here}unknown key {field!r}; {did_you_mean(str(location[-1]), _fields_at(model, location[:-1]))}"
    if kind == "missing":
        advice = " Say where the constants of this section come from." if location[-1] == "source" else ""
        return f"{here}{field!r} is missing.{advice}"
    message = fault["msg"].removeprefix("Value error, ").removesuffix(".")
    message = message[:1].lower() + message[1:]
    actual = ""
    if not isinstance(value, dict | list | tuple | BaseModel):
        actual = f", found {shortened(value)}"
        if isinstance(value, str) and kind in ("float_type", "int_type") and _is_number(value):
            actual += " as text (YAML reads numbers like 1e3 as text: write 1.0e+3)"
    return f"{here}{field or 'device'}: {message}{actual}."


def _fields_at(model: Any, location: tuple[Any, ...]) -> list[str]:
    """Fields of the model that lies at a location within another one."""
    for part in location:
        annotation = model.model_fields[part].annotation if part in getattr(model, "model_fields", {}) else None
        # An optional section is a union with None.
        models = [m for m in (annotation, *get_args(annotation)) if isinstance(m, type) and issubclass(m, BaseModel)]
        if len(models) != 1:
            return []
        model = models[0]
    return list(model.model_fields)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
