"""A network as a module of float layers, of which nothing is computed twice: what is kept is taken from a memory.

Results of groups are kept (`quantization.graph`), as those of the integer engine are. So an allocation that shares its
first layers with an earlier one starts where they part: what comes between two layers is not computed again either.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import fx

from amed_env.quantization.graph import NetworkGraph, compute_node
from amed_env.quantization.layers import QuantizedLayer, StoredTensor
from amed_env.quantization.products import QuantizedProduct
from amed_env.quantization.reuse import ResultMemory


class FloatProgram:
    """Runs a network at the widths that its layers are switched to.

    Args:
        graph: The network.
        layers: Its layers by name.
    """

    def __init__(self, graph: NetworkGraph, layers: Mapping[str, QuantizedLayer | QuantizedProduct]) -> None:
        self._module = graph.module
        self._nodes = list(graph.module.graph.nodes)
        self._output = next(node for node in reversed(self._nodes) if node.op == "output")
        self._layers: dict[fx.Node, QuantizedLayer | QuantizedProduct] = {}
        self._stored: dict[fx.Node, StoredTensor] = {}
        for node in self._nodes:
            if node.op != "call_module":
                continue
            if node.target in layers:
                self._layers[node] = layers[node.target]
            else:
                module = graph.module.get_submodule(node.target)
                if isinstance(module, StoredTensor):
                    self._stored[node] = module
        in_groups = {group.call for group in graph.groups.values()}
        self._kept = {*graph.groups, *(node for node in self._layers if node not in in_groups)}
        self._last_use = {need: number for number, node in enumerate(self._nodes) for need in node.all_input_nodes}
        self._ids: dict[Hashable, int] = {}

    def __call__(self, inputs: torch.Tensor, memory: ResultMemory, batch: Hashable) -> torch.Tensor:
        """What the module returns for a batch.

        Args:
            inputs: What it takes.
            memory: Results of earlier runs.
            batch: A name of the batch.
        """
        keys = self._keys()
        values: dict[fx.Node, torch.Tensor] = {}
        missing: set[fx.Node] = set()
        wanted = {self._output}
        for node in reversed(self._nodes):
            if node not in wanted:
                continue
            known = memory.find(keys[node], batch) if node in self._kept else None
            if known is None:
                missing.add(node)
                wanted.update(node.all_input_nodes)
            else:
                values[node] = known
        for number, node in enumerate(self._nodes):
            if node not in missing:
                continue
            values[node] = inputs if node.op == "placeholder" else compute_node(self._module, node, values.__getitem__)
            if node in self._kept:
                memory.keep(keys[node], batch, number, values[node])
            for need in node.all_input_nodes:
                if self._last_use[need] == number:
                    values.pop(need, None)
        return values[self._output]

    def _keys(self) -> dict[fx.Node, Hashable]:
        """A name for everything that leads to each node's result, but the batch."""
        ids: dict[fx.Node, int] = {}
        for number, node in enumerate(self._nodes):
            settings: tuple[Hashable, ...] = ()
            if node in self._layers:
                layer = self._layers[node]
                settings = (layer.weight_bits, layer.activation_bits)
            elif node in self._stored:
                settings = (self._stored[node].active,)
            key = (number, *settings, *(ids[need] for need in node.all_input_nodes))
            ids[node] = self._ids.setdefault(key, len(self._ids))
        # Numbers of the integer engine's results are in the same memory.
        return {node: ("float", number) for node, number in ids.items()}
