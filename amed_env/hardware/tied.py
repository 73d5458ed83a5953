"""A device as it looks from a workload in which some layers are tied: costs are those of the network behind it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from amed_env.errors import UnsupportedLayerError
from amed_env.hardware.choices import layer_precisions
from amed_env.hardware.costs import backend_capabilities, cost_table, evaluate_cost, evaluate_costs
from amed_env.hardware.protocol import AnswerStore, Capabilities, Cost, CostTable, HardwareBackend, LayerCost
from amed_env.problem.allocation import BitAllocation, Precision
from amed_env.problem.ties import Ties
from amed_env.problem.workload import Workload


class TiedDevice(HardwareBackend):
    """Answers for groups of layers with what their layers cost on a device.

    Args:
        device: The device.
        ties: The network and its groups. Workloads that the device is asked about must be `ties.reduced()`.
    """

    def __init__(self, device: HardwareBackend, ties: Ties) -> None:
        self.device, self.ties = device, ties
        # No retries here: `evaluate_cost` makes those of the device behind, and every layer more would multiply them.
        self.name, self.timeout_s, self.retries = device.name, device.timeout_s, 0

    def capabilities(self) -> Capabilities:
        """Those of the device; the tied layers of one group are of one kind."""
        return backend_capabilities(self.device)

    def allowed_precisions(
        self, workload: Workload, precisions: Sequence[Precision]
    ) -> Sequence[Collection[Precision]]:
        """What all layers of a group can run at."""
        self._check(workload)
        of_layers = dict(
            zip(self.ties.full.layer_names, layer_precisions(self.device, self.ties.full, precisions), strict=True)
        )
        return [set(precisions).intersection(*(of_layers[name] for name in group)) for group in self.ties.groups]

    def evaluate(self, workload: Workload, allocation: BitAllocation) -> Cost:
        """Cost of the network; the breakdown has the groups."""
        self._check(workload)
        expanded = self.ties.expand(allocation)
        return self._merged(evaluate_cost(self.device, self.ties.full, expanded), allocation)

    def evaluate_many(self, workload: Workload, allocations: Sequence[BitAllocation]) -> list[Cost]:
        """Costs of the network under many allocations."""
        self._check(workload)
        costs = evaluate_costs(self.device, self.ties.full, [self.ties.expand(a) for a in allocations])
        return [self._merged(cost, allocation) for cost, allocation in zip(costs, allocations, strict=True)]

    def table(self, workload: Workload, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> CostTable:
        """Costs of every group: the sums over its layers."""
        self._check(workload)
        return self._reduced(cost_table(self.device, self.ties.full, weight_bits, activation_bits))

    def lower_bound(
        self, workload: Workload, weight_bits: Sequence[int], activation_bits: Sequence[int]
    ) -> CostTable | None:
        """What the device knows, summed over the layers of a group."""
        bound = self.device.lower_bound(self.ties.full, weight_bits, activation_bits)
        return None if bound is None else self._reduced(bound)

    def _check(self, workload: Workload) -> None:
        if workload.layer_names != self.ties.names:
            unknown = [name for name in workload.layer_names if name not in self.ties.names]
            raise UnsupportedLayerError(
                f"device {self.name!r} answers for the tied layers of {self.ties.full.name!r} only: "
                f"{', '.join(self.ties.names)}; it was asked about {', '.join(unknown) or 'some of them'}."
            )

    def keep_answers(self, store: AnswerStore | None) -> None:
        """See `HardwareBackend.keep_answers`."""
        self.device.keep_answers(store)

    def _reduced(self, table: CostTable) -> CostTable:
        row_of = {name: row for row, name in enumerate(table.layers)}
        rows = [[row_of[name] for name in group] for group in self.ties.groups]
        metrics = {}
        for metric, values in table.metrics.items():
            metrics[metric] = np.stack([values[group].sum(axis=0) for group in rows])
        return CostTable(self.ties.names, table.weight_bits, table.activation_bits, metrics)

    def _merged(self, cost: Cost, allocation: BitAllocation) -> Cost:
        if not cost.layers:
            return cost
        by_name = {layer.name: layer for layer in cost.layers}
        layers = []
        for name, group in zip(self.ties.names, self.ties.groups, strict=True):
            parts = [by_name[member] for member in group]
            shared = set.intersection(*(set(part.metrics) for part in parts))
            ordered = [metric for metric in parts[0].metrics if metric in shared]
            totals = Cost.of_layers(cost.device, parts, ordered).metrics
            layers.append(LayerCost(name, allocation[name], totals, parts[0].bound if len(parts) == 1 else None))
        return Cost(cost.device, cost.metrics, tuple(layers))
