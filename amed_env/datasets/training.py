"""Samples to train on: images as they are stored, turned into augmented batches, and a split to validate by."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from amed_env.datasets.samples import Samples
from amed_env.errors import DataError


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Images of a training set, and validation samples that are held out of it.

    Attributes:
        images: (N, C, H, W), uint8 or float32, as they are stored.
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
        if self.images.dim() != 4 or not len(self.images):
            raise DataError(f"training images have shape {tuple(self.images.shape)}; expected (N, C, H, W).")
        if self.labels.shape != self.images.shape[:1]:
            raise DataError(f"{len(self.images)} training images but {tuple(self.labels.shape)} labels.")
        if self.validation.sample_shape != tuple(self.images.shape[1:]):
            raise DataError(
                f"training images have shape {tuple(self.images.shape[1:])} but validation samples "
                f"{self.validation.sample_shape}."
            )

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, chosen: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented images with their labels.

        Args:
            chosen: (B,) int64, positions of images.
            generator: Source of shifts and of who is mirrored.

        Returns:
            Inputs (B, C, H, W) float32 in channels-last layout, and labels (B,) int64.
        """
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
