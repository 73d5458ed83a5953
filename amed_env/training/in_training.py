"""AMED's way to score an allocation: train the network for it, from where it stands, and look how good it is then.

All allocations share the float weights, which keep learning along the walk; every (layer, width) has step sizes of its
own, so a width that comes back finds what it had learned.
Source: Kimhi, Rozen, Mendelson, Baskin: AMED, arXiv 2205.15437; step sizes: Esser et al., LSQ, arXiv 1902.08153.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from amed_env.errors import InputError, NonFiniteError, UnsupportedPrecisionError
from amed_env.evaluation.delegating import DelegatingEvaluator
from amed_env.evaluation.finalists import TrainedWeights
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.evaluation.quality import GradientMeasure, Progress, Quality, Split
from amed_env.problem.allocation import FLOAT_BITS, BitAllocation, Precision
from amed_env.problem.objective import REFERENCE_BITS
from amed_env.support.threads import torch_threads
from amed_env.training.checkpoint import read_state, stored_scales, used_widths, write_state
from amed_env.training.network import NORM_SAMPLES, TrainedNetwork
from amed_env.training.settings import TrainingSettings, settings_for_score
from amed_env.training.trainer import Trainer

CHECKPOINT = "in-training.safetensors"
CHECKPOINT_SECONDS = 60.0
STEPS = 20
"""Steps of an evaluation by default: 2,560 samples of training, about what scoring the allocation costs."""


@dataclass(frozen=True)
class InTraining:
    """How a network is trained while allocations are scored; for `make_task(evaluation=…)`.

    Attributes:
        steps: Steps of the optimizer at an allocation, before it is scored.
        training: Numbers of the training; its `epochs` and `patience` do not matter, as the rate does not fall. By
            default those of `settings_for_score`.
        folder: Where the training is kept, so that it can go on after an interruption; None keeps nothing.

    Raises:
        InputError: If the steps are no whole number of at least 1.
    """

    steps: int = STEPS
    training: TrainingSettings | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise InputError(f"in-training evaluation: steps is {self.steps!r}; give a whole number of at least 1.")


@dataclass
class _Journal:
    """What was evaluated, in order, and how many of it this process has been asked for again."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    position: int = 0


class InTrainingEvaluator(DelegatingEvaluator):
    """Scores allocations of a network that is trained meanwhile.

    A trial (`trial_quality`) trains the network for some steps at its allocation and then scores it, so the same
    allocation scores differently each time. `evaluate` scores with the weights of now and trains nothing. Sensitivities
    are those of the network before its training.

    A search that is repeated with the folder of an earlier one is answered from its journal, trial by trial, as long as
    it asks for the same allocations; then training goes on where it was.

    Args:
        inner: Evaluates the network, and has the samples to train on. Nobody else may use it.
        options: How it is trained.
        widths: All widths that a layer may get.

    Attributes:
        held: A context in which a trial may not be interrupted, for commands that handle signals.

    Raises:
        DataError: If there is nothing to train on.
    """

    learns = True

    def __init__(self, inner: PostTrainingEvaluator, options: InTraining, widths: Iterable[int]) -> None:
        super().__init__(inner)
        self._evaluator, self.options = inner, options
        self.settings = options.training or settings_for_score(inner.score)
        self.widths = tuple(sorted({*widths, REFERENCE_BITS} - {FLOAT_BITS}))
        self.held: Callable[[], AbstractContextManager[object]] = nullcontext
        self._data = inner.training_data
        self._checkpoint = None if options.folder is None else options.folder / CHECKPOINT
        self._trained: TrainedNetwork | None = None
        self._trainer: Trainer | None = None
        self._journal = _Journal()
        self._stored: dict[str, torch.Tensor] | None = None
        self._values: dict[str, Any] = {}
        self._saved = monotonic()
        self._between_trials = True

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Text that changes with network, samples, recipe and training; not with what was learned."""
        facts = f"{self._evaluator.fingerprint} in-training {self.options.steps} {self.settings.model_dump_json()}"
        return hashlib.sha256(facts.encode()).hexdigest()

    @property
    def trained(self) -> TrainedNetwork:
        """The network that is trained."""
        self.prepare()
        assert self._trained is not None
        return self._trained

    @property
    def trainer(self) -> Trainer:
        """What makes the steps."""
        self.prepare()
        assert self._trainer is not None
        return self._trainer

    def prepare(
        self,
        progress: Progress | None = None,
        seconds: float | None = None,
        precisions: Iterable[Precision] | None = None,
    ) -> None:
        """See `Evaluator.prepare`; reads the checkpoint, if there is one.

        Raises:
            InputError: If the checkpoint is damaged or of another training.
        """
        self._evaluator.prepare(progress, seconds, precisions)
        if self._trainer is not None:
            return
        network, settings = self._evaluator.network, self.settings
        with torch_threads(self._evaluator.threads):
            trained = TrainedNetwork(network, settings.per_channel, settings.batch_norm == "inserted")
            trained.add_widths(self.widths)
            trained.select(self.workload.uniform(REFERENCE_BITS))
            calibration = self._evaluator.samples("calibration").inputs
            trainer = Trainer(network, trained, self._data, calibration, settings, steady=True)
        self._before = self._used_now()
        self._trained, self._trainer = trained, trainer
        if self._checkpoint is not None and self._checkpoint.exists():
            self._stored, self._values = read_state(self._checkpoint)
            if self._values.get("fingerprint") != self.fingerprint:
                raise InputError(f"{self._checkpoint} is of another network or training; give another folder.")
            self._journal.entries = list(self._values["journal"])
            self._restore_at_end()

    def _used_now(self) -> TrainedWeights:
        network = self._evaluator.network
        widths = {(n, bits): width for n, layer in network.weighted.items() for bits, width in layer.prepared.items()}
        return TrainedWeights(widths, stored_scales(network))

    def _restore_at_end(self) -> None:
        """Take over the stored weights once all trials that led to them have been asked for again."""
        if self._stored is not None and self._journal.position == len(self._journal.entries):
            assert self._trainer is not None
            self._trainer.restore(self._stored, self._values)
            self._stored = None

    def trial_quality(self, allocation: BitAllocation) -> Quality:
        """Train the network at an allocation, and score it then.

        Raises:
            AllocationError: If the allocation does not fit the network.
            InputError: If an earlier search, whose folder this is, asked for another allocation here.
            NonFiniteError: If training, or the network, meets NaN or infinity.
            UnsupportedPrecisionError: If a width is none of `widths`.
        """
        self.prepare()
        journal, key = self._journal, allocation.key()
        self._check_widths(allocation)
        if journal.position < len(journal.entries):
            return self._remembered(key)
        with self.held():
            self._between_trials = False
            try:
                self._train_at(allocation)
                quality = self.evaluate(allocation).lean
            except NonFiniteError as error:
                self._note({"allocation": key, "fault": str(error)})
                raise
            self._note({"allocation": key, "quality": quality.to_json()})
            return quality

    def _note(self, entry: dict[str, Any]) -> None:
        """A trial is over; one that is interrupted never comes here, and is trained again from the trial before."""
        self._journal.entries.append(entry)
        self._journal.position += 1
        self._between_trials = True
        if monotonic() - self._saved > CHECKPOINT_SECONDS:
            self.save()

    def _remembered(self, key: str) -> Quality:
        journal = self._journal
        entry = journal.entries[journal.position]
        if entry["allocation"] != key:
            raise InputError(
                f"trial {journal.position + 1} of the training in {self.options.folder} was {entry['allocation']!r}, "
                f"and not {key!r}; go on with the same agent, seed, budgets and options, or give another folder."
            )
        journal.position += 1
        self._restore_at_end()
        if "fault" in entry:
            raise NonFiniteError(entry["fault"])
        return Quality.from_json(entry["quality"])

    def _train_at(self, allocation: BitAllocation) -> None:
        trained, trainer = self.trained, self.trainer
        with torch_threads(self._evaluator.threads):
            trained.select(allocation)
            for _ in range(self.options.steps):
                trainer.train_step()

    def _check_widths(self, allocation: BitAllocation) -> None:
        used = {bits for precision in allocation.values() for bits in precision} - {FLOAT_BITS}
        others = sorted(used.difference(self.widths))
        if others:
            raise UnsupportedPrecisionError(
                f"the network is trained for {', '.join(map(str, self.widths))} bits and not for "
                f"{', '.join(map(str, others))}; give all widths to make_task."
            )

    def evaluate(self, allocation: BitAllocation, split: Split = "search") -> Quality:
        """Quality with the weights of now; see `Evaluator.evaluate`."""
        if any(bits != FLOAT_BITS for precision in allocation.values() for bits in precision):
            self.export(allocation)
        return self._evaluator.evaluate(allocation, split)

    def export(self, allocation: BitAllocation) -> None:
        """Let the network use at an allocation what was trained.

        Weights that oscillate between two integers corrupt running statistics of batch norms, so these are measured
        anew (Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, arXiv 2203.11086).
        """
        self._check_widths(allocation)
        trained, network = self.trained, self._evaluator.network
        with torch_threads(self._evaluator.threads):
            trained.select(allocation)
            if self.trainer.step:
                calibration = self._evaluator.samples("calibration").inputs[:NORM_SAMPLES]
                trained.refresh_norms(calibration.split(network.batch_size))
            trained.export()

    def weights_at(self, allocation: BitAllocation) -> TrainedWeights:
        """See `Evaluator.weights_at`."""
        self.export(allocation)
        network = self._evaluator.network
        return TrainedWeights(used_widths(network, allocation), stored_scales(network))

    @contextmanager
    def _untrained(self) -> Iterator[None]:
        """The network as it was before its training."""
        self.prepare()
        network = self._evaluator.network
        with network.restored():
            for (name, bits), width in self._before.widths.items():
                network.use(name, bits, width)
            for number, scale in enumerate(self._before.stored_scales):
                network.use_stored(number, scale)
            yield

    def predicted_loss(self, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """See `Evaluator.predicted_loss`; of the network before its training."""
        with self._untrained():
            return super().predicted_loss(precisions)

    def sensitivity(self, measure: GradientMeasure, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """See `Evaluator.sensitivity`; of the network before its training."""
        with self._untrained():
            return super().sensitivity(measure, precisions)

    def pair_divergences(self, precisions: Sequence[Precision], reach: int) -> npt.NDArray[np.float64]:
        """See `Evaluator.pair_divergences`; of the network before its training."""
        with self._untrained():
            return super().pair_divergences(precisions, reach)

    def with_more_samples(self, *, tuned: bool = False) -> PostTrainingEvaluator:
        """See `Evaluator.with_more_samples`: without training samples, as it was trained on them; never None.

        It scores what `network_evaluator` adopts.
        """
        return self._evaluator.with_more_samples(tuned=True) or self._evaluator

    def network_evaluator(self) -> PostTrainingEvaluator:
        """See `Evaluator.network_evaluator`."""
        return self._evaluator

    def save(self) -> None:
        """Write the checkpoint, if there is a folder, unless a trial was cut short: the last one then stays.

        Raises:
            OSError: If it cannot be written.
        """
        asked_again = self._stored is not None
        if self._checkpoint is None or self._trainer is None or asked_again or not self._between_trials:
            return
        tensors, values = self._trainer.state()
        values |= {"fingerprint": self.fingerprint, "journal": self._journal.entries}
        write_state(self._checkpoint, tensors, values)
        self._saved = monotonic()
