"""`extends: bitfusion` in a device file: everything of another device but for the fields that are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from amed_env.errors import DeviceError, UnknownNameError
from amed_env.hardware.files.yaml_lines import YamlDocument, read_text
from amed_env.hardware.names import shipped_files

_KEY = "extends"


def extended(document: YamlDocument, check: Callable[[str, str], object]) -> YamlDocument:
    """The document with what it inherits; itself if it extends nothing.

    Sections are merged key by key, and `null` takes an inherited key away. Where a section changes without a `source`
    of its own, the inherited one is kept with a note of what changed.

    Args:
        document: A device file as it was written; its data is replaced, its lines stay.
        check: Is called with text and origin of the file that is extended, and raises if that is not in order.

    Raises:
        DeviceError: If the base does not exist or is malformed, a chain of files ends in itself, or the name is not
            the file's own; the message has file and line.
    """
    if _KEY not in document.data:
        return document
    document.data = _resolved(document, (document.where,), check)
    return document


def _resolved(document: YamlDocument, chain: tuple[str, ...], check: Callable[[str, str], object]) -> dict[Any, Any]:
    here = f"{document.where}, line {document.line((_KEY,))}"
    base_name = document.data[_KEY]
    if not isinstance(base_name, str) or not base_name.strip():
        raise DeviceError(f"{here}: extends: give the name of a shipped device or the path of a file.")
    if "name" not in document.data:
        raise DeviceError(f"{here}: a device that extends another one needs a 'name' of its own.")
    where, text = _base(base_name, document.where, here)
    if where in chain:
        raise DeviceError(f"{here}: the files extend each other in a circle: {' → '.join((*chain, where))}.")
    base_document = YamlDocument(text, where)
    base = base_document.data
    if _KEY in base:
        base = _resolved(base_document, (*chain, where), check)
    # The base must be in order by itself, so that its faults are reported with its own file and lines.
    check(text, where)
    changes = {key: value for key, value in document.data.items() if key != _KEY}
    return _merged(base, changes, Path(document.where).name)


def _base(name: str, child: str, here: str) -> tuple[str, str]:
    """Origin and text of the file that is extended."""
    if name.lower().endswith((".yaml", ".yml")):
        path = Path(child).parent / name
        try:
            return str(path.resolve()), read_text(path)
        except DeviceError as error:
            raise DeviceError(f"{here}: extends: {error}") from error
    shipped = shipped_files()
    if name not in shipped:
        unknown = UnknownNameError("device", name, shipped, hint="A path ends in .yaml or .yml.")
        raise DeviceError(f"{here}: extends: {unknown}")
    return f"{name}.yaml", shipped[name].read_text(encoding="utf-8")


def _merged(base: Mapping[Any, Any], changes: Mapping[Any, Any], child: str) -> dict[Any, Any]:
    merged = dict(base)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
            merged[key] = _merged(base[key], value, child)
        else:
            merged[key] = value
    changed = [str(key) for key in changes if key != "source"]
    if "source" not in changes and isinstance(base.get("source"), str) and changed:
        merged["source"] = f"{base['source']}; but {', '.join(changed)}: as set in {child}"
    return merged
