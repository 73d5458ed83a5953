"""Never compute the same activations twice: outputs of layers are kept by what led to them.

While a batch runs through a network, the output of a layer depends only on the batch and on the precisions of the
layers that were called up to it. So an allocation that shares its first layers with an earlier one takes their outputs
from here, and what it computes is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

Step = tuple[str, int, int]
"""Name, weight bits and activation bits of a layer that was called."""


@dataclass
class _Node:
    """Outputs of the last layer of a path, by batch."""

    depth: int
    last_used: int
    outputs: dict[Hashable, tuple[torch.Tensor, int]] = field(default_factory=dict)


class PrefixReuse:
    """Keeps outputs of layers within a bounded memory; the oldest go first, of these the deepest.

    Args:
        limit_mib: Memory for outputs in MiB; 0 keeps nothing.
    """

    def __init__(self, limit_mib: int) -> None:
        self.limit_mib = limit_mib
        self._limit_bytes = limit_mib * 2**20
        self._nodes: dict[tuple[Step, ...], _Node] = {}
        self._bytes = 0
        self._pass = 0
        self._batch: Hashable | None = None
        self._path: tuple[Step, ...] = ()
        # Networks may change a layer's output in place (ReLU, residual sums); then copies are kept and given out.
        self._copies = False
        self.hits = self.misses = 0

    def start_pass(self) -> None:
        """A new allocation is evaluated from now on."""
        self._pass += 1

    def start_batch(self, batch: Hashable | None) -> None:
        """A batch enters the network; None is a batch that will not come again, whose outputs are not kept."""
        self._batch, self._path = (batch if self._limit_bytes else None), ()

    def end_batch(self) -> None:
        """The batch has left the network: forget outputs that the network has changed in the meantime."""
        if self._batch is None:
            return
        for length in range(1, len(self._path) + 1):
            node = self._nodes.get(self._path[:length])
            if node is None or self._batch not in node.outputs:
                continue
            output, version = node.outputs[self._batch]
            if output._version != version:
                self._copies = True
                self._forget(node, self._batch)
        self._batch = None

    def find(self, step: Step) -> torch.Tensor | None:
        """The output of the layer that is called now, if it is known."""
        if self._batch is None:
            return None
        self._path = (*self._path, step)
        node = self._nodes.get(self._path)
        if node is None or self._batch not in node.outputs:
            self.misses += 1
            return None
        self.hits += 1
        node.last_used = self._pass
        output = node.outputs[self._batch][0]
        return output.clone() if self._copies else output

    def keep(self, output: torch.Tensor) -> None:
        """Remember the output of the layer that `find` did not know."""
        if self._batch is None:
            return
        size = output.numel() * output.element_size()
        if not self._make_room(size):
            return
        node = self._nodes.setdefault(self._path, _Node(len(self._path), self._pass))
        node.last_used = self._pass
        kept = output.clone() if self._copies else output
        node.outputs[self._batch] = (kept, kept._version)
        self._bytes += size

    def _make_room(self, size: int) -> bool:
        while self._bytes + size > self._limit_bytes:
            path, node = min(
                self._nodes.items(), key=lambda item: (item[1].last_used, -item[1].depth), default=(None, None)
            )
            if path is None or node is None or node.last_used == self._pass:
                return False  # all that is kept belongs to this very pass
            for batch in list(node.outputs):
                self._forget(node, batch)
            del self._nodes[path]
        return True

    def _forget(self, node: _Node, batch: Hashable) -> None:
        output, _ = node.outputs.pop(batch)
        self._bytes -= output.numel() * output.element_size()

    def __deepcopy__(self, memo: dict[int, object]) -> PrefixReuse:
        return PrefixReuse(self.limit_mib)

    def __reduce__(self) -> tuple[object, ...]:
        return PrefixReuse, (self.limit_mib,)
