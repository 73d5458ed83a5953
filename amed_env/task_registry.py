"""Named networks with their data, and `make_task`: the one way to a task, from a name or from one's own module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amed_env.allocation import BitAllocation
from amed_env.errors import AmedError, DataError, InputError, PluginError
from amed_env.objective import parse_budgets
from amed_env.registry import Registry, import_object

if TYPE_CHECKING:
    import torch
    from torch import nn

    from amed_env.datasets import Samples, Splits
    from amed_env.evaluation.quality import Evaluator
    from amed_env.hardware.protocol import HardwareBackend
    from amed_env.quantization.network import Engine
    from amed_env.quantization.recipe import Recipe
    from amed_env.task import Task
    from amed_env.workload import Workload

DEFAULT_DEVICE = "bitfusion"


@dataclass(frozen=True)
class NamedNetwork:
    """A network that tasks can name, with its data.

    Attributes:
        description: One line for `amed tasks`.
        input_shape: Shape of one sample.
        architecture: Makes the untrained network; enough to trace its shapes without any data.
        trained: Makes the trained network.
        splits: Loads calibration, search and test samples.
        missing: Says what is missing on this machine, or None if the task can run.
        fetch: For a task of a plug-in: downloads what is missing; the files of this package are in `datasets.fetch`.
    """

    description: str
    input_shape: tuple[int, ...]
    architecture: Callable[[], nn.Module]
    trained: Callable[[], nn.Module]
    splits: Callable[[], Splits]
    missing: Callable[[], str | None]
    fetch: Callable[[], object] | None = None


TASKS: Registry[NamedNetwork] = Registry("task", group="amed_env.tasks")


def _digits_cnn() -> NamedNetwork:
    def architecture() -> nn.Module:
        from amed_env.networks import DigitsCNN

        return DigitsCNN()

    def trained() -> nn.Module:
        from amed_env.networks import pretrained_digits_cnn

        return pretrained_digits_cnn()

    def splits() -> Splits:
        from amed_env.datasets.digits import digits_splits

        return digits_splits()

    return NamedNetwork(
        "8 layers, scikit-learn's handwritten digits; embedded, nothing to download",
        (1, 8, 8),
        architecture,
        trained,
        splits,
        missing=lambda: None,
    )


def _cifar10_resnet20() -> NamedNetwork:
    def architecture() -> nn.Module:
        from amed_env.networks import resnet20

        return resnet20()

    def trained() -> nn.Module:
        from amed_env.networks import pretrained_resnet20

        return pretrained_resnet20()

    def splits() -> Splits:
        from amed_env.datasets.cifar10 import cifar10_splits

        return cifar10_splits()

    def missing() -> str | None:
        from amed_env.datasets.cifar10 import FOLDER, TEST_FILE, TRAIN_FILES
        from amed_env.datasets.location import data_dir

        try:
            folder = data_dir()
        except AmedError as error:
            return str(error)
        files = [
            *(f"{FOLDER}/{name}" for name in (*TRAIN_FILES, TEST_FILE)),
            "weights/cifar10_resnet20.safetensors",
        ]
        absent = [name for name in files if not (folder / name).is_file()]
        if not absent:
            return None
        return f"{len(absent)} of {len(files)} files are missing below {folder}; run: amed fetch cifar10-resnet20"

    return NamedNetwork(
        "20 layers, CIFAR-10, float accuracy 91.73 %; 2,000 images for search, 8,000 for test",
        (3, 32, 32),
        architecture,
        trained,
        splits,
        missing,
    )


TASKS.register("digits-cnn", _digits_cnn())
TASKS.register("cifar10-resnet20", _cifar10_resnet20())


def named_network(name: str) -> NamedNetwork:
    """The network of a task's name.

    Raises:
        UnknownNameError: If there is no task of that name.
        PluginError: If a plug-in provides something else under it.
    """
    entry = TASKS.get(name)
    if not isinstance(entry, NamedNetwork):
        raise PluginError(f"the task {name!r} of a plug-in is {entry!r}; expected a NamedNetwork.")
    return entry


def named_workload(name: str) -> Workload:
    """Layers of a named network; needs neither its weights nor its data."""
    import torch

    from amed_env.tracing import trace

    entry = named_network(name)
    return trace(entry.architecture(), torch.zeros(1, *entry.input_shape), name).workload


def make_task(
    name: str | None = None,
    *,
    network: nn.Module | None = None,
    example_input: torch.Tensor | None = None,
    calibration: Any = None,
    search: Any = None,
    test: Any = None,
    device: str | Path | HardwareBackend | type[HardwareBackend] = DEFAULT_DEVICE,
    bits: Sequence[int] = (2, 3, 4, 8),
    separate: bool = False,
    budget: Mapping[str, str | float] | Iterable[str] | None = None,
    threads: int | None = None,
    reuse_mib: int | None = None,
    recipe: str | Recipe | None = None,
    engine: Engine = "auto",
    evaluation_device: str = "cpu",
) -> Task:
    """Make a task from a name, or from a network of one's own.

    Args:
        name: A name from `amed tasks`; or, with `network`, the name to give to it.
        network: A trained module made of Conv1d, Conv2d and Linear layers; it is not changed.
        example_input: Float tensor (N, …) for tracing; the first calibration sample by default.
        calibration: Samples that set the quantization ranges: a float32 tensor (N, …), an `(inputs, labels)` pair,
            `Samples`, or a torch dataset.
        search: Labelled samples that score allocations during the search, in any of these forms but the bare tensor.
        test: Labelled samples for the final report.
        device: A device name, a device file, `package.module:Class`, or a backend.
        bits: Widths to choose from.
        separate: Whether weights and activations get widths of their own.
        budget: Limits, `{"latency": 0.6}` (relative to uniform 8 bit) or `{"memory": "96KiB"}`.
        threads: Threads of torch during an evaluation; None leaves torch's setting.
        reuse_mib: Memory in MiB for results of layers that the next allocation may share; None for the default.
        recipe: How the network is prepared for narrow widths: a name (`nearest`, `layer`, `block`, `network` …), a
            `Recipe`, or None for the default; see docs/evaluation.md. Learning runs once and is kept in the cache.
        engine: `auto` evaluates on integers where it can, `float` always on fake-quantized floats.
        evaluation_device: Where floats are computed, for example `cuda`.

    Returns:
        The task.

    Raises:
        AmedError: One of its subclasses, if something does not fit; the message says what and how to mend it.
    """
    from amed_env.hardware import load_device
    from amed_env.task import Task

    backend = load_device(device)
    budgets = parse_budgets(budget)
    options: dict[str, Any] = {"threads": threads, "engine": engine, "device": evaluation_device}
    if reuse_mib is not None:
        options["reuse_mib"] = reuse_mib
    if network is None:
        given = [
            key
            for key, value in {
                "example_input": example_input,
                "calibration": calibration,
                "search": search,
                "test": test,
            }.items()
            if value is not None
        ]
        if name is None or given:
            raise InputError(
                "a task needs a name, or a network with its calibration, search and test samples; "
                f"{', '.join(given) or 'neither'} is given without a network."
            )
        entry = named_network(name)
        evaluator = _evaluator(entry.trained(), None, entry.splits(), name, recipe, options)
        return Task(name, evaluator, backend, bits, separate=separate, budgets=budgets)

    absent = [
        key for key, value in {"calibration": calibration, "search": search, "test": test}.items() if value is None
    ]
    if absent:
        raise DataError(f"a network of your own also needs {', '.join(absent)} samples.")
    from amed_env.datasets import Splits

    splits = Splits(
        _samples(calibration, "calibration", labelled=False),
        _samples(search, "search"),
        _samples(test, "test"),
    )
    name = name or type(network).__name__
    evaluator = _evaluator(network, example_input, splits, name, recipe, options)
    return Task(name, evaluator, backend, bits, separate=separate, budgets=budgets)


def import_task(path: str, **options: Any) -> Task:
    """A task from `package.module:function`, whose function returns the keyword arguments of a network for `make_task`.

    Args:
        path: The import path.
        **options: Further arguments of `make_task` (device, bits, budget …).

    Raises:
        InputError: If the function cannot be imported, fails, or returns something else.
    """
    return make_task(**{"name": path.replace(":", "."), **_imported_parts(path)}, **options)


def import_workload(path: str) -> Workload:
    """Layers of the network that `package.module:function` returns; an example input or calibration samples are enough.

    Raises:
        InputError: If the function cannot be imported, fails, or returns something else.
    """
    from amed_env.tracing import trace

    parts = _imported_parts(path)
    example = parts.get("example_input")
    if example is None:
        if parts.get("calibration") is None:
            raise InputError(f"{path!r} returned neither example_input nor calibration; shapes need one of them.")
        example = _samples(parts["calibration"], "calibration", labelled=False).inputs[:1]
    return trace(parts["network"], example, parts.get("name", path.replace(":", "."))).workload


def _imported_parts(path: str) -> Mapping[str, Any]:
    """What a user's function returns, after checking its keys."""
    function = import_object(path, "network function")
    if not callable(function):
        raise InputError(f"{path!r} is no function; it must return a dict with network, calibration, search and test.")
    try:
        parts = function()
    except AmedError:
        raise
    except Exception as error:
        raise InputError(f"{path!r} failed: {type(error).__name__}: {error}.") from error
    allowed = {"name", "network", "example_input", "calibration", "search", "test"}
    if not isinstance(parts, Mapping) or "network" not in parts or not set(parts) <= allowed:
        found = sorted(parts) if isinstance(parts, Mapping) else type(parts).__name__
        raise InputError(
            f"{path!r} returned {found}; expected a dict with network, calibration, search and test, and "
            "perhaps name and example_input."
        )
    return parts


def _evaluator(
    network: nn.Module,
    example_input: torch.Tensor | None,
    splits: Splits,
    name: str,
    recipe: str | Recipe | None,
    options: Mapping[str, Any],
) -> Evaluator:
    from amed_env.evaluation.post_training import PostTrainingEvaluator
    from amed_env.tracing import trace

    example = splits.calibration.inputs[:1] if example_input is None else example_input
    return PostTrainingEvaluator(trace(network, example, name), splits, recipe, **options)


def _samples(given: Any, part: str, labelled: bool = True) -> Samples:
    """Samples from whatever form a user has them in."""
    import torch

    from amed_env.datasets import Samples

    if isinstance(given, Samples):
        return given
    if isinstance(given, torch.Tensor):
        if labelled:
            raise DataError(f"the {part} samples have no labels; give a pair (inputs, labels).")
        return Samples(given, torch.zeros(len(given), dtype=torch.int64), part)
    if isinstance(given, tuple | list) and len(given) == 2 and all(hasattr(item, "__len__") for item in given):
        return Samples(torch.as_tensor(given[0]), torch.as_tensor(given[1]), part)
    if hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        if len(given) == 0:
            raise DataError(f"the {part} samples are empty; give at least one.")
        pairs = [given[index] for index in range(len(given))]
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            raise DataError(f"the {part} data set must yield (input, label) pairs.")
        return Samples(
            torch.stack([torch.as_tensor(x) for x, _ in pairs]),
            torch.as_tensor([int(y) for _, y in pairs]),
            part,
        )
    raise DataError(
        f"the {part} samples are {type(given).__name__}; give (inputs, labels), Samples or a torch data set."
    )


def load_allocation(path: str | Path, workload: Workload) -> BitAllocation:
    """An allocation file, checked against the layers that it is meant for."""
    return BitAllocation.load(path).require_layers(workload.layer_names, f"network {workload.name!r}")
