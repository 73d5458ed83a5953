"""Options of AMED's walk."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from amed_env.agents.walks.metropolis import Proposal
from amed_env.problem.objective import BUDGET_METRICS
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
            on the search split (no penalty where samples have no labels), None for no penalty.
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

    # Tuned on the cells that `AmedAgent.saw` names (docs/decisions.md, 72).
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
        if threshold == "float":
            threshold = None if task.float_quality.correct is None else task.float_quality.accuracy
        return QualityScore(
            loss_weight=self.loss_weight,
            latency_weight=self.latency_weight,
            accuracy_threshold=threshold,
            accuracy_penalty=self.accuracy_penalty,
        )

    def filtered(self, task: Task) -> frozenset[str]:
        """Metrics whose limits are never exceeded."""
        return frozenset({BUDGET_METRICS["memory"]} if self.budgets == "penalty" else task.limits)

    @property
    def corrected(self) -> bool:
        """Whether the acceptance has Hastings' factor."""
        return True
