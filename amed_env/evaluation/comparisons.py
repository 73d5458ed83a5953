"""How far outputs are from those of the float network, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from amed_env.errors import DataError, InputError
from amed_env.problem.score import DIVERGENCE, SQUARED_ERROR, Score
from amed_env.support.text import tensor_text

_AT_ONCE = 2**22
"""Outputs that are compared together: 32 MiB in float64, while a batch of masks may have a hundred times as many."""


class Comparison(Protocol):
    """What compares a batch of outputs with the float network's.

    Attributes:
        score: What the mean over samples is.
        normalised: Whether that mean is to be divided by how much the float outputs vary (`RunningSpread.per_sample`).
    """

    score: Score
    normalised: bool

    def values(
        self, outputs: torch.Tensor, float_outputs: torch.Tensor, counting: torch.Tensor | None = None
    ) -> torch.Tensor:
        """float64 (N,) of outputs (N, …); `counting` (N, T) says which tokens count, if not all do."""


class KullbackLeibler:
    """Kullback-Leibler divergence KL(float ‖ quantized) of class probabilities in nats; of masks and tokens their mean.

    Args:
        axis: Axis of the classes.
    """

    score, normalised = DIVERGENCE, False

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def values(
        self, outputs: torch.Tensor, float_outputs: torch.Tensor, counting: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Comparison.values`."""

        def divergences(part: torch.Tensor, reference: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
            logarithms = F.log_softmax(part.double(), dim=self.axis)
            truth = F.log_softmax(reference.double(), dim=self.axis)
            terms = F.kl_div(logarithms, truth, reduction="none", log_target=True)
            # A divergence is never negative; sums of rounded logarithms can be, by their last bits.
            return _mean(terms.sum(dim=self.axis), tokens).clamp_(min=0.0)

        return _in_parts(divergences, outputs, float_outputs, self._tokens(outputs, counting))

    def entropies(self, float_outputs: torch.Tensor, counting: torch.Tensor | None = None) -> torch.Tensor:
        """Entropy of the float network's class probabilities in nats: float64 (N,).

        The divergence and this make the cross-entropy against those probabilities.
        """

        def entropies(part: torch.Tensor, _: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
            logarithms = F.log_softmax(part.double(), dim=self.axis)
            return _mean(-(logarithms.exp() * logarithms).sum(dim=self.axis), tokens)

        return _in_parts(entropies, float_outputs, float_outputs, self._tokens(float_outputs, counting))

    def _tokens(self, outputs: torch.Tensor, counting: torch.Tensor | None) -> torch.Tensor | None:
        """What says which positions of class scores count; nothing if the positions are no tokens."""
        return counting if are_of_tokens(outputs, counting) and self.axis != 1 else None


class SquaredError:
    """Squared distance between outputs; over how much the float outputs vary it is 1 less their R²."""

    score, normalised = SQUARED_ERROR, True

    def values(
        self, outputs: torch.Tensor, float_outputs: torch.Tensor, counting: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Comparison.values`."""

        def squares(part: torch.Tensor, reference: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
            return (part.double() - reference.double()).square().reshape(len(part), -1).sum(dim=1)

        return _in_parts(squares, counted(outputs, counting), counted(float_outputs, counting), None)


class OwnComparison:
    """A function of the user: (outputs, float outputs) of a batch to a value a sample (N,), or to their mean.

    Less is taken to be better, unless the function has an attribute `higher_is_better` that is true; `unit` and `scale`
    are read too (see `Score`).

    Args:
        function: The function.
    """

    normalised = False

    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        self.function = function
        name = getattr(function, "__name__", type(function).__name__)
        self.score = Score(
            name,
            getattr(function, "title", name),
            bool(getattr(function, "higher_is_better", False)),
            getattr(function, "unit", ""),
            getattr(function, "scale", "open"),
            against_float=True,
        )

    def values(
        self, outputs: torch.Tensor, float_outputs: torch.Tensor, counting: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Comparison.values`."""
        outputs, float_outputs = counted(outputs, counting), counted(float_outputs, counting)
        try:
            returned = torch.as_tensor(self.function(outputs, float_outputs)).double()
        except Exception as error:  # the function is code of the user
            raise InputError(
                f"the score function {self.score.name!r} failed on outputs {tensor_text(outputs)}: "
                f"{type(error).__name__}: {error}."
            ) from error
        if returned.dim() == 0:
            return returned.expand(len(outputs))
        if returned.shape != (len(outputs),):
            raise DataError(
                f"the score function {self.score.name!r} returned {tensor_text(returned)} for {len(outputs)} samples; "
                "return a value for each of them, (N,), or their mean."
            )
        return returned


def are_of_tokens(outputs: torch.Tensor, counting: torch.Tensor | None) -> bool:
    """Whether outputs (N, T, …) are of the tokens of which (N, T) says whether they count."""
    return counting is not None and outputs.dim() > 2 and outputs.shape[:2] == counting.shape


def counted(outputs: torch.Tensor, counting: torch.Tensor | None) -> torch.Tensor:
    """Outputs with zeros at tokens that do not count: whatever a network returns for padding means nothing."""
    if counting is None or not are_of_tokens(outputs, counting):
        return outputs
    padding = ~counting.to(outputs.device)
    return outputs.masked_fill(padding.reshape(*padding.shape, *[1] * (outputs.dim() - 2)), 0.0)


def _mean(terms: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
    """Mean over the positions of each sample that count: (N,) of (N, …)."""
    if tokens is None:
        return terms.reshape(len(terms), -1).mean(dim=1)
    sums = terms.masked_fill(~tokens, 0.0).sum(dim=1)
    return sums / tokens.sum(dim=1).clamp_(min=1)


def _in_parts(
    function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor],
    outputs: torch.Tensor,
    float_outputs: torch.Tensor,
    tokens: torch.Tensor | None,
) -> torch.Tensor:
    """Values of all samples, a few samples at a time where each has many outputs."""
    size = max(1, _AT_ONCE // max(1, outputs[0].numel()))
    values = []
    for start in range(0, len(outputs), size):
        rows = slice(start, start + size)
        values.append(function(outputs[rows], float_outputs[rows], None if tokens is None else tokens[rows]))
    return torch.cat(values)
