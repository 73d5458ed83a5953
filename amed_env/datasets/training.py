"""Samples to train on, images as they are stored and turned into augmented batches, and a split to validate by."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from amed_env.datasets.samples import Samples, drawn_order
from amed_env.errors import DataError
from amed_env.support.text import tensor_text

HELD_OUT, MOST_HELD_OUT = 10, 5_000
"""One of so many samples is held out for validation; 5,000 at the most, whose accuracy has an error of 0.5 points."""
_VALIDATION_SALT = "validation"


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Samples of a training set, and validation samples that are held out of it.

    Attributes:
        images: (N, C, H, W), uint8 or float32, as they are stored; or samples of any other kind and shape (N, …) as
            the network takes them, which have no shift, mirror image, scale or offset.
        labels: (N,) int64.
        validation: Samples that are not trained on, as the network takes them.
        shift: Images move by up to so many pixels in both directions; zeros (of the stored values) come in.
        mirrored: Whether half of the images are mirrored.
        scale, offset: (C,) float32: the network takes image x scale + offset.

    Raises:
        DataError: If the shapes do not fit each other.
    """

    images: torch.Tensor
    labels: torch.Tensor
    validation: Samples
    shift: int = 0
    mirrored: bool = False
    scale: torch.Tensor = field(default_factory=lambda: torch.ones(1))
    offset: torch.Tensor = field(default_factory=lambda: torch.zeros(1))

    def __post_init__(self) -> None:
        if not len(self.images):
            raise DataError("there are no training samples; give at least one.")
        if not self._are_images and (self.shift or self.mirrored):
            raise DataError(f"training images have shape {tuple(self.images.shape)}; expected (N, C, H, W).")
        if self.labels.shape != self.images.shape[:1]:
            raise DataError(f"{len(self.images)} training images but {tuple(self.labels.shape)} labels.")
        if self.validation.sample_shape != tuple(self.images.shape[1:]):
            raise DataError(
                f"training samples have shape {tuple(self.images.shape[1:])} but validation samples "
                f"{self.validation.sample_shape}."
            )

    @classmethod
    def of(cls, samples: Samples) -> TrainingData:
        """Labelled samples as they are, of which a tenth is held out.

        Raises:
            DataError: If there are fewer than two, or they have no class each.
        """
        if len(samples) < 2:
            raise DataError(f"{len(samples)} training sample: one to train on and one to validate by are needed.")
        labels = samples.known_labels
        if labels.dim() != 1 or labels.is_floating_point():
            raise DataError(
                f"training is by the cross-entropy of class numbers (N,), but the labels are {tensor_text(labels)}."
            )
        order = drawn_order(len(samples), _VALIDATION_SALT)
        held = min(MOST_HELD_OUT, max(1, len(samples) // HELD_OUT))
        validation, trained = samples.subset(order[:held]), samples.subset(order[held:])
        return cls(trained.inputs, trained.known_labels, validation)

    @property
    def _are_images(self) -> bool:
        return self.images.dim() == 4

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, chosen: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented images, or other samples as they are, with their labels.

        Args:
            chosen: (B,) int64, positions of samples.
            generator: Source of shifts and of who is mirrored.

        Returns:
            Inputs (B, …), images as float32 in channels-last layout, and labels (B,) int64.
        """
        if not self._are_images:
            return self.images[chosen], self.labels[chosen]
        height, width = self.images.shape[2:]
        down, right = torch.randint(0, 2 * self.shift + 1, (2, len(chosen), 1), generator=generator)
        rows, columns = torch.arange(height) + down, torch.arange(width).expand(len(chosen), width)
        if self.mirrored:
            mirrored = torch.rand(len(chosen), 1, generator=generator) < 0.5
            columns = torch.where(mirrored, width - 1 - columns, columns)
        columns = columns + right
        images = F.pad(self.images[chosen], [self.shift] * 4)  # of stored bytes: floats only at the end
        # Both index tensors around a slice put its axis last: (B, H, W, C), which is the layout that is wanted.
        moved = images[torch.arange(len(chosen))[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return moved.float().mul_(self.scale).add_(self.offset).permute(0, 3, 1, 2), self.labels[chosen]
