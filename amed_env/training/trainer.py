"""Steps of training, and a state from which they go on as if they had never stopped."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from amed_env.datasets.training import TrainingData
from amed_env.errors import NonFiniteError
from amed_env.quantization.layers import channels_last
from amed_env.quantization.network import QuantizedNetwork
from amed_env.training.layers import OutputMoments, TrainedLayer, TrainedStore
from amed_env.training.network import TrainedNetwork
from amed_env.training.settings import TrainingSettings

MOMENTUM = 0.9
"""Of SGD, as in LSQ's paper."""
SLOW = 0.1
"""Part of the learning rate at which Adam moves step sizes, biases and batch norms, relative to their size."""
WARM_UP = 0.05
"""Part of all steps in which the learning rate rises to its value."""
STEADY_RISE = 100
"""Steps in which it rises where it never falls: 5 % of the two thousand of a walk of 100 trials."""
OBSERVED_SAMPLES = 1_024
"""Calibration samples by which batch norms and learning rates begin."""


@dataclass
class Progress:
    """What happened in a stretch of training.

    Attributes:
        loss: Sum of the samples' losses.
        correct: Samples whose true class had the highest score, under augmentation.
        samples: Samples.
    """

    loss: float = 0.0
    correct: int = 0
    samples: int = 0

    def add(self, loss: float, correct: int, samples: int) -> None:
        """Take in a step of a mean loss."""
        self.loss += loss * samples
        self.correct += correct
        self.samples += samples

    @property
    def mean_loss(self) -> float:
        """Mean loss of a sample."""
        return self.loss / max(1, self.samples)

    @property
    def accuracy(self) -> float:
        """Accuracy as a fraction."""
        return self.correct / max(1, self.samples)


class Trainer:
    """Trains a network at selected widths; order and augmentation depend on the seed and the step alone.

    Args:
        network: The calibrated and prepared network.
        trained: What is trained of it, with all widths that will be needed.
        data: What it is trained on.
        calibration: Float tensor (N, …), on which batch norms and learning rates begin.
        settings: Numbers of the training.
        steady: Whether the learning rate never falls, and training has no last step.
        steps: Steps in all; None for the epochs of the settings.

    Attributes:
        step: Steps that were made.
        steps: Steps in all.
        progress: What happened in this epoch.
        batch_loss: Mean loss of the last batch.
    """

    def __init__(
        self,
        network: QuantizedNetwork,
        trained: TrainedNetwork,
        data: TrainingData,
        calibration: torch.Tensor,
        settings: TrainingSettings,
        steady: bool = False,
        steps: int | None = None,
    ) -> None:
        self.network, self.trained, self.data, self.settings = network, trained, data, settings
        self.batch_size = min(settings.batch_size, len(data))
        self.steps_per_epoch = len(data) // self.batch_size
        self.steps = settings.epochs * self.steps_per_epoch if steps is None else steps
        self.steady = steady
        self.step = 0
        self.progress = Progress()
        self.batch_loss = 0.0
        batches = calibration[:OBSERVED_SAMPLES].split(network.batch_size)
        moments = trained.observe(channels_last(batch) for batch in batches)
        self._optimizer = _make_optimizer(trained, moments, settings)
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._teacher = network.float_module().to(network.device) if settings.distill else None
        self._order: tuple[int, torch.Tensor] | None = None

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return self.step // self.steps_per_epoch

    @property
    def decay(self) -> float:
        """Factor of the learning rate at this step: a short rise; then half a cosine down to zero, if it falls."""
        rising = STEADY_RISE if self.steady else max(1, round(WARM_UP * self.steps))
        rise = min(1.0, (self.step + 1) / rising)
        if self.steady:
            return rise
        part = self.step / max(1, self.steps)
        return rise * 0.5 * (1.0 + math.cos(math.pi * part))

    def _chosen(self) -> torch.Tensor:
        """Positions of this step's images."""
        epoch, number = divmod(self.step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_seed(self.settings.seed, epoch, 0))
            self._order = epoch, torch.randperm(len(self.data), generator=generator)
        return self._order[1][number * self.batch_size : (number + 1) * self.batch_size]

    def train_step(self) -> tuple[float, int, int]:
        """One step of the optimizer.

        Returns:
            Mean loss of the batch, how many samples were right, and how many there were.

        Raises:
            NonFiniteError: If the loss is NaN or infinite; weights are then as they were before the step.
        """
        if self.step % self.steps_per_epoch == 0:
            self.progress = Progress()
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self.decay
        generator = torch.Generator().manual_seed(_seed(self.settings.seed, self.step, 1))
        inputs, labels = self.data.batch(self._chosen(), generator)
        inputs, labels = inputs.to(self.network.device), labels.to(self.network.device)
        self.trained.train()
        scores = self.trained(inputs)
        loss = self._loss(scores, inputs, labels)
        mean = float(loss.detach())
        if not math.isfinite(mean):
            raise NonFiniteError(
                f"training {self.network.workload.name!r} met a loss of NaN or infinity at step {self.step + 1}"
                f"{'' if self.steady else f' of {self.steps}'} (epoch {self.epoch + 1}); choose a lower learning rate."
            )
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self.trained.keep_positive()
        self.step += 1
        made = mean, int((scores.detach().argmax(dim=1) == labels).sum()), len(labels)
        self.progress.add(*made)
        self.batch_loss = mean
        return made

    def _loss(self, scores: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(scores, labels)
        if self._teacher is None:
            return loss
        with torch.no_grad():
            taught = self._teacher(inputs)
        part = self.settings.distill
        return (1.0 - part) * loss + part * distillation_loss(scores, taught, self.settings.temperature)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All that is needed to go on from here: tensors, and values that fit into JSON.

        Order and augmentation follow from the seed and the position, so no generator has a state of its own.
        """
        tensors = {f"network/{name}": tensor for name, tensor in self.trained.state_dict().items()}
        for number, slots in self._optimizer.state_dict()["state"].items():
            for name, value in slots.items():
                if value is not None:
                    tensors[f"optimizer/{number}/{name}"] = torch.as_tensor(value)
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        return copies, {"step": self.step, "progress": asdict(self.progress)}

    def restore(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Go on from a state."""
        weights = {n.removeprefix("network/"): t for n, t in tensors.items() if n.startswith("network/")}
        self.trained.load_state_dict(weights)
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, number, slot = name.split("/")
                slots.setdefault(int(number), {})[slot] = tensor
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": slots})
        self.step, self.progress = int(values["step"]), Progress(**values["progress"])


def distillation_loss(scores: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² x mean Kullback-Leibler divergence of softened class probabilities from the teacher's, in nats.

    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, arXiv 1503.02531.

    Args:
        scores: (N, classes) of the network that learns.
        taught: (N, classes) of the teacher.
        temperature: T.
    """
    learned, target = F.log_softmax(scores / temperature, dim=1), F.log_softmax(taught / temperature, dim=1)
    return F.kl_div(learned, target, log_target=True, reduction="batchmean") * temperature**2


def _seed(seed: int, position: int, purpose: int) -> int:
    """A seed of 32 bits, which is all that torch's generator on the CPU takes in."""
    return int(np.random.SeedSequence((seed, position, purpose)).generate_state(1)[0])


def _make_optimizer(
    trained: TrainedNetwork, moments: dict[str, OutputMoments], settings: TrainingSettings
) -> torch.optim.Optimizer:
    """An optimizer with a group for each kind of parameter; with Adam each tensor has a rate of its own size."""
    groups: list[dict[str, Any]] = []
    added: set[nn.Parameter] = set()  # weights that two layers share are trained once
    adam = settings.optimizer == "adam"

    def add(parameter: nn.Parameter | None, part: float, size: float, decay: float = 0.0) -> None:
        if parameter is not None and parameter not in added:
            added.add(parameter)
            rate = settings.learning_rate * (part * size if adam else 1.0)
            groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})

    for name, layer in trained.trained_layers().items():
        assert isinstance(layer, TrainedLayer)
        for steps in (*layer.weight_steps.values(), *layer.activation_steps.values()):
            add(steps.step, SLOW, _size(steps.step))  # type: ignore[arg-type]
        if name not in moments:
            continue
        spread = float(moments[name].variance.mean().sqrt())
        # Decoupled decay shrinks weights by rate x decay; the rate has the weights' size in it, which is taken out.
        size = _size(layer.weight)
        decay = settings.weight_decay / size if adam else settings.weight_decay
        add(layer.weight, 1.0, size, decay)
        add(layer.bias, SLOW, spread)
        if layer.normalises:
            add(layer.gain, SLOW, _size(layer.gain))
            add(layer.shift, SLOW, spread)
    for store in trained.stores:
        assert isinstance(store, TrainedStore)
        add(store.steps.step, SLOW, _size(store.steps.step))
    if adam:
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, lr=settings.learning_rate)


def _size(parameter: torch.Tensor) -> float:
    """Root mean square, never zero."""
    return max(1e-12, float(parameter.detach().square().mean().sqrt()))
