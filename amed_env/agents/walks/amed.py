"""`amed`: AMED's random walk over allocations, led by a table of scores; without training in between.

Kimhi, Rozen, Mendelson, Baskin: AMED, arXiv 2205.15437. The state is a whole allocation. A table S has a score for each
precision of each layer; a Metropolis-Hastings walk, whose stationary law is softmax(S / T), moves on; the quality score
ζ of where it arrives is compared with a moving reference, and the cells of that allocation learn from it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from amed_env.agents.options import parse_agent_options
from amed_env.agents.protocol import Agent
from amed_env.agents.session import SearchSession
from amed_env.agents.walks.metropolis import Proposal, ScoreTable
from amed_env.agents.walks.walk import AllocationWalk, WalkSettings
from amed_env.errors import AgentError
from amed_env.problem.objective import BUDGET_METRICS, REFERENCE_BITS
from amed_env.problem.quality_score import NotNegative, QualityScore
from amed_env.tasks.task import Task

Rate = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class AmedOptions(BaseModel):
    """Options of `amed`.

    Attributes:
        loss_weight: α of the quality score; see `quality_score.QualityScore`.
        latency_weight: β of the quality score.
        accuracy_threshold: Accuracy, as a fraction, below which ζ is penalised; `float` for that of the float network
            on the search split, None for no penalty.
        accuracy_penalty: λ of the quality score.
        temperature: T of softmax(S / T), in decades of ζ.
        learning_rate: η, how far the cells of an allocation move to what it was worth.
        reference_rate: How far ζ_ref moves to the ζ of each allocation (exponential moving average).
        moves: Moves of single layers between two evaluations; None for one a layer.
        proposal: Where moves come from: `uniform` over the other precisions, or `scores`, the law itself.
        reheating: Factor by which the temperature grows for each allocation in a row that is known already; it falls
            back as soon as one is new.
        budgets: `filter` never enters what exceeds a budget. `penalty` filters by memory alone, as AMED does, and
            multiplies ζ by 1 + budget_penalty x violation for the others.
        budget_penalty: See `budgets`.
        pin_ends: Whether the first and the last layer keep 8 bits, unless the task pins them itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss_weight: NotNegative = 1.0
    latency_weight: NotNegative = 0.1
    accuracy_threshold: Fraction | Literal["float"] | None = "float"
    accuracy_penalty: NotNegative = 100.0
    temperature: Annotated[float, Field(gt=0, le=1e3)] = 0.1
    learning_rate: Rate = 0.3
    reference_rate: Rate = 0.1
    moves: Annotated[int, Field(strict=True, ge=1, le=100_000)] | None = None
    proposal: Proposal = "uniform"
    reheating: Annotated[float, Field(ge=1, le=10)] = 1.2
    budgets: Literal["filter", "penalty"] = "filter"
    budget_penalty: NotNegative = 10.0
    pin_ends: bool = False

    def quality_score(self, task: Task) -> QualityScore:
        """The quality score of these options on a task."""
        threshold = self.accuracy_threshold
        return QualityScore(
            loss_weight=self.loss_weight,
            latency_weight=self.latency_weight,
            accuracy_threshold=task.float_quality.accuracy if threshold == "float" else threshold,
            accuracy_penalty=self.accuracy_penalty,
        )

    def settings(self) -> WalkSettings:
        """What the walk itself has to know."""
        only_memory = self.budgets == "penalty"
        return WalkSettings(
            temperature=self.temperature,
            learning_rate=self.learning_rate,
            reference_rate=self.reference_rate,
            moves=self.moves,
            proposal=self.proposal,
            reheating=self.reheating,
            filtered=frozenset({BUDGET_METRICS["memory"]} if only_memory else BUDGET_METRICS.values()),
            budget_penalty=self.budget_penalty if only_memory else 0.0,
        )


class AmedAgent(Agent):
    """AMED's walk: starts at uniform 8 bit and enters only what is within the budgets.

    Args:
        **options: See `AmedOptions`.

    Attributes:
        options: The options.
        scores: The table of the last search, None before the first.

    Raises:
        UnknownNameError: If an option is unknown.
        AgentError: If a value is of the wrong type or out of range.
    """

    name = "amed"
    saw = (
        "kws-dscnn on bops latency=0.4, edge-tpu-like memory=0.55, systolic-32 energy=0.7",
        "digits-cnn on bops latency=0.55, edge-tpu-like memory=0.7, systolic-32 energy=0.4",
    )

    def __init__(self, **options: Any) -> None:
        self.options = parse_agent_options(self.name, AmedOptions, options)
        self.scores: ScoreTable | None = None

    def explore(self, session: SearchSession) -> None:
        """See `Agent.explore`.

        Raises:
            AgentError: If `pin_ends` is set and the task has no 8 bit.
            BudgetError: If the pinned ends leave the budgets out of reach.
        """
        task = walk_task(self.name, session.task, self.options)
        walk = AllocationWalk(session, task, self.options.quality_score(task), self.options.settings())
        self.scores = walk.scores
        walk.run()


def walk_task(agent: str, task: Task, options: AmedOptions) -> Task:
    """The task to walk on: the given one, with its ends at 8 bits if the options say so.

    Raises:
        AgentError: If `pin_ends` is set and the task has no 8 bit.
        BudgetError: If the pinned ends leave the budgets out of reach.
    """
    if not options.pin_ends:
        return task
    if REFERENCE_BITS not in task.free_bits:
        raise AgentError(
            f"agent {agent!r}: pin_ends keeps the first and the last layer at {REFERENCE_BITS} bits, but this task "
            f"chooses from {', '.join(map(str, task.free_bits))}; add {REFERENCE_BITS}, or leave pin_ends out."
        )
    names = task.workload.layer_names
    pins = {**dict.fromkeys((names[0], names[-1]), REFERENCE_BITS), **task.pins}
    return task.with_pins(pins)
