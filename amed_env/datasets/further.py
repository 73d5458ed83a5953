"""Samples that a task has besides its splits: a search's finalists are scored on them, and may be tuned on some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from amed_env.datasets.lazy import joined
from amed_env.datasets.samples import Samples, Splits
from amed_env.datasets.training import TrainingData
from amed_env.errors import DataError


@dataclass(frozen=True, eq=False)
class FurtherSamples:
    """What there is besides calibration, search and test samples; nothing of it is read before it is asked for.

    Attributes:
        search: Search samples beyond those that score allocations during a search; None if that uses all.
        load_training: Loads what the network can be trained on; None if there is nothing.
    """

    search: Samples | None = None
    load_training: Callable[[], Samples | TrainingData] | None = None

    @cached_property
    def _loaded(self) -> Samples | TrainingData | None:
        return None if self.load_training is None else self.load_training()

    @cached_property
    def training(self) -> TrainingData:
        """What the network can be trained on; of plain samples a tenth is held out.

        Raises:
            DataError: If there is nothing, or it has no class numbers.
        """
        loaded = self._loaded
        if loaded is None:
            raise DataError(
                "there are no training samples; add training=(inputs, labels) to what the function of your network "
                "returns, or to the arguments of make_task. Not every task of the package has some."
            )
        return loaded if isinstance(loaded, TrainingData) else TrainingData.of(loaded)

    def all_samples(self, splits: Splits, *, with_training: bool, tuned: bool) -> Samples | None:
        """All samples but those of calibration and test; the search's own come first.

        Args:
            splits: The task's splits.
            with_training: Whether training samples are among them. They then have no labels: a network answers the
                samples that it was trained on better than others.
            tuned: Whether what is scored on them was trained on training samples: these are then left out, and only
                those that are held out for validation stay.

        Returns:
            None if there are no more than those of the search.
        """
        others = [] if self.search is None else [self.search]
        if with_training and self._loaded is not None:
            others += _without_copies(self._training_samples(tuned), [*splits.parts().values(), *others])
        if not others:
            return None
        # Calibration samples set the ranges, so a network is nearer to its float self on them.
        parts = others if splits.search is splits.calibration else [splits.search, *others]
        return _joined(parts, with_labels=not with_training)

    def _training_samples(self, tuned: bool) -> Samples:
        """Training samples as the network takes them, not augmented."""
        if isinstance(self._loaded, Samples) and not tuned:
            return self._loaded
        return self.training.validation


def _without_copies(samples: Samples, parts: Sequence[Samples]) -> list[Samples]:
    """Samples that are in none of other parts; digits calibrates with all of its training images."""
    known: set[bytes] = set()
    for part in parts:
        known.update(part.sample_hashes())
    positions = [position for position, digest in enumerate(samples.sample_hashes()) if digest not in known]
    return [samples.subset(positions)] if positions else []


def _joined(parts: Sequence[Samples], with_labels: bool) -> Samples:
    first = parts[0]
    for part in parts:
        if (part.form, part.sample_shape, part.inputs.dtype) != (first.form, first.sample_shape, first.inputs.dtype):
            raise DataError(
                f"the {part.name} samples have inputs of shape {part.sample_shape} ({part.inputs.dtype}) but the "
                f"{first.name} samples {first.sample_shape} ({first.inputs.dtype}); prepare all in the same way."
            )
    labels = [part.labels for part in parts if part.labels is not None] if with_labels else []
    inputs = joined([part.inputs for part in parts])
    return Samples(inputs, torch.cat(labels) if labels else None, "finalists", first.form)
