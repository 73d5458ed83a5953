"""The named networks: what they are made of, and what of it is missing on this machine.

A task of this package is a row at the end of this file. What it needs is named by import paths, so that nothing heavy
is imported before it is used. Other distributions add tasks through the entry-point group `amed_env.tasks`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from amed_env.errors import AmedError, PluginError
from amed_env.support.data_files import (
    CIFAR10_FILES,
    DS_CNN_WEIGHTS,
    FASHION_FILES,
    KEYWORDS_FILE,
    RESNET8_WEIGHTS,
    RESNET20_WEIGHTS,
    RESNET56_WEIGHTS,
)
from amed_env.support.location import data_dir
from amed_env.support.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from amed_env.datasets import Splits
    from amed_env.datasets.training import TrainingData
    from amed_env.evaluation.table import TableEvaluator
    from amed_env.problem.workload import Workload
    from amed_env.tracing.trace import Inputs


@dataclass(frozen=True)
class NamedNetwork:
    """A network that tasks can name, with its data.

    Attributes:
        description: One line for `amed tasks`.
        input_shape: Shape of one sample; a tuple of shapes for a network that takes several tensors.
        architecture: Makes the untrained network; enough to trace its shapes without any data.
        trained: Makes the trained network.
        splits: Loads calibration, search and test samples.
        missing: Says what is missing on this machine, or None if the task can run.
        fetch: For a task of a plug-in: downloads what is missing; the files of this package are in `datasets.fetch`.
        table: Loads the quality table of a tabular task, which is then all that the task needs.
        training: Loads what the network can be trained on; None if there is nothing.
    """

    description: str
    input_shape: tuple[int, ...] | tuple[tuple[int, ...], ...]
    architecture: Callable[[], nn.Module]
    trained: Callable[[], nn.Module]
    splits: Callable[[], Splits]
    missing: Callable[[], str | None]
    fetch: Callable[[], object] | None = None
    table: Callable[[], TableEvaluator] | None = None
    training: Callable[[], TrainingData] | None = None

    def untrained(self) -> nn.Module:
        """The untrained network, with the same random weights every time: its captured program is then found again."""
        import torch  # here, as a listing of tasks must not wait for it

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return self.architecture()

    def zeros(self) -> Inputs:
        """A sample of zeros, enough for tracing."""
        import torch

        single = tuple(size for size in self.input_shape if isinstance(size, int))
        several = tuple(shape for shape in self.input_shape if not isinstance(shape, int))
        return tuple(torch.zeros(1, *shape) for shape in several) if several else torch.zeros(1, *single)


@dataclass(frozen=True)
class TablePlan:
    """What a quality table of a task covers.

    Attributes:
        bits: Widths that every layer chooses from.
        ties: Groups of layers that share a choice.
    """

    bits: tuple[int, ...] = (2, 3, 4, 8)
    ties: tuple[tuple[str, ...], ...] = ()


TABULAR_PREFIX = "tabular/"
"""Stands before the name of a task whose every allocation is in a table."""

TASKS: Registry[NamedNetwork] = Registry("task", group="amed_env.tasks")


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
    entry = named_network(name)
    return entry.table().table.ties.full if entry.table is not None else _traced_workload(entry, name)


@functools.cache
def _traced_workload(entry: NamedNetwork, name: str) -> Workload:
    from amed_env.tracing.trace import trace  # brings torch, which tables do without

    return trace(entry.untrained(), entry.zeros(), name).workload


def _add(
    name: str,
    description: str,
    input_shape: tuple[int, ...],
    *,
    architecture: str,
    trained: str,
    splits: str,
    files: tuple[str, ...] = (),
    training: str | None = None,
) -> None:
    """Register a task of this package.

    Args:
        name: Its name.
        description: One line for `amed tasks`.
        input_shape: Shape of one sample.
        architecture: `module:function` below `amed_env.networks`.
        trained: The same of the trained network.
        splits: `module:function` below `amed_env.datasets`.
        files: What it needs in the data folder, relative to it.
        training: `module:function` below `amed_env.datasets`, if there is a training set.
    """
    TASKS.register(
        name,
        NamedNetwork(
            description,
            input_shape,
            _lazy(f"amed_env.networks.{architecture}"),
            _lazy(f"amed_env.networks.{trained}"),
            _lazy(f"amed_env.datasets.{splits}"),
            lambda: _missing_files(name, files),
            training=None if training is None else _lazy(f"amed_env.datasets.{training}"),
        ),
    )


def _add_table(name: str, description: str) -> None:
    """Register the tabular task of a task of this package whose table is shipped."""

    def load() -> TableEvaluator:
        from amed_env.evaluation.table import shipped_table

        return shipped_table(name)

    # The table stands for the network and its data, so nothing can be missing.
    entry = replace(TASKS.get(name), description=description, missing=lambda: None, table=load, training=None)
    TASKS.register(f"{TABULAR_PREFIX}{name}", entry)


def _lazy(path: str) -> Callable[[], Any]:
    """A function that imports the one of that path when it is called."""
    module, _, name = path.partition(":")
    return lambda: getattr(importlib.import_module(module), name)()


def _missing_files(task: str, files: tuple[str, ...]) -> str | None:
    if not files:
        return None
    try:
        folder = data_dir()
    except AmedError as error:
        return str(error)
    absent = [name for name in files if not (folder / name).is_file()]
    if not absent:
        return None
    return f"{len(absent)} of {len(files)} files are missing below {folder}; run: amed fetch {task}"


_add(
    "digits-cnn",
    "8 layers, scikit-learn's handwritten digits; embedded, nothing to download",
    (1, 8, 8),
    architecture="digits_cnn:DigitsCNN",
    trained="digits_cnn:pretrained_digits_cnn",
    splits="digits:digits_splits",
    training="digits:digits_training",
)
_add(
    "fashion-cnn",
    "10 layers, linear bottlenecks, Fashion-MNIST, float accuracy 91.25 %; 2,000 / 8,000 images for search / test",
    (1, 28, 28),
    architecture="fashion_cnn:fashion_cnn",
    trained="fashion_cnn:pretrained_fashion_cnn",
    splits="fashion_mnist:fashion_mnist_splits",
    training="fashion_mnist:fashion_mnist_training_data",
    files=FASHION_FILES,
)
_add(
    "cifar10-resnet8",
    "10 layers of MLPerf Tiny, CIFAR-10, float accuracy 87.21 %; 2,000 / 8,000 images for search / test",
    (3, 32, 32),
    architecture="mlperf_tiny:resnet8",
    trained="mlperf_tiny:pretrained_resnet8",
    splits="cifar10:cifar10_raw_splits",
    training="cifar10:cifar10_raw_training",
    files=(*CIFAR10_FILES, RESNET8_WEIGHTS),
)
_add(
    "cifar10-resnet20",
    "20 layers, CIFAR-10, float accuracy 91.73 %; 2,000 / 8,000 images for search / test",
    (3, 32, 32),
    architecture="resnet_cifar:resnet20",
    trained="resnet_cifar:pretrained_resnet20",
    splits="cifar10:cifar10_splits",
    training="cifar10:cifar10_training",
    files=(*CIFAR10_FILES, RESNET20_WEIGHTS),
)
_add(
    "cifar10-resnet56",
    "56 layers, CIFAR-10, float accuracy 93.39 %; 2,000 / 8,000 images for search / test",
    (3, 32, 32),
    architecture="resnet_cifar:resnet56",
    trained="resnet_cifar:pretrained_resnet56",
    splits="cifar10:cifar10_splits",
    training="cifar10:cifar10_training",
    files=(*CIFAR10_FILES, RESNET56_WEIGHTS),
)
_add(
    "kws-dscnn",
    "10 layers of MLPerf Tiny, spoken keywords, float accuracy 91.30 %; 400 / 400 samples for search / test",
    (1, 49, 10),
    architecture="mlperf_tiny:ds_cnn",
    trained="mlperf_tiny:pretrained_ds_cnn",
    splits="keywords:keyword_splits",
    files=(KEYWORDS_FILE, DS_CNN_WEIGHTS),
)

TABULAR: dict[str, TablePlan] = {
    "digits-cnn": TablePlan(),
    "cifar10-resnet8": TablePlan(ties=(("block2.conv2", "block2.shortcut"), ("block3.conv2", "block3.shortcut"))),
    "kws-dscnn": TablePlan(bits=(2, 4, 8)),
}
"""Tasks of which there is a quality table, or for which one can be built; see `benchmarks/build_tables.py`."""

_add_table(
    "digits-cnn", "8 layers, all 65,536 allocations of digits-cnn in a table: no data, no network, known optimum"
)
_add_table(
    "cifar10-resnet8",
    "8 groups of layers, all 65,536 allocations of cifar10-resnet8 in a table; shortcuts share a width with their "
    "blocks: no data, no network",
)
_add_table(
    "kws-dscnn", "10 layers, all 59,049 allocations of kws-dscnn at 2, 4 and 8 bits in a table: no data, no network"
)
