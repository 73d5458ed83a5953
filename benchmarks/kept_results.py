"""Results of a benchmark that can be stopped at any time: a JSON file of findings by key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class KeptResults:
    """Findings by key in a file.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Any]:
        """All findings."""
        return json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}

    def keep(self, key: str, found: dict[str, Any]) -> None:
        """Add one to the file."""
        self._path.parent.mkdir(exist_ok=True)
        text = json.dumps({**self.read(), key: found}, indent=1, sort_keys=True)
        self._path.write_text(f"{text}\n", encoding="utf-8")
