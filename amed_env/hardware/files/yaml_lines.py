"""YAML that remembers its lines: plain data for validation, and the line of every field for messages."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from amed_env.errors import DeviceError
from amed_env.support.files import read_limited

_LARGEST_MIB = 1  # of a device file; those of this package have at most 10 KiB, and YAML takes 100 times its size


def read_text(path: str | Path) -> str:
    """The text of a device file.

    Raises:
        DeviceError: If it cannot be read.
    """
    try:
        return read_limited(path, _LARGEST_MIB).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise DeviceError(f"cannot read the device file {path}: {error}.") from error


class YamlDocument:
    """One YAML document: its data, and the lines of its fields.

    Args:
        text: The YAML source; a mapping at the top level.
        where: File name or other origin, for messages.
        noun: What such a file is called in messages.

    Attributes:
        data: The document as plain Python objects.

    Raises:
        DeviceError: If the text is no YAML, holds no mapping, repeats a key, or uses anchors, merge keys or
            tags that plain data does not need; the message has the origin and the line.
    """

    def __init__(self, text: str, where: str, noun: str = "device file") -> None:
        self.where = where
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            if root is None:
                raise DeviceError(f"{where}: the file is empty; a {noun} is a YAML mapping.")
            self._root: yaml.Node = root
            self._check(root, set())
            data = yaml.SafeLoader("").construct_document(root)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f", line {mark.line + 1}" if mark else ""
            raise DeviceError(f"{where}{line}: no valid YAML: {error.problem or error.context}.") from error
        except yaml.YAMLError as error:
            raise DeviceError(f"{where}: no valid YAML: {' '.join(str(error).split())}.") from error
        except RecursionError as error:
            raise DeviceError(f"{where}: the YAML is nested too deeply; a {noun} has three levels.") from error
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            # PyYAML lets these escape from scalars that look like dates, numbers or binary data and are none.
            raise DeviceError(f"{where}: a value cannot be read as YAML: {error}.") from error
        if not isinstance(data, dict):
            raise DeviceError(f"{where}: expected a YAML mapping of keys to values, found {type(data).__name__}.")
        self.data: dict[Any, Any] = data

    def line(self, location: Sequence[Hashable]) -> int:
        """The line, counted from 1, of the deepest part of a location that exists.

        Args:
            location: Keys and list indices from the top, for example `("array", "rows")`.
        """
        node, line = self._root, self._root.start_mark.line
        for part in location:
            if isinstance(node, yaml.MappingNode):
                entries = [(key, value) for key, value in node.value if key.value == str(part)]
                if entries:
                    key, node = entries[0]
                    line = key.start_mark.line
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line
        return int(line) + 1

    def _check(self, node: yaml.Node, seen: set[int]) -> None:
        here = f"{self.where}, line {node.start_mark.line + 1}"
        if id(node) in seen:
            raise DeviceError(f"{here}: YAML anchors and aliases are not supported; write the value out.")
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._check(item, seen)
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise DeviceError(f"{self.where}, line {line}: keys are plain names, not lists or mappings.")
                if key.tag == "tag:yaml.org,2002:merge":
                    raise DeviceError(f"{self.where}, line {line}: the merge key '<<' is not supported.")
                if key.value in lines:
                    raise DeviceError(
                        f"{self.where}, line {line}: key {key.value!r} duplicates line "
                        f"{lines[key.value]}; keep one of them."
                    )
                lines[key.value] = line
                self._check(key, seen)
                self._check(value, seen)
