"""What calibration samples say about the layers of a network: what narrowing them does, kept in the cache."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from amed_env.datasets import Samples
from amed_env.errors import InputError
from amed_env.evaluation.comparisons import KullbackLeibler
from amed_env.evaluation.divergences import base_bits, measure_divergences, measure_pairs
from amed_env.evaluation.quality import Evaluator, GradientMeasure, Split
from amed_env.evaluation.scoring import Scoring
from amed_env.evaluation.sensitivities import measure_sensitivity
from amed_env.problem.allocation import FLOAT_BITS, Precision
from amed_env.quantization.network import QuantizedNetwork
from amed_env.support.cache import cached_array
from amed_env.support.threads import torch_threads

# All are part of what results depend on: other numbers give other proxies.
SENSITIVITY_SAMPLES = 512
"""Calibration samples on which single-layer sensitivities are measured: on ResNet-20 what 1,024 choose is not better
(docs/evaluation.md)."""
FIRST_SAMPLES = 125
"""Calibration samples of the first estimates: a batch. The allocations of divergences on it are within the noise of
those on 1,024, while 32 samples lose up to three points on ResNet-20 (docs/evaluation.md)."""
PAIR_SAMPLES = 256
"""Calibration samples on which pairs of layers are measured; fewer, as pairs are many."""
MEASURES_VERSION = 2
"""Changes when `sensitivities` does, so that what was kept is measured anew."""


class NetworkEstimates(Evaluator):
    """The part of an evaluator of a network that needs no search or test sample.

    Attributes:
        network: The network.
        scoring: What its outputs are compared by.
        batch_size: Samples of one forward pass.
        threads: Threads of torch; None leaves torch's setting.
    """

    network: QuantizedNetwork
    scoring: Scoring
    batch_size: int
    threads: int | None

    @abc.abstractmethod
    def samples(self, part: Split | Literal["calibration"]) -> Samples:
        """The samples of a split, or those of calibration."""

    @property
    def _class_axis(self) -> int | None:
        """Axis of the classes among the outputs; None if these are no class scores."""
        divergence = self.scoring.divergence
        return divergence.axis if isinstance(divergence, KullbackLeibler) else None

    def predicted_loss(self, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """Kullback-Leibler divergence when one layer alone is changed; see `Evaluator.predicted_loss`.

        The result is kept in the user's cache, as it depends on no device and no budget.
        """
        shape = (len(self.workload), len(precisions))
        compared = self._compared_with(precisions)
        key = f"{self.fingerprint} {SENSITIVITY_SAMPLES} {' '.join(map(str, precisions))}{compared}"
        samples = self._first_calibration(SENSITIVITY_SAMPLES)

        def compute() -> npt.NDArray[np.float64]:
            with torch_threads(self.threads):
                return measure_divergences(
                    self.network, self.scoring.divergence, samples, precisions, self.batch_size, self.on_sensitivities
                )

        return cached_array("predicted-loss", key, shape, compute)

    def sensitivity(self, measure: GradientMeasure, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """See `Evaluator.sensitivity` and `evaluation.sensitivities`; kept in the user's cache."""
        if measure != "squared-error" and not isinstance(self.scoring.divergence, KullbackLeibler):
            raise InputError(
                f"the proxy {measure!r} is about class probabilities, which network {self.workload.name!r} does not "
                "return; use the proxy 'kl' or 'squared-error'."
            )
        samples = self._whole_calibration(SENSITIVITY_SAMPLES)

        def compute() -> npt.NDArray[np.float64]:
            with torch_threads(self.threads):
                return measure_sensitivity(
                    self.network, samples, precisions, measure, self.batch_size, self._class_axis
                )

        shape = (len(self.workload), len(precisions))
        key = f"{self.fingerprint} {SENSITIVITY_SAMPLES} {self.batch_size} {' '.join(map(str, precisions))}"
        return cached_array(f"sensitivity-{measure}-{MEASURES_VERSION}", key, shape, compute)

    def first_losses(self, precisions: Sequence[Precision]) -> npt.NDArray[np.float64]:
        """See `Evaluator.first_losses`: squared gradients, at the weights that the network has now.

        Nothing is learned for it; it is kept in no cache, as it takes about as long as loading the samples.
        """
        samples = self._whole_calibration(FIRST_SAMPLES)
        with torch_threads(self.threads):
            return measure_sensitivity(self.network, samples, precisions, "gradient", self.batch_size, self._class_axis)

    def first_divergences(
        self, precisions: Sequence[Precision], cells: Iterable[tuple[int, int]]
    ) -> npt.NDArray[np.float64]:
        """See `Evaluator.first_divergences`; at the weights that the network has now."""
        samples = self._first_calibration(FIRST_SAMPLES)
        with torch_threads(self.threads):
            return measure_divergences(
                self.network, self.scoring.divergence, samples, precisions, self.batch_size, cells=cells
            )

    def pair_divergences(self, precisions: Sequence[Precision], reach: int) -> npt.NDArray[np.float64]:
        """See `Evaluator.pair_divergences`; forward passes only, kept in the user's cache."""
        layers, count = len(self.workload), len(precisions)
        samples = self._first_calibration(PAIR_SAMPLES)

        def compute() -> npt.NDArray[np.float64]:
            with torch_threads(self.threads):
                return measure_pairs(
                    self.network,
                    self.scoring.divergence,
                    samples,
                    precisions,
                    self.batch_size,
                    reach,
                    self.on_sensitivities,
                )

        compared = self._compared_with(precisions)
        key = f"{self.fingerprint} {PAIR_SAMPLES} {reach} {' '.join(map(str, precisions))}{compared}"
        return cached_array("pairs", key, (layers, count, layers, count), compute)

    def _whole_calibration(self, most: int) -> Samples:
        """The first calibration samples that make whole batches, for passes that cannot be padded."""
        calibration = self.samples("calibration")
        count = len(self.network.whole_batches(calibration.inputs[:most]))
        return calibration.subset([number % len(calibration) for number in range(count)])

    def _first_calibration(self, most: int) -> Samples:
        calibration = self.samples("calibration")
        return calibration.subset(range(min(most, len(calibration))))

    @property
    def _leaves_out_padding(self) -> bool:
        """Whether outputs are those of tokens of which an attention mask says that some do not count."""
        divergence, calibration = self.scoring.divergence, self.samples("calibration")
        of_samples = isinstance(divergence, KullbackLeibler) and divergence.axis == 1
        return not of_samples and calibration.counting(calibration.inputs[:1]) is not None

    def _compared_with(self, precisions: Sequence[Precision]) -> str:
        """What else kept divergences depend on: the form of the outputs, and the network that is narrowed."""
        return f"{self._compared}{' in float' if base_bits(precisions) == FLOAT_BITS else ''}"

    @property
    def _compared(self) -> str:
        """What of the form of the outputs is part of the keys of kept divergences; nothing for scores (N, classes)."""
        divergence = self.scoring.divergence
        if isinstance(divergence, KullbackLeibler) and divergence.axis == 1:
            return ""
        if self._leaves_out_padding:
            return f" {divergence.score.name} of tokens that count"
        if isinstance(divergence, KullbackLeibler):
            return f" classes on axis {divergence.axis}"
        return f" {divergence.score.name}"

    def weight_statistics(self) -> npt.NDArray[np.float64]:
        """Largest magnitude over standard deviation of each layer's weights; see `Evaluator.weight_statistics`."""
        ratios = []
        for weight in self.network.float_weights():
            deviation = float(weight.std(correction=0))
            ratios.append(float(weight.abs().max()) / deviation if deviation > 0 else 1.0)
        return np.asarray(ratios)
