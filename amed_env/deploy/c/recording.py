"""What every node of a network returns for a sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """See `fx.Interpreter`."""
        self.found[n] = super().run_node(n)
        return self.found[n]


def node_values(module: fx.GraphModule, sample: torch.Tensor) -> dict[fx.Node, Any]:
    """Tensors, and the numbers that shapes are computed from, by node.

    Args:
        module: The network.
        sample: (1, …).
    """
    recorder = _Recorder(module)
    with torch.no_grad():
        recorder.run(sample)
    return recorder.found
