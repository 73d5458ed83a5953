"""Words of messages and the rows of CSV text that several rooms need."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from amed_env.errors import AmedError

# C0 and C1 controls but tab and line feed, delete, line separators, and what changes the direction of writing.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MOST_NAMED = 5  # names in a message; more would not be read


def printable(text: str) -> str:
    r"""Text of others as a terminal may get it: control characters and the like as escapes of Python (`\x1b`)."""
    return _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


def printable_json(text: str) -> str:
    """A JSON document with the same characters as escapes of JSON; it has them nowhere but in its texts."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def first_few(names: Sequence[object]) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - _MOST_NAMED
    return printable(", ".join(map(str, names[:_MOST_NAMED]))) + (f" and {more} more" if more > 0 else "")


def repeated(names: Iterable[str]) -> list[str]:
    """Names that come more than once, sorted."""
    return sorted(name for name, times in Counter(names).items() if times > 1)


def shortened(value: object) -> str:
    """A value as it would be written in Python, at most 60 characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer with too many digits to print
        return "a very long number"
    return text if len(text) <= 60 else f"{text[:59]}…"


class CsvTable(NamedTuple):
    """CSV text as rows of cells, without the spaces around those that are not in quotes.

    Attributes:
        header: Names of the columns.
        header_line: The line of the header, from 1.
        rows: For every further row its line and its cells by column; blank rows are left out.
        comments: What lines `# key: value` say.
    """

    header: tuple[str, ...]
    header_line: int
    rows: tuple[tuple[int, dict[str, str]], ...]
    comments: dict[str, str]


def read_csv(text: str, where: str, columns: str, error: type[AmedError], *, comments: bool = False) -> CsvTable:
    """Read CSV text.

    Args:
        text: A header, then a row a line.
        where: File name or other origin, for messages.
        columns: What the header should have, for messages.
        error: What is raised.
        comments: Whether lines that begin with `#` are comments; a name that begins so is in quotes.

    Raises:
        AmedError: Of the type `error`, if it is no CSV text or empty, a column is repeated, or a row has more or fewer
            cells than the header.
    """
    if "\0" in text:
        raise error(f"{where}: this is no text file (it has NUL bytes).")
    lines: list[tuple[int, list[str]]] = []
    facts: dict[str, str] = {}
    written: list[str] = []  # the lines of one row, as they are in the file
    reader = csv.reader(_noted(io.StringIO(text), written), strict=True)
    try:
        for row in reader:
            source = "".join(written)
            written.clear()
            if comments and _is_comment(row, source):
                key, _, value = ",".join(row).removeprefix("#").partition(":")
                facts[key.strip()] = value.strip()
            elif any(cell.strip() for cell in row):
                lines.append((reader.line_num, [_unpadded(cell, source) for cell in row]))
    except csv.Error as fault:
        raise error(f"{where}: no valid CSV: {fault}.") from fault
    if not lines:
        raise error(f"{where}: the file is empty; its first line must be {columns}.")
    (header_line, header), *body = lines
    twice = repeated(header)
    if twice:
        raise error(f"{where}, line {header_line}: column {', '.join(map(repr, twice))} is repeated.")
    rows = []
    for line, cells in body:
        if len(cells) != len(header):
            raise error(f"{where}, line {line}: {len(cells)} values for {len(header)} columns.")
        rows.append((line, dict(zip(header, cells, strict=True))))
    return CsvTable(tuple(header), header_line, tuple(rows), facts)


def _noted(lines: Iterable[str], noted: list[str]) -> Iterator[str]:
    for line in lines:
        noted.append(line)
        yield line


def _is_comment(row: Sequence[str], source: str) -> bool:
    """Whether a row is a comment; a name that begins like one is in quotes and has values behind it."""
    if not row or not row[0].startswith("#"):
        return False
    return source.startswith("#") or not any(row[1:])


def _unpadded(cell: str, source: str) -> str:
    """A cell without the spaces around it, unless it is in quotes; `csv` does not say which cells are."""
    plain = cell.strip()
    escaped = cell.replace('"', '""')
    return cell if plain != cell and f'"{escaped}"' in source else plain


def tensor_text(tensor: Any) -> str:
    """Type and shape of a tensor or array in words: `float32 of shape (5, 10)`."""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
