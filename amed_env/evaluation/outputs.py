"""Forms of outputs and labels: where the classes of class scores are, and what labels they can be compared with."""

from __future__ import annotations

import torch

from amed_env.datasets.samples import IGNORED_LABEL
from amed_env.errors import DataError
from amed_env.support.text import tensor_text


def class_axis(outputs: tuple[int, ...], labels: tuple[int, ...]) -> int | None:
    """The axis of the classes among outputs, given the labels' shape: 1, the last one, or None if neither fits.

    Args:
        outputs: Shape of the outputs, (N, …).
        labels: Shape of the labels, (N, …).
    """
    if len(outputs) != len(labels) + 1:
        return None
    if labels == outputs[:1] + outputs[2:]:
        return 1
    return len(outputs) - 1 if labels == outputs[:-1] else None


def flat_classes(outputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Class scores and classes of all samples, pixels or tokens that count.

    Args:
        outputs: (N, classes), (N, classes, …) or (N, …, classes).
        labels: int64 (N,) or (N, …); `IGNORED_LABEL` where nothing is compared.

    Returns:
        Scores (M, classes), and classes (M,).

    Raises:
        DataError: If the shapes do not fit each other, or labels are no class numbers.
    """
    axis = class_axis(tuple(outputs.shape), tuple(labels.shape))
    one_score = outputs.dim() == 1 or tuple(outputs.shape[1:]) == (1,)
    if axis is None and one_score and labels.numel() == len(labels) and not labels.is_floating_point():
        raise DataError(
            f"the outputs, {tensor_text(outputs)}, are one number a sample, but the labels, {tensor_text(labels)}, "
            "class numbers: let the network return a score for each class, (-x, x) for one sigmoid, or give the labels "
            "as floats of the outputs' shape, with which they are compared as values."
        )
    if labels.is_floating_point() and axis is not None and not one_score:
        raise DataError(
            f"the labels are {tensor_text(labels)}, and class numbers are whole numbers: convert them with .long()."
        )
    if axis is None or labels.is_floating_point():
        raise DataError(
            "class numbers are compared with class scores: labels (N,) with outputs (N, classes), masks (N, H, W) with "
            "(N, classes, H, W), tokens (N, T) with (N, T, classes). "
            f"The labels are {tensor_text(labels)}, the outputs {tensor_text(outputs)}; {_cure(outputs, labels)}."
        )
    if outputs.shape[axis] < 2:
        raise DataError(
            f"the outputs, {tensor_text(outputs)}, have one score for all classes; let the network return a score for "
            "each class, (-x, x) for one sigmoid, or give float labels if they are values."
        )
    if labels.dim() == 1:
        return outputs, labels
    scores, classes = outputs.movedim(axis, -1).reshape(-1, outputs.shape[axis]), labels.reshape(-1)
    counting = classes != IGNORED_LABEL
    return scores[counting], classes[counting]


def _cure(outputs: torch.Tensor, labels: torch.Tensor) -> str:
    """What to do about labels of another shape than the classes of some outputs."""
    if labels.is_floating_point() and tuple(outputs.shape) in (tuple(labels.shape), (*labels.shape, 1)):
        return "values are measured by mae or r2"
    if labels.dim() > 1 and labels.shape[1] == 1 and class_axis(tuple(outputs.shape), tuple(labels[:, 0].shape)):
        return "take labels.squeeze(1)"
    return "of one-hot labels take .argmax(1)"


def aligned_values(outputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and labels as float64 of one shape, (N, …) with at least two axes; (N, 1) goes with (N,).

    Raises:
        DataError: If the shapes do not fit each other.
    """
    shapes = tuple(outputs.shape), tuple(labels.shape)
    fitting = shapes[0] == shapes[1] or shapes[0] == (*shapes[1], 1) or shapes[1] == (*shapes[0], 1)
    if not fitting:
        if class_axis(*shapes) is not None and not labels.is_floating_point():
            raise DataError(
                f"values are compared with labels of their own shape, but the labels, {tensor_text(labels)}, are class "
                f"numbers for the outputs, {tensor_text(outputs)}: take a metric of classes, such as top-1 or mean-iou."
            )
        raise DataError(
            f"values are compared with labels of their own shape; the labels are {tensor_text(labels)}, the outputs "
            f"{tensor_text(outputs)}. Labels that are class numbers must be whole numbers: convert them with .long()."
        )
    count = len(outputs)
    return outputs.double().reshape(count, -1), labels.double().reshape(count, -1)


class RunningSpread:
    """How much values vary over samples, batch by batch: mean and squared deviations of each of D columns.

    Batches are merged by their means (Chan et al. 1979): a difference of sums of squares would lose all digits where
    values are far from 0.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(0, dtype=torch.float64)

    def add(self, values: torch.Tensor) -> None:
        """Take in float64 (N, D)."""
        count, mean = len(values), values.mean(dim=0)
        squares = (values - mean).square().sum(dim=0)
        if not self.count:
            self.count, self.mean, self.squares = count, mean, squares
            return
        together, step = self.count + count, mean - self.mean
        self.squares = self.squares + squares + step.square() * (self.count * count / together)
        self.mean = self.mean + step * (count / together)
        self.count = together

    @property
    def per_sample(self) -> float:
        """Mean squared distance of a sample from the mean of all; 1 where they are all alike."""
        return float(self.squares.sum()) / self.count or 1.0
