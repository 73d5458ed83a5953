"""Fine-tuning of a quantized network: epochs, validation, checkpoints, and what came out of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from amed_env.datasets.samples import Samples
from amed_env.datasets.training import TrainingData
from amed_env.errors import InputError
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.evaluation.quality import Quality
from amed_env.evaluation.scoring import Tally, class_scoring
from amed_env.problem.allocation import FLOAT_BITS, BitAllocation
from amed_env.quantization.layers import PreparedWidth
from amed_env.quantization.network import QuantizedNetwork
from amed_env.training.checkpoint import read_state, stored_scales, used_widths, write_state
from amed_env.training.network import NORM_SAMPLES, TrainedNetwork
from amed_env.training.settings import TrainingSettings
from amed_env.training.trainer import Trainer

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 60.0
_BEST = "best/"


@dataclass(frozen=True)
class Epoch:
    """What an epoch ended with; epoch 0 is the start.

    Attributes:
        epoch: Epochs that were over.
        step: Steps that were made.
        training_loss, training_accuracy: Over the epoch, under augmentation; None at the start.
        validation: Quality on the validation split, as integers where the network runs on them.
        allocation: Key of the allocation at its end.
        seconds: Time of training so far.
    """

    epoch: int
    step: int
    training_loss: float | None
    training_accuracy: float | None
    validation: Quality
    allocation: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**self.__dict__, "validation": self.validation.to_json()}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Epoch:
        """Read what `to_json` wrote."""
        return cls(**{**document, "validation": Quality.from_json(document["validation"])})


class Finetuning:
    """Trains a network for an allocation.

    Args:
        evaluator: Evaluates the network; it is prepared, and afterwards uses what was trained.
        data: What the network is trained on.
        allocation: The allocation.
        settings: Numbers of the training.
        folder: Where the checkpoint is kept; None keeps none.
        start: A network that was trained already, from which it goes on; by default it starts with what post-training
            quantization makes of the allocation.

    Attributes:
        history: The start and all epochs so far.
        allocation: The allocation.
        trainer: Makes the steps.
    """

    def __init__(
        self,
        evaluator: PostTrainingEvaluator,
        data: TrainingData,
        allocation: BitAllocation,
        settings: TrainingSettings,
        folder: Path | None = None,
        start: TrainedNetwork | None = None,
    ) -> None:
        evaluator.prepare()
        self.evaluator, self.data, self.settings = evaluator, data, settings
        self.network = network = evaluator.network
        self._calibration = evaluator.samples("calibration").inputs
        self.allocation = allocation.require_layers(evaluator.workload.layer_names, "the network")
        if all(bits == FLOAT_BITS for precision in self.allocation.values() for bits in precision):
            raise InputError("every layer has 32 bits, so there is nothing to train; give an allocation of fewer.")
        if start is None:
            self.trained = TrainedNetwork(network, settings.per_channel, settings.batch_norm == "inserted")
            self.trained.start_at(self.allocation)
        else:
            self.trained = start
            self.trained.select(self.allocation)
        self.trainer = Trainer(network, self.trained, data, self._calibration, settings)
        self.history: list[Epoch] = []
        self.seconds = 0.0
        self._best: tuple[Epoch, dict[str, torch.Tensor]] | None = None
        self._checkpoint = None if folder is None else folder / CHECKPOINT
        used_widths(network, self.allocation)  # prepares them
        prepared = {(n, bits): width for n, layer in network.weighted.items() for bits, width in layer.prepared.items()}
        self._before = prepared, stored_scales(network)
        if self._checkpoint is not None and self._checkpoint.exists():
            self._restore(*read_state(self._checkpoint))

    @property
    def best(self) -> Epoch:
        """The epoch of the highest validation accuracy, of equal ones that of the lowest loss."""
        assert self._best is not None
        return self._best[0]

    @property
    def stopped_early(self) -> bool:
        """Whether validation did not improve for so many epochs that training ended."""
        patience = self.settings.patience
        return patience is not None and self._best is not None and self.history[-1].epoch - self.best.epoch >= patience

    @property
    def ended(self) -> bool:
        """Whether nothing is left to train."""
        complete = len(self.history) == self.trainer.epoch + 1
        return complete and (self.trainer.step >= self.trainer.steps or self.stopped_early)

    def run(
        self,
        on_change: Callable[[Finetuning], None] | None = None,
        held: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Train until the last epoch, or an early stop; the network then uses the best of them.

        Args:
            on_change: Called after every step and every epoch; what it raises ends training, with a checkpoint.
            held: A context in which nothing may be interrupted: a step, or the writing of a file.

        Raises:
            NonFiniteError: If the loss is NaN or infinite; the last checkpoint stays.
        """
        saved = began = monotonic()
        try:
            while not self.ended:
                with held():
                    milestone = self._advance()
                    now = monotonic()
                    self.seconds, began = self.seconds + now - began, now
                    if milestone or now - saved > CHECKPOINT_SECONDS:
                        self.save()
                        saved = now
                if on_change is not None:
                    on_change(self)
        except KeyboardInterrupt:
            with held():
                self.save()
            raise
        self.use_best()

    def _advance(self) -> bool:
        """Do what is next: a validation or a step; whether it was more than a step."""
        if len(self.history) <= self.trainer.epoch:
            self._end_epoch()
            return True
        self.trainer.train_step()
        return False

    def _end_epoch(self) -> None:
        progress = self.trainer.progress
        first = not self.history
        epoch = Epoch(
            self.trainer.epoch,
            self.trainer.step,
            None if first else progress.mean_loss,
            None if first else progress.accuracy,
            self.validate(),
            self.allocation.key(),
            self.seconds,
        )
        self.history.append(epoch)
        self._keep_if_better(epoch)

    def _keep_if_better(self, epoch: Epoch) -> None:
        if self._best is None or epoch.validation.order < self.best.validation.order:
            state = {name: tensor.detach().cpu().clone() for name, tensor in self.trained.state_dict().items()}
            self._best = epoch, state

    def validate(self) -> Quality:
        """Quality of what is trained now on the validation split, evaluated as the search and test splits are.

        Weights that oscillate between two integers corrupt running statistics of batch norms, so these are measured
        anew (Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, arXiv 2203.11086).
        """
        if self.trainer.step:
            self.trained.refresh_norms(self._calibration[:NORM_SAMPLES].split(self.network.batch_size))
        self.trained.export()
        return quality_of(self.network, self.allocation, self.data.validation)

    def use_best(self) -> None:
        """Let the evaluator use the best epoch's weights and scales."""
        assert self._best is not None
        self.trained.load_state_dict(self._best[1])
        self.trained.export()
        self.evaluator.adopt(used_widths(self.network, self.allocation), stored_scales(self.network))

    def report(self) -> dict[str, Any]:
        """Qualities before and after training on the search and the test split, and the history, as JSON values."""
        uniform_float = self.evaluator.workload.uniform(FLOAT_BITS)
        splits = self.evaluator.splits
        after = {split: self.evaluator.evaluate(self.allocation, split) for split in splits}
        trained = used_widths(self.network, self.allocation), stored_scales(self.network)
        self._use(*self._before)
        before = {split: self.evaluator.evaluate(self.allocation, split) for split in splits}
        self._use(*trained)
        full = {split: self.evaluator.evaluate(uniform_float, split) for split in splits}
        return {
            name: {split: quality.to_json() for split, quality in qualities.items()}
            for name, qualities in (("float", full), ("before", before), ("after", after))
        }

    def _use(self, widths: dict[tuple[str, int], PreparedWidth], scales: list[float]) -> None:
        for (name, bits), width in widths.items():
            self.network.use(name, bits, width)
        for number, scale in enumerate(scales):
            self.network.use_stored(number, scale)

    def save(self) -> None:
        """Write the checkpoint.

        Raises:
            OSError: If it cannot be written.
        """
        if self._checkpoint is None:
            return
        tensors, values = self.trainer.state()
        values |= {
            "history": [epoch.to_json() for epoch in self.history],
            "seconds": self.seconds,
            "best": None,
        }
        if self._best is not None:
            values["best"] = self.best.to_json()
            tensors |= {_BEST + name: tensor.contiguous() for name, tensor in self._best[1].items()}
        write_state(self._checkpoint, tensors, values)

    def _restore(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        best = {name.removeprefix(_BEST): t for name, t in tensors.items() if name.startswith(_BEST)}
        self.trainer.restore({n: t for n, t in tensors.items() if not n.startswith(_BEST)}, values)
        self.history = [Epoch.from_json(epoch) for epoch in values["history"]]
        self.seconds = float(values["seconds"])
        if values["best"] is not None:
            self._best = Epoch.from_json(values["best"]), best


def quality_of(network: QuantizedNetwork, allocation: BitAllocation, samples: Samples) -> Quality:
    """Quality of a network under an allocation on any samples.

    Raises:
        NonFiniteError: If the network returns NaN or infinity.
    """
    network.select(allocation)
    tally = Tally(class_scoring())
    for inputs, labels in samples.batches(network.batch_size):
        tally.add(network(inputs), labels)
    return tally.quality(allocation, samples.name)
