"""What every node of a network returns for a sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, noted: Callable[[Any], Any]) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, Any] = {}
        self._noted = noted

    def run_node(self, n: fx.Node) -> Any:
        """See `fx.Interpreter`."""
        result = super().run_node(n)
        self.found[n] = self._noted(result)
        return result


def node_values(
    module: fx.GraphModule, sample: torch.Tensor, noted: Callable[[Any], Any] = lambda value: value
) -> dict[fx.Node, Any]:
    """Tensors, and the numbers that shapes are computed from, by node.

    Args:
        module: The network.
        sample: (1, …).
        noted: What is kept of a value.
    """
    recorder = _Recorder(module, noted)
    with torch.no_grad():
        recorder.run(sample)
    return recorder.found
