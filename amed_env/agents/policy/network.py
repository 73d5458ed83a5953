"""The network of a goal-conditioned policy: a transformer over layers, and a head that spends the budget step by step.

The encoder sees all layers at once (what they are, how much each choice hurts and costs). The head then decides layer
by layer in network order, knowing what is left of the budget; a choice after which the budget could not be met any
more is masked. So every sampled allocation is within its budgets, where costs add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from amed_env.agents.policy.problem import CHOICE_FEATURES, LAYER_FEATURES, Problem

TOLERANCE = 1e-6  # of a share of the budget: sums in float32 are no more exact
_HEAD_FEATURES = CHOICE_FEATURES + 5  # the share of what is left, and the four numbers of the state
_FORBIDDEN = -1e9


@dataclass(frozen=True)
class Problems:
    """Problems with the same numbers of layers, precisions and metrics, as tensors of a batch.

    Numbers are float32, after `double` float64; those of `Rollouts` are as the network's.

    Attributes:
        layers: float32 (B, L, LAYER_FEATURES).
        choices: float32 (B, L, P, CHOICE_FEATURES).
        costs: float32 (B, L, P, M).
        choosable: bool (B, L, P).
    """

    layers: torch.Tensor
    choices: torch.Tensor
    costs: torch.Tensor
    choosable: torch.Tensor

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> Problems:
        """A batch of problems."""

        def stack(name: str) -> torch.Tensor:
            return torch.from_numpy(np.stack([getattr(problem, name) for problem in problems]))

        return cls(stack("layers"), stack("choices"), stack("costs").permute(0, 2, 3, 1), stack("choosable"))

    def double(self) -> Problems:
        """The same in float64, for a network in float64."""
        return Problems(self.layers.double(), self.choices.double(), self.costs.double(), self.choosable)


@dataclass(frozen=True)
class Rollouts:
    """Sampled allocations.

    Attributes:
        choices: int64 (B, K, L), numbers of precisions.
        log_probability: float (B, K), with gradient.
        entropy: float (B, K), mean over the layers, with gradient.
    """

    choices: torch.Tensor
    log_probability: torch.Tensor
    entropy: torch.Tensor


class PolicyNetwork(nn.Module):
    """Scores choices; see the module's text.

    Args:
        width: Size of a layer's encoding.
        depth: Transformer blocks.
        heads: Heads of attention.
    """

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.configuration = {"width": width, "depth": depth, "heads": heads}
        self.choice_in = nn.Sequential(nn.Linear(CHOICE_FEATURES, width), nn.ReLU(), nn.Linear(width, width))
        self.layer_in = nn.Linear(LAYER_FEATURES + 3, width)
        block = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.head_layer = nn.Linear(width, width)
        self.head_choice = nn.Linear(_HEAD_FEATURES, width)
        self.head_out = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def encode(self, problems: Problems) -> torch.Tensor:
        """Encodings of all layers: float32 (B, L, width)."""
        allowed = problems.choosable.unsqueeze(-1)
        per_choice = self.choice_in(problems.choices).masked_fill(~allowed, 0.0)
        pooled = per_choice.sum(dim=2) / allowed.sum(dim=2).clamp(min=1)
        least, most = _extremes(problems)
        whole = torch.stack([least.sum(1).amax(-1), most.sum(1).amax(-1).log1p(), most.sum(1).mean(-1).log1p()], -1)
        whole = whole.unsqueeze(1).expand(-1, problems.layers.shape[1], -1)
        encoded: torch.Tensor = self.encoder(self.layer_in(torch.cat([problems.layers, whole], dim=-1)) + pooled)
        return encoded

    def rollout(
        self,
        problems: Problems,
        samples: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        given: torch.Tensor | None = None,
    ) -> Rollouts:
        """Decide all layers.

        Args:
            problems: B problems.
            samples: K allocations for each.
            generator: Where random numbers come from; None takes the most probable choice everywhere.
            temperature: Divides the scores.
            given: int64 (B, K, L) choices whose probabilities are asked for, in place of sampling.
        """
        hidden = self.head_layer(self.encode(problems))
        least, most = _extremes(problems)
        rest, most_rest = _from_here_on(least), _from_here_on(most)
        batch, layers, precisions, metrics = problems.costs.shape
        used = problems.costs.new_zeros(batch, samples, metrics)
        last = mean = problems.costs.new_zeros(batch, samples)
        taken, probabilities, entropies = [], [], []
        for t in range(layers):
            left = 1.0 - used - rest[:, None, t]
            spread = (most_rest - rest)[:, None, t]
            room = torch.where(spread > 0, left / spread.clamp(min=1e-12), torch.ones_like(left)).amin(-1).clamp(0, 1)
            extra = (problems.costs[:, t] - least[:, t, None])[:, None]  # (B, 1, P, M)
            allowed = (extra <= left.unsqueeze(2) + TOLERANCE).all(-1) & problems.choosable[:, None, t]
            share = (extra / left.unsqueeze(2).clamp(min=1e-6)).amax(-1).clamp(0, 2)
            state = torch.stack([room, left.amin(-1).clamp(-1, 1), last, mean], dim=-1)
            features = torch.cat(
                [
                    problems.choices[:, None, t].expand(-1, samples, -1, -1),
                    share.unsqueeze(-1),
                    state.unsqueeze(2).expand(-1, -1, precisions, -1),
                ],
                dim=-1,
            )
            scores = self.head_out(hidden[:, None, None, t] + self.head_choice(features)).squeeze(-1) / temperature
            # Where costs are lower bounds, or by rounding, nothing may be allowed: then the cheapest choice is.
            cheapest = _cheapest(extra, problems.choosable[:, None, t]).expand_as(allowed)
            allowed = torch.where(allowed.any(-1, keepdim=True), allowed, cheapest)
            scores = scores.masked_fill(~allowed, _FORBIDDEN)
            log = torch.log_softmax(scores, dim=-1)
            if given is not None:
                choice = given[:, :, t]
            elif generator is None:
                choice = log.argmax(-1)
            else:
                # The Gumbel trick: the largest of log-probabilities with this noise is a sample of the distribution.
                noise = torch.rand(log.shape, generator=generator).to(log.dtype).clamp(min=1e-20)
                choice = (log.detach() - (-noise.log()).log()).argmax(-1)
            taken.append(choice)
            probabilities.append(log.gather(-1, choice.unsqueeze(-1)).squeeze(-1))
            entropies.append(-(log.exp() * log.clamp(min=-50)).sum(-1))
            index = choice[..., None, None].expand(-1, -1, 1, metrics)
            cost = problems.costs[:, None, t].expand(-1, samples, -1, -1).gather(2, index)
            used = used + cost.squeeze(2)
            last = problems.choices[:, t, :, 0].gather(1, choice)
            mean = mean + (last - mean) / (t + 1)
        return Rollouts(
            torch.stack(taken, -1), torch.stack(probabilities, -1).sum(-1), torch.stack(entropies, -1).mean(-1)
        )


def _extremes(problems: Problems) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the most that each layer can cost: two of (B, L, M)."""
    allowed = problems.choosable.unsqueeze(-1)
    least = problems.costs.masked_fill(~allowed, torch.inf).amin(2)
    return least, problems.costs.masked_fill(~allowed, -torch.inf).amax(2)


def _from_here_on(values: torch.Tensor) -> torch.Tensor:
    """Sums over the layers from each on: (B, L, M)."""
    return values.flip(1).cumsum(1).flip(1)


def _cheapest(extra: torch.Tensor, choosable: torch.Tensor) -> torch.Tensor:
    """The choice that takes least of the budgets, as a mask (B, 1, P)."""
    worst = extra.amax(-1).masked_fill(~choosable, torch.inf)
    return torch.nn.functional.one_hot(worst.argmin(-1), worst.shape[-1]).bool()
