"""Groups of settings as typed models, read from plain documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from amed_env.errors import InputError
from amed_env.support.text import shortened


def faults_of(error: ValidationError) -> list[str]:
    """What is wrong where in a document or a group of settings, a text for each fault."""
    faults = []
    for fault in error.errors(include_url=False):
        where = ".".join(map(str, fault["loc"])) or "the document"
        value = fault["input"]
        found = "" if fault["type"] == "missing" or isinstance(value, dict | list) else f", found {shortened(value)}"
        faults.append(f"{where}: {fault['msg']}{found}")
    return faults


class TypedFields(BaseModel):
    """A group of settings that cannot be changed; fields that it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """The group from its fields.

        Raises:
            InputError: If a field is unknown, of the wrong type or out of range; all of them are named.
        """
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            known = ", ".join(cls.model_fields)
            raise InputError(f"{cls.title()}: {'; '.join(faults_of(error))}. Its fields are {known}.") from error

    @classmethod
    def title(cls) -> str:
        """What messages call the group."""
        return cls.__name__
