"""Numbers of a training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from amed_env.problem.score import Score
from amed_env.support.typed_fields import TypedFields

Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]


class TrainingSettings(TypedFields):
    """Numbers of a training.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images of a step.
        learning_rate: At the start; it falls to zero along a cosine. With `adam` it is a part of a tensor's own size:
            0.01 moves weights by about a hundredth of their root mean square in a step.
        optimizer: `adam`, or `sgd` with Nesterov momentum, for which step sizes rely on LSQ's gradient scale.
        weight_decay: Decoupled (AdamW) or as in SGD; of weights alone.
        distill: Part of the loss that is the divergence from the float network's class probabilities; 0 for none.
        temperature: That the probabilities are softened by.
        per_channel: Whether every output channel of a weight has a step size of its own.
        batch_norm: `folded` trains the weights with their batch norms folded; `inserted` follows every convolution with
            a batch norm meanwhile, which is folded in the end.
        patience: Epochs without a better validation after which training ends; None for no early stop.
        seed: Of order and augmentation.
    """

    epochs: Whole = 10
    batch_size: Whole = 128
    learning_rate: Positive = 0.01
    optimizer: Literal["adam", "sgd"] = "adam"
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4
    distill: Annotated[float, Field(ge=0, le=1)] = 0.0
    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0
    per_channel: bool = True
    batch_norm: Literal["folded", "inserted"] = "folded"
    patience: Whole | None = None
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)] = 0

    @classmethod
    def title(cls) -> str:
        """See `TypedFields.title`."""
        return "training"


def settings_for_score(score: Score, seed: int = 0) -> TrainingSettings:
    """What a network is trained with for a score.

    What is scored by its distance from the float network is trained to come near to it: the loss is then the score.
    """
    return TrainingSettings(distill=1.0 if score.against_float else 0.0, temperature=1.0, seed=seed % 2**31)
