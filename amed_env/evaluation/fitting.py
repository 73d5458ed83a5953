"""How a score fits a network and its samples: what is measured, whether labels can be, and what to remark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from amed_env.datasets import Samples, Splits
from amed_env.datasets.samples import IGNORED_LABEL
from amed_env.errors import DataError, NetworkError
from amed_env.evaluation.comparisons import SquaredError
from amed_env.evaluation.outputs import flat_classes
from amed_env.evaluation.scoring import ScoreSpec, Scoring, find_scoring
from amed_env.quantization.network import QuantizedNetwork
from amed_env.support.text import tensor_text
from amed_env.tracing.original import tensors_of

FEW_SAMPLES = 500
"""Fewer search samples than this are remarked upon: so many rank allocations as 2,000 do but for .03 in Spearman's
correlation with the accuracy on 8,000 unseen images, 125 but for .06, on three networks (docs/scores.md)."""
_FITTED_SAMPLES = 2
_VOID = 255  # how images of masks mark what does not count, since Pascal VOC
_LOOKED_AT = 64  # sequences are enough to see whether labels repeat their inputs


def fit_scoring(network: QuantizedNetwork, splits: Splits, score: ScoreSpec, metrics: Sequence[Any] | None) -> Scoring:
    """What is measured of a network on its samples.

    Args:
        network: The network.
        splits: Its samples.
        score: See `make_task`.
        metrics: See `make_task`.

    Raises:
        NetworkError: If the network does not return one tensor with a row for each sample.
        DataError: If labels do not fit the outputs, or the score needs labels and the search samples have none.
        InputError: If a score or metric does not fit.
        UnknownNameError: If there is no such score or metric.
    """
    name = network.workload.name
    parts = {part: samples for part, samples in splits.parts().items() if part != "calibration"}
    labelled = [samples for samples in parts.values() if samples.labels is not None]
    fitted = min(_FITTED_SAMPLES, network.batch_size)  # a network may take one sample at a time only
    inputs, labels = next(iter((labelled or [splits.search])[0].batches(fitted)))
    outputs = network(inputs)
    if not isinstance(outputs, torch.Tensor) or outputs.dim() < 1 or len(outputs) != len(inputs):
        what = tensor_text(outputs) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise NetworkError(
            f"network {name!r} must return one tensor (N, …) with a row for each sample; it returns {what} for "
            f"{len(inputs)}."
        )
    if metrics is None:
        for part, samples in parts.items():
            _check_not_one_hot(part, samples.labels, outputs)
    if labels is not None and not labels.is_floating_point():
        # Before any metric sees them: metrics count by class, and fail on one that there is not.
        scores, _ = flat_classes(outputs, labels)
        for part, samples in parts.items():
            if samples.labels is not None:
                _check_classes(part, samples.labels, scores.shape[1])
    scoring = find_scoring(score, metrics, outputs.cpu(), labels, splits.search.are_tokens)
    if scoring.comparison is None and splits.search.labels is None:
        raise DataError(
            f"the score {scoring.score.name!r} needs labels, and the search samples have none; give (inputs, labels), "
            "or take the score 'divergence'."
        )
    return scoring


def _check_not_one_hot(part: str, labels: torch.Tensor | None, outputs: torch.Tensor) -> None:
    """Check that values are no classes in disguise, whose mean absolute error would say nothing."""
    if labels is None or not labels.is_floating_point() or labels.shape[1:] != outputs.shape[1:]:
        return
    if labels.dim() < 2 or len(labels) < 2 or not bool(((labels == 0) | (labels == 1)).all()):
        return
    for axis in sorted({1, labels.dim() - 1}):  # of masks the classes are on axis 1, of tokens on the last one
        if labels.shape[axis] > 1 and bool((labels.sum(dim=axis) == 1).all()):
            raise DataError(
                f"the labels of the {part} samples, {tensor_text(labels)}, are one-hot; give class numbers, "
                f"labels.argmax({axis}), or name a metric (metrics=['mae']) if they are values."
            )


def _check_classes(part: str, labels: torch.Tensor, classes: int) -> None:
    largest = int(labels.max())
    if largest >= classes:
        counting = labels[labels != IGNORED_LABEL]
        cure = ""
        if largest == classes and int(counting.min()) == 1:
            cure = " They seem to count from 1: subtract 1."
        elif largest == _VOID and labels.dim() > 1:
            cure = f" If {_VOID} marks pixels that do not count, make it {IGNORED_LABEL} (labels of a signed type)."
        raise DataError(
            f"the {part} split has label {largest}, but the network tells only {classes} classes apart (0 to "
            f"{classes - 1}).{cure}"
        )
    if labels.dim() == 1 and int(labels.min()) == largest:
        raise DataError(
            f"all {len(labels)} samples of the {part} split have label {largest}; accuracy means nothing with one "
            "class."
        )


def scoring_remarks(scoring: Scoring, splits: Splits, by_form: bool = True) -> list[str]:
    """What the user of a network of his own should know about how allocations are scored, a line each.

    Args:
        scoring: What is measured.
        splits: The samples.
        by_form: Whether the form of the outputs decided how they are compared, and not the user.
    """
    remarks = []
    if splits.search.inputs is splits.calibration.inputs:
        remarks.append("no search samples are given, so the calibration samples score allocations too")
    if scoring.comparison is not None and len(splits.search) < FEW_SAMPLES:
        remarks.append(
            f"{len(splits.search):,} samples score allocations; from {FEW_SAMPLES} on they rank better, without labels"
        )
    if by_form and not scoring.metrics:
        if isinstance(scoring.comparison, SquaredError):
            remarks.append(
                "outputs are compared by their squared error; if they are class scores (classes on axis 1), take the "
                "score 'kl'"
            )
        else:
            remarks.append("outputs are compared as class scores; if they are values, take the score 'squared-error'")
    for part, samples in splits.parts().items():
        if part != "calibration" and _labels_repeat_inputs(samples):
            remarks.append(
                f"the labels of the {part} samples are their input tokens, so metrics say how well these are repeated; "
                "of a model that tells the next token, shift them: labels[:, :-1] = input_ids[:, 1:], then -100"
            )
    if splits.test is None:
        remarks.append("there are no test samples, so nothing unseen confirms the result")
    return remarks


def _labels_repeat_inputs(samples: Samples) -> bool:
    """Whether the labels of tokens are the tokens themselves, as transformers' collators make them.

    Its models shift them when they compute their loss; here labels are compared with the scores at their own place.
    """
    if samples.labels is None or samples.labels.is_floating_point() or samples.labels.dim() != 2:
        return False
    inputs, labels = next(iter(samples.batches(_LOOKED_AT)))
    assert labels is not None
    counting = labels != IGNORED_LABEL
    whole = inputs if samples.form is None else samples.form.unpacked(inputs)
    for tensor in tensors_of(whole):
        alike = tensor.dtype == torch.int64 and tensor.shape == labels.shape
        if alike and bool(counting.any()) and torch.equal(tensor[counting], labels[counting]):
            return True
    return False
