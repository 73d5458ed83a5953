"""Training of a goal-conditioned policy.

First it imitates the exact solver of the additive proxy (predicted loss) at random budgets and devices. Then, where
the truth is known, it is improved on it: on-policy by REINFORCE, with the mean of several samples of the same problem
as its baseline (Kool et al., "Buy 4 REINFORCE samples, get a baseline for free", 2019), and off-policy by imitating
the best known trial that is within the problem's budget (Oh et al., "Self-imitation learning", 2018), where the trials
of a tabular task are its table. Where it is not known, imitation goes on, so that a network that no table has is
answered as the solver would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from amed_env.agents.policy.network import PolicyNetwork, Problems
from amed_env.agents.policy.problem import CONDITIONS, SENSITIVITIES
from amed_env.agents.policy.sources import ImaginedSource, ProblemSource

Progress = Callable[[str, int, dict[str, float]], None]

_AVERAGE = 0.99
"""Decay of the moving average of the weights that is kept in the end."""


@dataclass(frozen=True)
class TrainingOptions:
    """How a policy is trained.

    Attributes:
        imitation_steps: Steps of imitation.
        steps: Steps of improvement on the true accuracy.
        problems: Problems of one step, all of one task.
        samples: Allocations that are sampled for each problem.
        learning_rate: Of Adam; it falls to a tenth by a cosine.
        entropy: Weight of the entropy bonus at the start; it falls to zero.
        imitation: Weight of imitating the best known trial during the improvement.
        imagined: Share of the steps on imagined networks.
        conditioned: Whether the policy sees the budget and the costs (an ablation if not).
        sensitivities: Whether it sees predicted losses (an ablation if not).
        seed: Seed of everything.
    """

    imitation_steps: int = 400
    steps: int = 4_000
    problems: int = 16
    samples: int = 24
    learning_rate: float = 1e-3
    entropy: float = 0.05
    imitation: float = 0.3
    imagined: float = 0.4
    conditioned: bool = True
    sensitivities: bool = True
    seed: int = 0


def train(
    network: PolicyNetwork,
    sources: Sequence[ProblemSource],
    options: TrainingOptions,
    progress: Progress | None = None,
) -> None:
    """Train a policy in place.

    Args:
        network: The network.
        sources: Where problems come from; steps take them in turn.
        options: How.
        progress: Called with the phase, the step, and figures.
    """
    training = _Training(network, sources, options)
    for step in range(options.imitation_steps):
        phase, figures = training.imitate(step)
        if progress is not None:
            progress(phase, step, figures)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        training.optimizer, max(options.steps, 1), eta_min=options.learning_rate / 10
    )
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(_AVERAGE))
    for step in range(options.steps):
        phase, figures = training.improve(step)
        schedule.step()
        average.update_parameters(network)
        if progress is not None:
            progress(phase, step, figures)
    if options.steps:
        network.load_state_dict(average.module.state_dict())  # steps differ by luck; their mean hardly does


class _Training:
    """The two kinds of steps, with what they share."""

    def __init__(self, network: PolicyNetwork, sources: Sequence[ProblemSource], options: TrainingOptions) -> None:
        self._network, self._options = network, options
        self._sources, self._imagined = list(sources), ImaginedSource()
        self._rng = np.random.default_rng(options.seed)
        self._generator = torch.Generator().manual_seed(options.seed)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)

    def _source(self, step: int) -> ProblemSource:
        if self._rng.random() < self._options.imagined:
            return self._imagined
        return self._sources[step % len(self._sources)]

    def _draw(self, source: ProblemSource, truth: bool) -> tuple[Problems, torch.Tensor]:
        """Problems, and the best choices: int64 (B, 1, L)."""
        problems, best = source.draw(self._rng, self._options.problems, truth)
        for problem in problems:
            if not self._options.conditioned:
                problem.choices[:, :, CONDITIONS] = 0.0
            if not self._options.sensitivities:
                problem.choices[:, :, SENSITIVITIES] = 0.0
        return Problems.of(problems), torch.from_numpy(best)[:, None]

    def _likelihood(self, problems: Problems, best: torch.Tensor) -> torch.Tensor:
        return self._network.rollout(problems, 1, given=best).log_probability.clamp(min=-100).mean()

    def imitate(self, step: int) -> tuple[str, dict[str, float]]:
        """A step on the solutions of the proxy."""
        source = self._source(step)
        return f"imitation on {source.name}", {"loss": self._update(-self._likelihood(*self._draw(source, False)))}

    def improve(self, step: int) -> tuple[str, dict[str, float]]:
        """A step on the truth, or on the solutions of the proxy where there is none."""
        options, source = self._options, self._source(step)
        problems, best = self._draw(source, truth=True)
        if source.accuracy(best.numpy()) is None:
            return f"imitation on {source.name}", {"loss": self._update(-self._likelihood(problems, best))}
        rollouts = self._network.rollout(problems, options.samples, self._generator)
        accuracies = source.accuracy(rollouts.choices.numpy())
        rewards = torch.from_numpy(accuracies).float()
        advantages = rewards - rewards.mean(dim=1, keepdim=True)
        # In points of accuracy; where all samples are alike within a tenth, noise would be blown up to full size.
        advantages = advantages / (rewards.std(dim=1, keepdim=True) + 0.1)
        entropy = options.entropy * (1 - step / options.steps)
        loss = -(advantages * rollouts.log_probability).mean() - entropy * rollouts.entropy.mean()
        if options.imitation:
            loss = loss - options.imitation * self._likelihood(problems, best)
        self._update(loss)
        figures = {"accuracy": float(rewards.mean()), "entropy": float(rollouts.entropy.detach().mean())}
        return f"improvement on {source.name}", figures

    def _update(self, loss: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())
