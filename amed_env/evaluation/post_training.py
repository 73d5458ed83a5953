"""Quality of a trained network after quantization, without any retraining."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from amed_env.allocation import FLOAT_BITS, BitAllocation, Precision
from amed_env.cache import cached_array
from amed_env.datasets import Samples, Splits
from amed_env.errors import DataError, NonFiniteError
from amed_env.evaluation.quality import Evaluator, Quality, Split, check_split
from amed_env.quantization.network import QuantizedNetwork
from amed_env.threads import torch_threads
from amed_env.tracing import TracedNetwork

REUSE_MIB = 2048
"""Default memory for outputs of layers: more than one pass of ResNet-20 over 2,000 images."""
RECIPE = "squared-error/1"
"""Name and version of the way in which networks are quantized; it is part of every fingerprint."""


class PostTrainingEvaluator(Evaluator):
    """Runs a fake-quantized network over the samples of a split.

    Args:
        traced: The network.
        splits: Calibration, search and test samples.
        batch_size: Samples of one forward pass.
        threads: Threads of torch during an evaluation; None leaves torch's setting.
        reuse_mib: Memory in MiB for outputs of layers that the next allocation may share (`quantization.reuse`).

    Raises:
        DataError: If a label is not one of the network's classes, or search or test samples have only one class.
    """

    def __init__(
        self,
        traced: TracedNetwork,
        splits: Splits,
        batch_size: int = 125,
        threads: int | None = None,
        reuse_mib: int = REUSE_MIB,
    ) -> None:
        self.workload = traced.workload
        self.kept_float = tuple(f"{kept.name} ({kept.type}): {kept.reason}" for kept in traced.kept_float)
        self.threads, self.batch_size = threads, batch_size
        self._splits = splits
        with torch_threads(threads):
            self._network = QuantizedNetwork(traced, splits.calibration.inputs, batch_size, reuse_mib)
            self._check_labels()
        digest = hashlib.sha256(f"{RECIPE} {splits.fingerprint()}".encode())
        for name, tensor in sorted(traced.module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def _check_labels(self) -> None:
        classes = self._network(self._splits.calibration.inputs[:1]).shape[1]
        for name, part in (("search", self._splits.search), ("test", self._splits.test)):
            largest = int(part.labels.max())
            if largest >= classes:
                raise DataError(
                    f"the {name} split has label {largest}, but the network tells only {classes} classes "
                    f"apart (0 to {classes - 1})."
                )
            if int(part.labels.min()) == largest:
                raise DataError(
                    f"all {len(part)} samples of the {name} split have label {largest}; accuracy means "
                    "nothing with one class."
                )

    def evaluate(self, allocation: BitAllocation, split: Split = "search") -> Quality:
        """Quality of an allocation on a split; see `Evaluator.evaluate`."""
        samples: Samples = getattr(self._splits, check_split(split))
        with torch_threads(self.threads):
            self._network.select(allocation)
            correct, loss = 0, 0.0
            for number, (inputs, labels) in enumerate(samples.batches(self.batch_size)):
                # The test split is for the final report: its batches do not come again.
                scores = self._network(inputs, (split, number) if split == "search" else None)
                correct += int((scores.argmax(dim=1) == labels).sum())
                loss += float(F.cross_entropy(scores, labels, reduction="sum"))
        if not np.isfinite(loss):
            raise NonFiniteError(
                f"the network returns NaN or infinity on the {split} split under {allocation.key()!r}."
            )
        return Quality(correct, len(samples), loss / len(samples))

    def predicted_loss(
        self, precisions: Sequence[Precision], progress: Callable[[int, int], None] | None = None
    ) -> npt.NDArray[np.float64]:
        """Kullback-Leibler divergence when one layer alone is quantized; see `Evaluator.predicted_loss`.

        The result is kept in the user's cache, as it depends on no device and no budget.
        """
        shape = (len(self.workload), len(precisions))
        key = f"{self.fingerprint} {torch.__version__} {' '.join(map(str, precisions))}"
        return cached_array("predicted-loss", key, shape, lambda: self._measure_divergences(precisions, progress))

    def _measure_divergences(
        self, precisions: Sequence[Precision], progress: Callable[[int, int], None] | None
    ) -> npt.NDArray[np.float64]:
        divergences = np.zeros((len(self.workload), len(precisions)))
        with torch_threads(self.threads):
            all_float = self.workload.uniform(FLOAT_BITS)
            reference = self._log_probabilities(all_float)
            for row, name in enumerate(self.workload.layer_names):
                for column, precision in enumerate(precisions):
                    quantized = self._log_probabilities(all_float.replace({name: precision}))
                    divergence = F.kl_div(quantized, reference, reduction="batchmean", log_target=True)
                    divergences[row, column] = max(0.0, float(divergence))
                    if progress is not None:
                        progress(row * len(precisions) + column + 1, divergences.size)
        if not np.isfinite(divergences).all():
            raise NonFiniteError("the network returns NaN or infinity on the calibration samples when quantized.")
        return divergences

    def _log_probabilities(self, allocation: BitAllocation) -> torch.Tensor:
        self._network.select(allocation)
        batches = self._splits.calibration.inputs.split(self.batch_size)
        return torch.cat(
            [
                F.log_softmax(self._network(batch, ("calibration", number)).double(), dim=1)
                for number, batch in enumerate(batches)
            ]
        )

    def weight_statistics(self) -> npt.NDArray[np.float64]:
        """Largest magnitude over standard deviation of each layer's weights; see `Evaluator.weight_statistics`."""
        ratios = []
        for weight in self._network.float_weights():
            deviation = float(weight.std(correction=0))
            ratios.append(float(weight.abs().max()) / deviation if deviation > 0 else 1.0)
        return np.asarray(ratios)
