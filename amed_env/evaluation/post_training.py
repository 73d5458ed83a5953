"""Quality of a trained network after quantization, without any retraining."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import torch

from amed_env.datasets import Samples, Splits
from amed_env.datasets.further import FurtherSamples
from amed_env.datasets.training import TrainingData
from amed_env.errors import DataError, InputError, NonFiniteError
from amed_env.evaluation.divergences import AT_ONCE
from amed_env.evaluation.estimates import NetworkEstimates
from amed_env.evaluation.finalists import TrainedWeights
from amed_env.evaluation.fitting import fit_scoring
from amed_env.evaluation.float_outputs import FloatOutputs, measure_float_outputs
from amed_env.evaluation.preparation import is_prepared, prepare_network, prepared_digest, recipe_within
from amed_env.evaluation.quality import SPLITS, Progress, Quality, Split, check_split
from amed_env.evaluation.scoring import ScoreSpec, Tally
from amed_env.problem.allocation import FLOAT_BITS, BitAllocation, Precision
from amed_env.quantization.allocation_rounding import solved_for
from amed_env.quantization.layers import PreparedWidth
from amed_env.quantization.network import Bias, Engine, QuantizedNetwork
from amed_env.quantization.recipe import Recipe, make_recipe
from amed_env.support.processes import ProcessPool
from amed_env.support.threads import torch_threads
from amed_env.tracing.digest import program_digest
from amed_env.tracing.finite import first_non_finite_operation
from amed_env.tracing.traced_network import TracedNetwork

logger = logging.getLogger(__name__)

REUSE_MIB = 2048
"""Default memory for results of layers: more than one pass of ResNet-20 over 2,000 images."""
# Part of what results depend on: another number gives other ranges and fingerprints.
RANGE_SAMPLES = 1_024
"""Calibration samples that set the ranges; learning uses all of them."""
LEAST_LEARNING_BATCH = 8
"""Samples of a step below which rounding is not learned: gradients of fewer mostly show their noise."""
STREAMED_BATCH_MIB = 16
"""Inputs of one forward pass where samples are read anew in each: 27 images of 3 x 224 x 224, whose activations in a
ResNet-18 are 90 MiB a layer."""


class PostTrainingEvaluator(NetworkEstimates):
    """Runs a quantized network over the samples of a split: on integers where it can, in float otherwise.

    Args:
        traced: The network.
        splits: Calibration, search and test samples.
        recipe: How it is prepared for narrow widths: a name of `quantization.recipe.RECIPES`, a `Recipe`, or None for
            the default. The network is prepared when it is first needed, or by `prepare`.
        batch_size: Samples of one forward pass.
        threads: Threads of torch during an evaluation; None leaves torch's setting.
        reuse_mib: Memory in MiB for results of layers that the next allocation may share (`quantization.reuse`); None
            for `REUSE_MIB`.
        engine: `auto` or `float`; see `QuantizedNetwork`.
        device: Where floats are computed.
        bias: `float` or `int32`; see `QuantizedNetwork`.
        score: What qualities are scored by; see `make_task`.
        metrics: What is measured of labelled samples besides; see `make_task`.
        further: What samples there are besides, for the choice at the end of a search.
        of_package: Whether the network is one of the package's own, which its weights tell from all others. Of others
            the program is part of what results are kept by: the same weights may be used otherwise tomorrow.

    Raises:
        DataError: If labels do not fit the outputs or the score, a label is not one of the network's classes, or search
            or test samples have only one class.
    """

    def __init__(
        self,
        traced: TracedNetwork,
        splits: Splits,
        recipe: str | Recipe | None = None,
        *,
        batch_size: int = 125,
        threads: int | None = None,
        reuse_mib: int | None = None,
        engine: Engine = "auto",
        device: str = "cpu",
        bias: Bias = "float",
        score: ScoreSpec = None,
        metrics: Sequence[Any] | None = None,
        further: FurtherSamples | None = None,
        of_package: bool = False,
    ) -> None:
        self.workload = traced.workload
        self.kept_float = tuple(f"{kept.name} ({kept.type}): {kept.reason}" for kept in traced.kept_float)
        fixed = traced.batch_size
        if fixed is not None and fixed < LEAST_LEARNING_BATCH and recipe is None:
            logger.warning(
                "%s takes batches of %d samples only, so rounding is solved layer by layer and nothing is learned",
                traced.workload.name,
                fixed,
            )
            recipe = "solved"
        self.recipe = make_recipe(recipe)
        if fixed is not None and self.recipe.learns:
            if fixed < LEAST_LEARNING_BATCH:
                raise InputError(
                    f"network {traced.workload.name!r} takes batches of {fixed} samples only, too few to learn its "
                    "rounding; use the recipe 'solved', or let the network take any number of samples."
                )
            self.recipe = self.recipe.with_changes(batch_size=fixed)
        if any(samples.streamed for samples in splits.parts().values()):
            # The data do not fit in memory, so the activations of large batches may not either.
            calibration = splits.calibration.inputs
            sample_mib = calibration[0].numel() * calibration.element_size() / 2**20
            batch_size = max(1, min(batch_size, int(STREAMED_BATCH_MIB / sample_mib)))
        self.threads, self.batch_size = threads, traced.batch_size or batch_size
        self.traced, self._splits, self.of_package = traced, splits, of_package
        self._further = FurtherSamples() if further is None else further
        self.splits = SPLITS if splits.test is not None else ("search",)
        with torch_threads(threads):
            self.network = QuantizedNetwork(
                traced,
                splits.calibration.inputs[:RANGE_SAMPLES],
                batch_size,
                REUSE_MIB if reuse_mib is None else reuse_mib,
                engine,
                device,
                self.recipe.equalize,
                bias,
            )
            self.scoring = fit_scoring(self.network, splits, score, metrics)
        self.score = self.scoring.score
        self.metrics = tuple(metric.score for metric in self.scoring.metrics)
        self._float_outputs: dict[Split, FloatOutputs] = {}
        # Of the folded weights, by name: where they were loaded from makes no difference.
        digest = hashlib.sha256()
        for name, tensor in sorted(traced.module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        if not of_package:
            digest.update(program_digest(traced.module).encode())
        self._network_fingerprint = digest.hexdigest()
        self._prepared: str | None = None
        self._workers: ProcessPool[PostTrainingEvaluator] | None = None

    def prepare(
        self,
        progress: Progress | None = None,
        seconds: float | None = None,
        precisions: Iterable[Precision] | None = None,
    ) -> None:
        """Prepare the network by the recipe, or take what was prepared before; a second call does nothing.

        Args:
            progress: Called with the steps done and all steps, if something has to be learned.
            seconds: Time for learning: `recipe` then has as many steps as fit into it (`preparation.recipe_within`);
                None for all of the recipe's.
            precisions: What will be evaluated, so that with `seconds` no time goes into anything else; None is all.
        """
        if self._prepared is None:
            inputs = self._splits.calibration.inputs
            if seconds is not None:
                self.recipe = recipe_within(
                    self.network, self.recipe, inputs, self.made_of, seconds, self.threads, self._class_axis, precisions
                )
            self._prepared = prepare_network(
                self.network, self.recipe, inputs, self.made_of, self.threads, progress, self._class_axis
            )

    def adopt(self, widths: Mapping[tuple[str, int], PreparedWidth], stored_scales: Sequence[float]) -> None:
        """Evaluate with weights and scales that were found elsewhere, by training for example.

        Args:
            widths: By layer and width.
            stored_scales: Of the results that are kept at 8 bits, in their order.
        """
        self.prepare()
        for (layer, bits), width in widths.items():
            self.network.use(layer, bits, width)
        for number, scale in enumerate(stored_scales):
            self.network.use_stored(number, scale)
        self._prepared = f"{self._prepared} {prepared_digest(widths)} {list(stored_scales)}"

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Whatever is adopted while this lasts is forgotten afterwards."""
        self.prepare()
        prepared = self._prepared
        try:
            with self.network.restored():
                yield
        finally:
            self._prepared = prepared

    @cached_property  # all calibration samples are read for it
    def made_of(self) -> str:
        """Text that changes with the network and the calibration samples: what a preparation depends on."""
        return f"{self._network_fingerprint} {self._splits.calibration.fingerprint()}"

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Text that changes with the network, the samples, the recipe and what came out of it."""
        self.prepare()
        parts = [self._network_fingerprint, self._splits.fingerprint(), self.recipe.fingerprint(), self._prepared]
        if self._leaves_out_padding:  # earlier versions counted it, so their trials are of another score
            parts.append("tokens that count")
        if self.network.bias != "float":
            parts.append(f"{self.network.bias} biases")
        return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()

    def samples(self, part: Split | Literal["calibration"]) -> Samples:
        """The samples of a split, or those of calibration.

        Raises:
            DataError: If there are none of that split.
        """
        parts = self._splits.parts()
        if part != "calibration" and check_split(part) not in parts:
            raise DataError(f"network {self.workload.name!r} was given no {part} samples.")
        return parts[part]

    @property
    def solves_answers(self) -> bool:  # type: ignore[override]
        """Whether learning was so brief that weights solved for one allocation are better (docs/evaluation.md)."""
        return self.recipe.learns and self.recipe.start == "solved" and self.network.fixed_batch is None

    def solved_weights(self, allocation: BitAllocation) -> TrainedWeights:
        """See `Evaluator.solved_weights`."""
        self.prepare()
        with torch_threads(self.threads):
            widths = solved_for(self.network, allocation, self._splits.calibration.inputs)
        return TrainedWeights(widths, [stored.scale for stored in self.network.stored])

    @property
    def training_data(self) -> TrainingData:
        """What the network can be trained on.

        Raises:
            DataError: If there is nothing, or it has no class numbers.
        """
        return self._further.training

    def with_more_samples(self, *, tuned: bool = False) -> PostTrainingEvaluator | None:
        """See `Evaluator.with_more_samples`; it shares the network, so it evaluates what this one adopts.

        Training samples are among them for scores that compare with the float network; labels of samples that the
        network was trained on would say little.
        """
        with_training = self.scoring.comparison is not None
        samples = self._further.all_samples(self._splits, with_training=with_training, tuned=tuned)
        if samples is None:
            return None
        self.prepare()
        wider = copy.copy(self)
        wider._splits = Splits(self._splits.calibration, samples, None, allow_duplicates=True)
        wider.splits, wider._float_outputs = ("search",), {}
        return wider

    @property
    def in_float(self) -> dict[str, str]:
        """Layers that are computed in float although their widths are integers, with the reason."""
        return self.network.in_float

    def network_evaluator(self) -> PostTrainingEvaluator:
        """See `Evaluator.network_evaluator`."""
        return self

    def float_remarks(self) -> list[str]:
        """See `Evaluator.float_remarks`."""
        if self.network.why_float is not None:
            return [f"evaluated in float: {self.network.why_float}"]
        return [f"layer {name} is evaluated in float: {reason}" for name, reason in self.in_float.items()]

    def float_outputs(self, split: Split) -> FloatOutputs | None:
        """What the float network returns for the samples of a split; None if the score does not compare with it."""
        comparison = self.scoring.comparison
        if comparison is None:
            return None
        if split not in self._float_outputs:
            key = f"{self._network_fingerprint} {self.recipe.equalize}"
            measured = measure_float_outputs(
                self.network, self.samples(split), self.batch_size, with_spread=comparison.normalised, key=key
            )
            self._float_outputs[split] = measured
        return self._float_outputs[split]

    def evaluate(self, allocation: BitAllocation, split: Split = "search") -> Quality:
        """Quality of an allocation on a split; see `Evaluator.evaluate`."""
        samples = self.samples(split)
        self.prepare()
        tally = Tally(self.scoring, keep=True)
        with torch_threads(self.threads):
            reference = self.float_outputs(split)
            if reference is not None and reference.batches is None:
                return self._evaluate_part([allocation], split, keep=True)[0]
            self.network.select(allocation)
            in_float = allocation == self.workload.uniform(FLOAT_BITS)
            try:
                for number, (inputs, labels) in enumerate(samples.batches(self.batch_size)):
                    compared = _batch_of(reference, number)
                    if in_float and compared is not None:
                        outputs = compared
                    else:
                        # The test split is for the final report: its batches do not come again. And where not even the
                        # inputs are kept, the results of layers are not.
                        come_again = split == "search" and not samples.streamed
                        outputs = self.network(inputs, (samples, number) if come_again else None)
                    tally.add(outputs, labels, compared, samples.counting(inputs))
                return tally.quality(allocation, split, 1.0 if reference is None else reference.spread)
            except NonFiniteError as error:
                raise self._not_finite(allocation, split, error.layer) from error

    def evaluate_many(
        self,
        allocations: Sequence[BitAllocation],
        split: Split = "search",
        *,
        workers: int = 1,
        progress: Progress | None = None,
    ) -> list[Quality]:
        """Qualities of many allocations: the same numbers as one by one, but what they share is computed once.

        Args:
            allocations: In any order; they are sorted into a tree of common first layers.
            split: The split.
            workers: Processes that share the work, each with one thread of torch; 1 works in this process.
            progress: Called with the evaluations done and all evaluations.

        Returns:
            A quality for each allocation, in the order in which they were given.
        """
        check_split(split)
        self.prepare()
        names = self.workload.layer_names
        ordered = sorted(
            {allocation.require_layers(names, f"network {self.workload.name!r}") for allocation in allocations},
            # Neighbours in this order share the most first layers, which are computed once.
            key=lambda allocation: tuple(allocation.values()),
        )
        qualities_of: dict[BitAllocation, Quality] = {}
        parts = _in_parts(ordered, AT_ONCE, workers)
        for part, qualities in self._map(parts, split, workers):
            qualities_of.update(zip(part, qualities, strict=True))
            if progress is not None:
                progress(len(qualities_of), len(ordered))
        return [qualities_of[allocation.require_layers(names, "the network")] for allocation in allocations]

    def _map(
        self, parts: list[list[BitAllocation]], split: Split, workers: int
    ) -> Iterable[tuple[list[BitAllocation], list[Quality]]]:
        if workers <= 1:
            for part in parts:
                yield part, self._evaluate_part(part, split)
            return
        if self._workers is None or self._workers.count != workers:
            self.close()
            sent = copy.copy(self)
            sent.threads = 1
            self._workers = ProcessPool(workers, sent)
        for part, future in self._workers.completed(PostTrainingEvaluator._evaluate_part, parts, split):
            yield part, future.result()

    def _evaluate_part(self, allocations: list[BitAllocation], split: Split, keep: bool = False) -> list[Quality]:
        """Qualities of allocations in a good order; `keep` those of single samples."""
        samples = self.samples(split)
        tallies = [Tally(self.scoring, keep) for _ in allocations]
        with torch_threads(self.threads):
            reference = self.float_outputs(split)
            # Float outputs that are too large to keep are computed batch by batch, before what is compared with them.
            again = reference is not None and reference.batches is None
            swept = [self.workload.uniform(FLOAT_BITS), *allocations] if again else allocations
            float_outputs: torch.Tensor | None = None
            batch: tuple[torch.Tensor | None, torch.Tensor | None] = None, None

            def read() -> Iterator[torch.Tensor]:
                nonlocal batch
                for inputs, labels in samples.batches(self.batch_size):
                    batch = labels, samples.counting(inputs)
                    yield inputs

            try:
                for number, position, outputs in self.network.sweep(swept, read()):
                    if again and position == 0:
                        float_outputs = outputs.cpu()
                        continue
                    compared = float_outputs if again else _batch_of(reference, number)
                    labels, counting = batch
                    tallies[position - again].add(outputs, labels, compared, counting)
                spread = 1.0 if reference is None else reference.spread
                return [
                    tally.quality(allocation, split, spread)
                    for tally, allocation in zip(tallies, allocations, strict=True)
                ]
            except NonFiniteError as error:
                if len(allocations) == 1:
                    raise self._not_finite(allocations[0], split, error.layer) from error
                # One by one, so that the message can name the allocation and the module.
                return [self._evaluate_part([allocation], split, keep)[0] for allocation in allocations]

    def close(self) -> None:
        """End the worker processes, if there are any."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _not_finite(self, allocation: BitAllocation, split: Split, met_by: str | None) -> NonFiniteError:
        """The error of a network that returns NaN or infinity somewhere, with the first module that does.

        Args:
            allocation: The allocation.
            split: The split.
            met_by: The layer that met NaN or infinity, if it is known.
        """
        samples = self.samples(split)
        self.network.select(allocation)
        # The float network has all of its modules; in the quantized one, small ones have become functions.
        modules = (self.traced.module, self.network.module)
        named = (
            first_non_finite_operation(module, inputs.to(next(module.parameters()).device))
            for module in modules
            for inputs, _ in samples.batches(self.batch_size)
        )
        culprit = next(filter(None, named), "a function outside of its modules")
        met = "" if met_by is None else f", and layer {met_by!r} meets it"
        return NonFiniteError(
            f"the network returns NaN or infinity on the {split} split under {allocation.key()!r}: "
            f"{culprit} does first{met}.",
            met_by,
        )

    @property
    def prepares_at_once(self) -> bool:
        """See `Evaluator.prepares_at_once`."""
        return self._prepared is not None or is_prepared(self.recipe, self.made_of, self._class_axis)

    def __getstate__(self) -> dict[str, object]:
        # Nothing is chosen or tuned in other processes, and training sets are large.
        return {**self.__dict__, "_workers": None, "on_sensitivities": None, "_further": FurtherSamples()}


def _in_parts(allocations: Sequence[BitAllocation], largest: int, workers: int) -> list[list[BitAllocation]]:
    """Runs of neighbours: at most `largest` in each, and a few for every worker, so that all end together."""
    size = largest
    if workers > 1:
        of_four_for_each = -(-len(allocations) // (4 * workers))
        size = max(1, min(largest, of_four_for_each))
    return [list(allocations[start : start + size]) for start in range(0, len(allocations), size)]


def _batch_of(reference: FloatOutputs | None, number: int) -> torch.Tensor | None:
    if reference is None:
        return None
    assert reference.batches is not None  # the caller looked
    return reference.batches[number]
