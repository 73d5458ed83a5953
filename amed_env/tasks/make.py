"""`make_task`: the one way to a task, from a name of the catalogue or from one's own module."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from amed_env.errors import DataError, InputError, UnsupportedPrecisionError
from amed_env.problem.allocation import BitAllocation, read_json
from amed_env.problem.foreign_allocations import foreign_allocation
from amed_env.problem.objective import Budget, parse_budgets
from amed_env.tasks.catalogue import TABULAR_PREFIX, NamedNetwork, named_network
from amed_env.tasks.parts import calibration_of, imported_parts

if TYPE_CHECKING:
    import numpy as np

    from amed_env.datasets import Samples, Splits
    from amed_env.datasets.training import TrainingData
    from amed_env.evaluation.post_training import PostTrainingEvaluator
    from amed_env.evaluation.quality import Evaluator
    from amed_env.evaluation.table import TableEvaluator
    from amed_env.hardware.protocol import HardwareBackend
    from amed_env.problem.workload import Workload
    from amed_env.quantization.network import Bias, Engine
    from amed_env.quantization.recipe import Recipe
    from amed_env.tasks.task import Task
    from amed_env.tracing.original import OneTensor, Outputs
    from amed_env.tracing.packing import Inputs
    from amed_env.tracing.trace import Network
    from amed_env.training.in_training import InTraining

logger = logging.getLogger(__name__)

DEFAULT_DEVICE = "bitfusion"
COMPARED_SAMPLES = 64
"""Calibration samples on which what was captured is compared with the network: half a batch, so it is quick."""
SEARCH_SAMPLES = 5_000
"""Search samples of one's own network that score allocations; 5,000 rank them at .82, as far as any number was seen to
(docs/scores.md). The others are kept for the finalists."""
DEFAULT_SCORES = (None, "divergence")
"""Scores that follow from the form of the outputs."""
_SEARCH_SALT = "amed/search/1"  # another text would deal the search samples of users' tasks anew


def make_task(
    name: str | None = None,
    *,
    network: Network | None = None,
    example_input: Inputs | None = None,
    outputs: Outputs | None = None,
    calibration: Any = None,
    search: Any = None,
    test: Any = None,
    training: Any = None,
    transform: Callable[[Any], Any] | None = None,
    device: str | Path | HardwareBackend | type[HardwareBackend] = DEFAULT_DEVICE,
    bits: Sequence[int] | None = None,
    separate: bool = False,
    activation_bits: int | None = None,
    budget: Mapping[str, str | float] | Iterable[str] | None = None,
    pin: Mapping[str, Any] | Iterable[str] | None = None,
    threads: int | None = None,
    reuse_mib: int | None = None,
    recipe: str | Recipe | None = None,
    engine: Engine = "auto",
    bias: Bias = "float",
    evaluation_device: str = "cpu",
    evaluation: Literal["post-training", "in-training"] | InTraining = "post-training",
    score: str | Callable[[Any, Any], Any] | None = None,
    metrics: Sequence[Any] | None = None,
    search_samples: int | None = None,
) -> Task:
    """Make a task from a name, or from a network of one's own.

    Args:
        name: A name from `amed tasks`; or, with `network`, the name to give to it.
        network: A trained module that `torch.export` can follow, an `ExportedProgram`, or the path of its `.pt2` file;
            it is not changed.
        example_input: Inputs (N, …) for tracing; the first calibration sample by default. A tensor, a tuple of
            arguments, a dict of keyword arguments, or a nested tree of these, as everywhere below.
        outputs: Picks the tensor that counts, (N, …), of what the network returns; by default its only floating-point
            tensor, or `logits`. Several, in any tree, are put side by side and compared as values.
        calibration: Samples that set the quantization ranges: inputs (N, …), an `(inputs, labels)` pair, a dict of
            inputs and `labels`, `Samples`, a torch dataset of pairs or dicts (map-style or iterable), or a
            `DataLoader`. They are kept in memory; of other samples what does not fit is read whenever it is needed.
            Sequences of different lengths are padded where the inputs have an `attention_mask`.
        search: Samples that score allocations during the search, in any of these forms; a few thousand rank them well.
            They need labels for the scores `loss` and `metric`, and for metrics in the report. The calibration samples
            serve where none are given. Of more than 5,000 as many are drawn; the finalists are scored on all.
        test: Samples for the final report; without any, nothing unseen confirms the result.
        training: What the network can be trained on, in any of these forms: the finalists of a search are scored on
            them too, and tuned on them if that is asked for, which takes class numbers as labels.
        transform: Makes of a batch of inputs as they are stored, for example uint8 images (N, …), one as the network
            takes it; for calibration, search, test and training samples.
        device: A device name, a device file, `package.module:Class`, or a backend.
        bits: Widths to choose from, as far as the device runs them; by default 2, 3, 4 and 8, or what it has of a
            layer's own (see docs/your_device.md), or the widths of a table.
        separate: Whether weights and activations get widths of their own.
        activation_bits: One width for all activations (32: float), so that only the weights' widths are chosen.
        budget: Limits, `{"latency": 0.6}` (relative to uniform 8 bit) or `{"memory": "96KiB"}`.
        pin: Layers that keep a width, by name, `first` or `last`: `{"first": 8, "last": 8}`; `(8, 4)` for weights and
            activations apart.
        threads: Threads of torch during an evaluation; None leaves torch's setting.
        reuse_mib: Memory in MiB for results of layers that the next allocation may share; None for the default.
        recipe: How the network is prepared for narrow widths: a name (`nearest`, `layer`, `block`, `network` …), a
            `Recipe`, or None for the default; see docs/evaluation.md. Learning runs once and is kept in the cache.
        engine: `auto` evaluates on integers where it can, `float` always on fake-quantized floats.
        bias: `int32` evaluates with biases as integer-only devices have them: in 32 bits, counted in the product of
            both scales. At narrow widths that is coarse.
        evaluation_device: Where floats are computed, for example `cuda`.
        evaluation: `post-training` scores the network as it is. `in-training` trains it at every allocation for some
            steps first (AMED), or as an `InTraining` says; that takes training samples with class numbers as labels.
        score: What the search optimises. `divergence`, the default for networks: how far outputs are from the float
            network's, by their form: `kl`, the mean Kullback-Leibler divergence of class probabilities in nats, or
            `squared-error`, normalised by the variance of the float outputs. `loss`: the cross-entropy of labels.
            `metric`: the first of `metrics`; or the name of a metric. A function of (outputs, float outputs) that
            returns a value for each sample, less being better. Tables that hold no divergence default to `metric`.
        metrics: What is measured of labelled samples besides: names (`top-1`, `top-5`, `macro-f1`, `mcc`, `mean-iou`,
            `mae`, `r2`, `perplexity`, `torchmetrics:NAME`) or classes; see `register_metric`. By default the usual
            one: `top-1` for class numbers, `mean-iou` for masks, `perplexity` for tokens, `mae` for values.
        search_samples: How many of the search samples score allocations during the search; the finalists are scored on
            all. By default all of a task of the package, and at most 5,000 of your own.

    Returns:
        The task.

    Raises:
        AmedError: One of its subclasses, if something does not fit; the message says what and how to mend it.
    """
    # Here, as help and listings need this module's names and no device: pydantic alone takes 0.1 s.
    from amed_env.hardware import load_device

    backend = load_device(device)
    _check_search_samples(search_samples)
    in_training = _in_training(evaluation)
    chosen = Chosen(bits, separate, activation_bits, parse_budgets(budget), pin, in_training, search_samples)
    evaluating: dict[str, Any] = {
        "threads": threads,
        "reuse_mib": reuse_mib,
        "engine": engine,
        "bias": bias,
        "device": evaluation_device,
        "score": score,
        "metrics": metrics,
    }
    samples = {
        "calibration": calibration,
        "search": search,
        "test": test,
        "training": training,
        "transform": transform,
    }
    if network is not None:
        return _task_of_module(network, name, example_input, outputs, samples, backend, chosen, recipe, evaluating)
    parts = {"example_input": example_input, "outputs": outputs, **samples}
    superfluous = [key for key, value in parts.items() if value is not None]
    if name is None or superfluous:
        raise InputError(
            "a task needs a name, or a network with its calibration, search and test samples; "
            f"{', '.join(superfluous) or 'neither'} is given without a network."
        )
    entry = named_network(name)
    if entry.table is not None and chosen.in_training is not None:
        raise InputError(
            f"task {name!r} is a table, in which nothing can be trained; in-training evaluation belongs to the task of "
            f"the network itself, {name.removeprefix(TABULAR_PREFIX)!r}."
        )
    if entry.table is None:
        return _task_of_name(name, entry, backend, chosen, recipe, evaluating)
    if search_samples is not None:
        raise InputError(
            f"task {name!r} is a table of all its search samples; search_samples belongs to the task of the network "
            f"itself, {name.removeprefix(TABULAR_PREFIX)!r}."
        )
    if recipe is not None or engine != "auto" or bias != "float":
        raise InputError(
            f"task {name!r} is a table that was made with the default recipe; recipe, engine and bias belong to the "
            f"task of the network itself, {name.removeprefix(TABULAR_PREFIX)!r}."
        )
    if metrics is not None:
        raise InputError(
            f"task {name!r} is a table of accuracies and losses; other metrics belong to the task of the network "
            f"itself, {name.removeprefix(TABULAR_PREFIX)!r}."
        )
    evaluator = entry.table()
    if score is not None:
        evaluator = evaluator.scored(str(score))
    return _task_of_table(name, evaluator, backend, chosen)


def _check_search_samples(count: int | None) -> None:
    """Check a number of search samples.

    Raises:
        InputError: If it is no whole number of at least 1.
    """
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise InputError(f"search_samples is {count!r}; give a whole number of at least 1.")


def _in_training(evaluation: str | InTraining) -> InTraining | None:
    """How a network is trained while its allocations are scored; None if it is not."""
    if evaluation == "post-training":
        return None
    from amed_env.training.in_training import InTraining

    if evaluation == "in-training":
        return InTraining()
    if isinstance(evaluation, InTraining):
        return evaluation
    raise InputError(f"evaluation is {evaluation!r}; give 'post-training', 'in-training', or InTraining(steps=…).")


@dataclass(frozen=True)
class Chosen:
    """What the user decides about the search, whatever the network comes from; see `make_task`."""

    bits: Sequence[int] | None
    separate: bool
    activation_bits: int | None
    budgets: tuple[Budget, ...]
    pins: Mapping[str, Any] | Iterable[str] | None
    in_training: InTraining | None
    search_samples: int | None

    def task(self, name: str, evaluator: Evaluator, backend: HardwareBackend) -> Task:
        """The task of an evaluator and a device."""
        from amed_env.tasks.task import Task, space_of

        if self.in_training is not None:
            from amed_env.training.in_training import InTrainingEvaluator

            space = space_of(evaluator, backend, self.bits, self.separate, self.activation_bits, self.pins)
            evaluator = InTrainingEvaluator(evaluator.network_evaluator(), self.in_training, space.bits)
        return Task(
            name,
            evaluator,
            backend,
            self.bits,
            separate=self.separate,
            activation_bits=self.activation_bits,
            budgets=self.budgets,
            pins=self.pins,
        )


def _task_of_name(
    name: str,
    entry: NamedNetwork,
    backend: HardwareBackend,
    chosen: Chosen,
    recipe: str | Recipe | None,
    evaluation: Mapping[str, Any],
) -> Task:
    """A task of the catalogue whose network is evaluated."""
    from amed_env.datasets.further import FurtherSamples  # here, as data bring torch

    splits, left_out = entry.splits(), None
    if chosen.search_samples is not None and chosen.search_samples < len(splits.search):
        splits, left_out = _with_search_samples(splits, range(len(splits.search)), chosen.search_samples)
    further = FurtherSamples(left_out, entry.training)
    options = {**evaluation, "further": further, "of_package": True}
    evaluator = _evaluator(entry.trained(), None, None, splits, name, recipe, options)
    return chosen.task(name, evaluator, backend)


def _with_search_samples(
    splits: Splits, order: Sequence[int] | np.ndarray, count: int
) -> tuple[Splits, Samples | None]:
    """The splits with the first `count` search samples of an order, and the others, if there are any."""
    drawn = replace(splits, search=splits.search.subset(order[:count]), allow_duplicates=True)  # they were looked for
    return drawn, splits.search.subset(order[count:]) if len(order) > count else None


def _task_of_table(name: str, evaluator: TableEvaluator, backend: HardwareBackend, chosen: Chosen) -> Task:
    """A task of the catalogue whose every allocation is in a table."""
    if chosen.separate or chosen.activation_bits is not None:
        raise InputError(f"task {name!r} is a table of one width a layer; leave separate and activation_bits out.")
    widths = [precision.weight_bits for precision in evaluator.table.precisions]
    unknown = sorted(set(chosen.bits or ()).difference(widths))
    if unknown:
        raise UnsupportedPrecisionError(
            f"the table of task {name!r} has no {' and no '.join(map(str, unknown))} bits; it has "
            f"{', '.join(map(str, widths))}. The task of the network itself, {name.removeprefix(TABULAR_PREFIX)!r}, "
            "evaluates any width."
        )
    return chosen.task(name, evaluator, backend)


def _task_of_module(
    network: Network,
    name: str | None,
    example_input: Inputs | None,
    outputs: Outputs | None,
    samples: Mapping[str, Any],
    backend: HardwareBackend,
    chosen: Chosen,
    recipe: str | Recipe | None,
    evaluation: Mapping[str, Any],
) -> Task:
    """A task of one's own network and samples."""
    if samples["calibration"] is None:
        raise DataError(
            "a network of your own also needs calibration samples, and search samples are good to have; from the "
            "command line, --network takes a package.module:function that returns them beside the network (which may "
            "be the path of a .pt2 file)."
        )
    # Here and below: data and networks bring torch, which tabular tasks do without.
    from amed_env.datasets import Splits
    from amed_env.datasets.forms import as_samples
    from amed_env.datasets.further import FurtherSamples
    from amed_env.datasets.samples import drawn_order
    from amed_env.datasets.streaming import with_one_length
    from amed_env.evaluation.fitting import scoring_remarks
    from amed_env.tracing.original import OneTensor

    transform = samples["transform"]
    if transform is not None and not callable(transform):
        raise InputError(f"transform is {transform!r}; give a function of a batch of inputs.")
    calibration = calibration_of({"network": network, "example_input": example_input, **samples})
    read = partial(as_samples, labelled=None, one_input=calibration.form is None, transform=transform, in_memory=False)
    others = {part: read(samples[part], part) for part in ("search", "test") if samples[part] is not None}
    parts = with_one_length({"calibration": calibration, **others})
    calibration, others = parts.pop("calibration"), parts
    splits = Splits(calibration, others.get("search", calibration), others.get("test"))
    load_training = None
    if samples["training"] is not None:
        load_training = partial(_training, samples["training"], read, calibration)
    left_out = None
    # They may come sorted by class, and any first part of them should stand for all.
    if "search" in others:
        order = drawn_order(len(splits.search), _SEARCH_SALT)
        splits, left_out = _with_search_samples(splits, order, chosen.search_samples or SEARCH_SAMPLES)
    elif chosen.search_samples is not None:
        raise InputError("search_samples counts search samples, and none are given; leave it out, or give some.")
    evaluation = {**evaluation, "further": FurtherSamples(left_out, load_training)}
    picked = None if outputs is None else OneTensor(outputs)
    evaluator = _evaluator(network, example_input, picked, splits, name, recipe, evaluation)
    name = evaluator.workload.name
    by_form = evaluation["score"] in DEFAULT_SCORES and not (picked is not None and picked.several)
    for remark in scoring_remarks(evaluator.scoring, splits, by_form):
        logger.warning("%s: %s", name, remark)
    return chosen.task(name, evaluator, backend)


def _training(source: Any, read: Callable[..., Samples], calibration: Samples) -> Samples | TrainingData:
    from amed_env.datasets.streaming import with_one_length
    from amed_env.datasets.training import TrainingData

    if isinstance(source, TrainingData):
        return source
    training = read(source, "training")
    return with_one_length({"calibration": calibration, "training": training})["training"]


def import_task(path: str, **options: Any) -> Task:
    """A task from `package.module:function`, whose function returns the keyword arguments of a network for `make_task`.

    Args:
        path: The import path.
        **options: Further arguments of `make_task` (device, bits, budget …); those that are not None have precedence.

    Raises:
        InputError: If the function cannot be imported, fails, or returns something else.
    """
    return task_of_parts(imported_parts(path), **options)


def task_of_parts(parts: Mapping[str, Any], **options: Any) -> Task:
    """A task from what the function of a network returns.

    Args:
        parts: What it returns.
        **options: Further arguments of `make_task`; those that are not None have precedence.
    """
    given = {name: value for name, value in options.items() if value is not None}
    return make_task(**{**parts, **given})


def _evaluator(
    network: Network,
    example_input: Inputs | None,
    outputs: OneTensor | None,
    splits: Splits,
    name: str | None,
    recipe: str | Recipe | None,
    options: Mapping[str, Any],
) -> PostTrainingEvaluator:
    from amed_env.evaluation.post_training import PostTrainingEvaluator
    from amed_env.tracing.original import class_scores
    from amed_env.tracing.trace import trace

    example = splits.calibration.example()
    if example_input is not None:
        _check_same_form(example_input, example)
        example = example_input
    traced = trace(network, example, name, splits.calibration.inputs[:COMPARED_SAMPLES], outputs or class_scores)
    if outputs is not None and outputs.several and options["score"] in DEFAULT_SCORES:
        options = {**options, "score": "squared-error"}
    return PostTrainingEvaluator(traced, splits, recipe, **options)


def _check_same_form(example_input: Inputs, sample: Inputs) -> None:
    """Check that an example has inputs of the shapes, and by the names, of a calibration sample."""
    from amed_env.tracing.packing import packed_inputs

    try:
        (_, given), (_, expected) = packed_inputs(example_input), packed_inputs(sample)
    except ValueError as error:
        raise DataError(f"the example input cannot be used: {error}") from error
    if (given.tree, given.shapes) != (expected.tree, expected.shapes):
        raise DataError(
            f"the example input has shapes {given.listed()} but the calibration samples {expected.listed()}, both "
            "without N."
        )


def load_allocation(path: str | Path, workload: Workload, activation_bits: int | None = None) -> BitAllocation:
    """An allocation file of ours or of another tool, checked against the layers that it is meant for.

    Args:
        path: The file; other tools' forms are those of `problem.foreign_allocations`.
        workload: The network's layers.
        activation_bits: Width of activations that another tool's file says nothing of.

    Raises:
        AllocationError: If it cannot be read, or does not fit.
    """
    document = read_json(path)
    if isinstance(document, dict) and not {"format", "layers"} & set(document):
        kinds = {layer.name: layer.kind for layer in workload}
        return foreign_allocation(document, kinds, str(path), activation_bits)
    if activation_bits is not None:
        raise InputError(f"{path} has the widths of activations; leave --activation-bits out.")
    found = BitAllocation.from_json(document, str(path))
    return found.require_layers(workload.layer_names, f"network {workload.name!r}")
