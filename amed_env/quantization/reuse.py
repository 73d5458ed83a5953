"""Never compute the same activations twice: results are kept by what led to them, within a bounded memory.

What a layer returns depends only on the batch and on the precisions of the layers before it. So an allocation that
shares its first layers with an earlier one takes their results from here, and what it computes is the same to the last
bit. A captured program changes nothing in place (`tracing.capture`), so results are handed out as they are.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch


@dataclass
class _Entry:
    """Results of one kind, by batch."""

    depth: int
    last_used: int
    results: dict[Hashable, torch.Tensor] = field(default_factory=dict)


class ResultMemory:
    """Tensors by what led to them and by batch; the least recently used go first, of these the deepest.

    Args:
        limit_mib: Memory in MiB; 0 keeps nothing.
    """

    def __init__(self, limit_mib: int) -> None:
        self.limit_mib = limit_mib
        self._limit_bytes = limit_mib * 2**20
        self._entries: dict[Hashable, _Entry] = {}
        self._bytes = 0
        self._pass = 0
        self.hits = self.misses = 0

    def start_pass(self) -> None:
        """A new allocation is evaluated from now on."""
        self._pass += 1

    def find(self, key: Hashable, batch: Hashable) -> torch.Tensor | None:
        """The result of a key, if it is kept."""
        entry = self._entries.get(key)
        if entry is None or batch not in entry.results:
            self.misses += 1
            return None
        self.hits += 1
        entry.last_used = self._pass
        return entry.results[batch]

    def keep(self, key: Hashable, batch: Hashable, depth: int, result: torch.Tensor) -> bool:
        """Keep a result, if there is room without giving up what this pass has used; says whether it is kept.

        Args:
            key: What led to it.
            batch: The batch.
            depth: How far from the input it is.
            result: The tensor; it must not change any more.
        """
        size = _bytes_of(result)
        if not self._make_room(size):
            return False
        entry = self._entries.setdefault(key, _Entry(depth, self._pass))
        entry.last_used = self._pass
        entry.results[batch] = result
        self._bytes += size
        return True

    def clear(self) -> None:
        """Give up everything."""
        self._entries.clear()
        self._bytes = 0

    def _make_room(self, size: int) -> bool:
        while self._bytes + size > self._limit_bytes:
            key = min(self._entries, key=lambda k: (self._entries[k].last_used, -self._entries[k].depth), default=None)
            if key is None or self._entries[key].last_used == self._pass:
                return False  # all that is kept belongs to this very pass
            self._bytes -= sum(map(_bytes_of, self._entries.pop(key).results.values()))
        return True

    def __deepcopy__(self, memo: dict[int, object]) -> ResultMemory:
        return ResultMemory(self.limit_mib)

    def __reduce__(self) -> tuple[object, ...]:
        return ResultMemory, (self.limit_mib,)


def _bytes_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
