"""Training of a goal-conditioned policy on tasks of which every allocation is known.

First it imitates the exact solver of the additive proxy (predicted loss) at random budgets and devices. Then it is
improved on the true accuracy: on-policy by REINFORCE, with the mean of several samples of the same problem as its
baseline (Kool et al., "Buy 4 REINFORCE samples, get a baseline for free", 2019), and off-policy by imitating the best
known trial that is within the problem's budget (Oh et al., "Self-imitation learning", 2018), where the trials of a
tabular task are its table. Devices are the named ones and, half of the time, random ones, so that a chip that was
never seen is nothing new.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from amed_env.evaluation.table import TableEvaluator
from amed_env.objective import BUDGET_METRICS
from amed_env.policies.network import PolicyNetwork, Problems
from amed_env.policies.problem import Problem, layer_features, make_problem
from amed_env.task import Task
from amed_env.task_registry import make_task

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
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
        random_devices: Share of problems on random devices.
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
    random_devices: float = 0.5
    conditioned: bool = True
    sensitivities: bool = True
    seed: int = 0


class ProblemSource:
    """Draws problems of one tabular task.

    Args:
        task: Name of a tabular task.
        devices: Devices whose cost tables are used.
        metrics: Budgets by name (`latency`, `energy`); those that a device lacks are left out.
        options: How to train.
    """

    def __init__(self, task: str, devices: Sequence[str], metrics: Sequence[str], options: TrainingOptions) -> None:
        self.name, self._options = task, options
        self.tables: list[FloatArray] = []
        for device in devices:
            on_device = make_task(task, device=device)
            for metric in (BUDGET_METRICS[name] for name in metrics):
                if on_device.capabilities.additive and metric in on_device.costs:
                    costs = on_device.costs[metric]
                    if np.ptp(costs.sum(axis=0)) > 0:  # a device on which no width is cheaper teaches nothing
                        self.tables.append(costs / costs[:, -1].sum())
        self.task: Task = make_task(task, device="bops")
        evaluator = self.task.evaluator
        assert isinstance(evaluator, TableEvaluator)
        self._strides = np.asarray(evaluator.table.strides, dtype=np.int64)
        self._correct = evaluator.table.correct["search"].astype(np.float64)
        self._samples = evaluator.table.float_quality["search"].samples
        loss = evaluator.table.loss["search"].astype(np.float64)
        # Rows from the best to the worst, by what is true and by what the proxy says.
        self._by_truth = np.lexsort((loss, -self._correct))
        self._by_proxy = np.argsort(_sums(self.task.predicted_loss), kind="stable")
        self._layers = layer_features(self.task)
        weights = np.asarray([[layer.weight_elements, layer.macs] for layer in self.task.workload], dtype=np.float64)
        self._shares = weights / weights.sum(axis=0)

    def accuracy(self, choices: npt.NDArray[np.int64]) -> FloatArray:
        """Accuracy in % of choices (…, L)."""
        return np.asarray(100.0 * self._correct[choices @ self._strides] / self._samples)

    def draw(self, rng: np.random.Generator) -> Problem:
        """A problem on a random budget, and on a device of the list or a random one."""
        if not self.tables or rng.random() < self._options.random_devices:
            table = self._random_device(rng)
        else:
            table = self.tables[rng.integers(len(self.tables))]
        least, most = float(table.min(axis=1).sum()), float(table.max(axis=1).sum())
        budget = least * (1 + 1e-6) + (most - least) * rng.random() ** 1.5
        return self.problem(table / budget)

    def problem(self, costs: FloatArray) -> Problem:
        """The problem of costs (L, P) over the limit."""
        problem = make_problem(self._layers, self.task, costs[None])
        hidden = []
        if not self._options.conditioned:
            hidden += [4, 5, 6]
        if not self._options.sensitivities:
            hidden += [1, 2, 3]
        problem.choices[:, :, hidden] = 0.0
        return problem

    def _random_device(self, rng: np.random.Generator) -> FloatArray:
        """Costs (L, P) of a device that does not exist: shares of compute and traffic, and a law of the width."""
        mix = rng.random()
        share = self._shares @ np.array([mix, 1 - mix]) ** rng.uniform(0.5, 1.5)
        share = share * np.exp(rng.normal(0, 0.5, len(share)))
        widths = np.asarray([p.weight_bits for p in self.task.precisions]) / 8.0
        power, floor = rng.uniform(0.5, 2.0), rng.uniform(0.0, 0.3) * rng.integers(2)
        law = floor + (1 - floor) * widths**power
        steps = np.maximum.accumulate(law * np.exp(rng.normal(0, 0.1, (len(share), len(law)))), axis=1)
        table = share[:, None] * steps / steps[:, -1:]
        return np.asarray(table / table[:, -1].sum())

    def solved(self, problem: Problem, truth: bool) -> npt.NDArray[np.int64]:
        """The best choices within the budget, by the true accuracy or by the proxy: int64 (L,)."""
        order = self._by_truth if truth else self._by_proxy
        fitting = _sums(problem.costs[0].astype(np.float64))[order] <= 1.0
        row = order[int(fitting.argmax())]
        return np.asarray(row // self._strides % len(self.task.precisions), dtype=np.int64)


def train(
    network: PolicyNetwork,
    sources: Sequence[ProblemSource],
    options: TrainingOptions,
    progress: Progress | None = None,
) -> None:
    """Train a policy in place.

    Args:
        network: The network.
        sources: Tasks; every step takes the next one.
        options: How.
        progress: Called with the phase, the step, and figures.
    """
    rng = np.random.default_rng(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    _imitate(network, sources, options, optimizer, rng, progress)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, max(options.steps, 1), eta_min=options.learning_rate / 10
    )
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(_AVERAGE))
    for step in range(options.steps):
        source = sources[step % len(sources)]
        drawn = [source.draw(rng) for _ in range(options.problems)]
        problems = Problems.of(drawn)
        rollouts = network.rollout(problems, options.samples, generator)
        rewards = torch.from_numpy(source.accuracy(rollouts.choices.numpy())).float()
        advantages = rewards - rewards.mean(dim=1, keepdim=True)
        advantages = advantages / (rewards.std(dim=1, keepdim=True) + 0.1)
        entropy = options.entropy * (1 - step / options.steps)
        loss = -(advantages * rollouts.log_probability).mean() - entropy * rollouts.entropy.mean()
        if options.imitation:
            loss = loss - options.imitation * _likelihood_of_best(network, source, drawn, problems)
        _update(network, optimizer, loss)
        schedule.step()
        average.update_parameters(network)
        if progress is not None:
            figures = {"accuracy": float(rewards.mean()), "entropy": float(rollouts.entropy.detach().mean())}
            progress(f"improvement on {source.name}", step, figures)
    if options.steps:
        network.load_state_dict(average.module.state_dict())  # steps differ by luck; their mean hardly does


def _likelihood_of_best(
    network: PolicyNetwork, source: ProblemSource, drawn: Sequence[Problem], problems: Problems
) -> torch.Tensor:
    best = torch.from_numpy(np.stack([source.solved(problem, truth=True) for problem in drawn]))[:, None]
    return network.rollout(problems, 1, given=best).log_probability.clamp(min=-100).mean()


def _imitate(
    network: PolicyNetwork,
    sources: Sequence[ProblemSource],
    options: TrainingOptions,
    optimizer: torch.optim.Optimizer,
    rng: np.random.Generator,
    progress: Progress | None,
) -> None:
    for step in range(options.imitation_steps):
        source = sources[step % len(sources)]
        drawn = [source.draw(rng) for _ in range(options.problems)]
        wanted = torch.from_numpy(np.stack([source.solved(problem, truth=False) for problem in drawn]))[:, None]
        rollouts = network.rollout(Problems.of(drawn), 1, given=wanted)
        loss = -rollouts.log_probability.clamp(min=-100).mean()
        _update(network, optimizer, loss)
        if progress is not None:
            progress(f"imitation on {source.name}", step, {"loss": float(loss.detach())})


def _update(network: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def _sums(values: FloatArray) -> FloatArray:
    """Sums of one value a layer for every row of a table: (P^L,)."""
    sums = np.zeros(1)
    for row in values:
        sums = np.add.outer(sums, row).reshape(-1)
    return sums
