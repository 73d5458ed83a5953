"""`amed-released`: the walk of `amed` with the faults of AMED's released code, for comparison only.

Each fault is a switch, on by default. What the agent *believes* is distorted; what is recorded and claimed is not:
every trial of the search has its true quality and its true costs.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from amed_env.agents.options import parse_agent_options
from amed_env.agents.session import SearchSession
from amed_env.agents.walks.amed import AmedAgent, walk_task
from amed_env.agents.walks.metropolis import Proposal
from amed_env.agents.walks.options import AmedOptions
from amed_env.agents.walks.walk import AllocationWalk
from amed_env.evaluation.quality import Quality
from amed_env.evaluation.store import Trial
from amed_env.hardware.simulator.systolic import gemm_cycles
from amed_env.problem.allocation import Precision
from amed_env.problem.objective import BUDGET_METRICS, REFERENCE_BITS
from amed_env.problem.workload import Layer, Workload
from amed_env.tasks.task import Task

FloatArray = npt.NDArray[np.float64]

ARRAY_SIDE = 32
"""Rows and columns of the array that the distorted latency belongs to: 64 filters fill its columns twice."""
CLOCK_MHZ = 200.0
DRAM_BYTES_PER_CYCLE = 16.0
DRAM_FACTOR = 64.0
"""By how much the released code counts too much external traffic."""


class ReleasedOptions(AmedOptions):
    """Options of `amed-released`: those of `amed`, and a switch for every fault.

    Attributes:
        proposal: As in `amed`, but the law itself by default.
        uncorrected_acceptance: Proposals come from p and are accepted with p(b) / p(a): the walk rests at p squared.
        reference_in_milliseconds: The reference has the latency in ms where ζ has a factor of the 8-bit latency.
        frozen_network: Widths never reach the network after it was converted once: the agent believes that every
            allocation has the loss and the accuracy of the first one.
        filters_plus_one: Narrow layers count n // ratio + 1 filters (ratio 2, 3, 4 at 4, 3, 2 bits), so 64 filters at
            4 bits (33) fill 32 columns twice, as at 8 bits.
        inflated_dram: External traffic counts 64-fold.
    """

    proposal: Proposal = "scores"
    uncorrected_acceptance: Annotated[bool, Field(strict=True)] = True
    reference_in_milliseconds: Annotated[bool, Field(strict=True)] = True
    frozen_network: Annotated[bool, Field(strict=True)] = True
    filters_plus_one: Annotated[bool, Field(strict=True)] = True
    inflated_dram: Annotated[bool, Field(strict=True)] = True

    @property
    def corrected(self) -> bool:
        """Whether the acceptance has Hastings' factor."""
        return not self.uncorrected_acceptance


class AmedReleasedAgent(AmedAgent):
    """The walk with the faults of the released code.

    Args:
        **options: See `ReleasedOptions`.

    Raises:
        UnknownNameError: If an option is unknown.
        AgentError: If a value is of the wrong type or out of range.
    """

    name = "amed-released"

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options: ReleasedOptions = parse_agent_options(self.name, ReleasedOptions, options)

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`; raises what `amed` raises."""
        task = walk_task(self.name, session.task, self.options)
        walk = ReleasedWalk(session, task, self.options)
        self.scores = walk.scores
        walk.run()


class ReleasedWalk(AllocationWalk):
    """A walk that believes what the released code would have measured.

    Args:
        session: The search.
        task: Its task, or the same with more pins.
        options: The faults and the numbers of the walk.
    """

    options: ReleasedOptions

    def __init__(self, session: SearchSession, task: Task, options: ReleasedOptions) -> None:
        super().__init__(session, task, options)
        self._first: Quality | None = None
        self._latency: FloatArray | None = None
        if options.filters_plus_one or options.inflated_dram:
            self._latency = released_latency_ms(
                task.workload,
                (*task.precisions, Precision(REFERENCE_BITS, REFERENCE_BITS)),
                filters_plus_one=options.filters_plus_one,
                dram_factor=DRAM_FACTOR if options.inflated_dram else 1.0,
            )

    def believed_quality(self, trial: Trial) -> Quality:
        """What the agent takes for the quality of a trial."""
        if self._first is None:
            self._first = trial.quality
        return self._first if self.options.frozen_network else trial.quality

    def believed_latency_ms(self, trial: Trial) -> tuple[float, float]:
        """What the agent takes for the latency of a trial, and for that of uniform 8 bit, in ms.

        Without a fault of the latency these are the device's own; where it reports none, its first cost and unit.
        """
        if self._latency is not None:
            rows = np.arange(len(self.choices))
            return float(self._latency[rows, self.choices].sum()), float(self._latency[:, -1].sum())
        for metric in BUDGET_METRICS.values():
            if metric in trial.costs and self.cost_reference.get(metric):
                return trial.costs[metric], self.cost_reference[metric]
        return 1.0, 1.0

    def zeta(self, trial: Trial) -> float:
        """The believed quality score."""
        latency, of_8_bit = self.believed_latency_ms(trial)
        return self._score(trial, latency / of_8_bit)

    def comparable(self, trial: Trial) -> float:
        """What the reference learns: with the fault of the units, the same sum with the latency in ms."""
        latency, of_8_bit = self.believed_latency_ms(trial)
        return self._score(trial, latency if self.options.reference_in_milliseconds else latency / of_8_bit)

    def _score(self, trial: Trial, latency: float) -> float:
        return self.score.zeta_of(self.believed_quality(trial), latency) * self.penalty(trial)


def released_latency_ms(
    workload: Workload, precisions: tuple[Precision, ...], *, filters_plus_one: bool, dram_factor: float
) -> FloatArray:
    """Latency as the released code would count it, on a weight-stationary array of 32 x 32: float64 (L, P), in ms.

    Args:
        workload: The layers.
        precisions: P precisions.
        filters_plus_one: Whether narrow layers keep one filter more than they should.
        dram_factor: By how much external traffic counts.
    """
    return np.asarray(
        [
            [_layer_ms(layer, precision, int(filters_plus_one), dram_factor) for precision in precisions]
            for layer in workload
        ]
    )


def _layer_ms(layer: Layer, precision: Precision, more: int, dram_factor: float) -> float:
    ratio = max(1, round(REFERENCE_BITS / max(precision)))  # 2, 3 and 4 times at 4, 3 and 2 bits
    filters = -(-layer.n // ratio)
    if more and ratio > 1:
        filters = layer.n // ratio + 1
    compute = layer.groups * int(gemm_cycles(layer.m, filters, layer.k, ARRAY_SIDE, ARRAY_SIDE, "ws"))
    bits = layer.weight_elements * precision.weight_bits
    bits += (layer.input_elements + layer.output_elements) * precision.activation_bits
    traffic = dram_factor * bits / 8 / DRAM_BYTES_PER_CYCLE
    return max(compute, traffic) / (CLOCK_MHZ * 1e3)
