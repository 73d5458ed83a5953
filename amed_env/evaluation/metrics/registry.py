"""Metrics by name: registered ones, plug-ins of other distributions, and those of torchmetrics."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from amed_env.errors import AmedError, DataError, InputError, UnknownNameError
from amed_env.problem.score import Score
from amed_env.support.registry import Registry, import_object
from amed_env.support.text import tensor_text

if TYPE_CHECKING:
    import torch

TORCHMETRICS_PREFIX = "torchmetrics:"
"""Stands before the name of a metric of that library."""
SHIPPED = {
    "top-1": "classes:Top1",
    "top-5": "classes:Top5",
    "macro-f1": "classes:MacroF1",
    "mcc": "classes:MatthewsCorrelation",
    "mean-iou": "classes:MeanIntersectionOverUnion",
    "perplexity": "classes:Perplexity",
    "mae": "values:MeanAbsoluteError",
    "r2": "values:R2",
}
"""Metrics of this package: name to module and class below `amed_env.evaluation.metrics`."""


class Metric(Protocol):
    """What a metric has to have: two functions. One instance sees one split under one allocation, batch by batch.

    A class says as attributes what its number is: `higher_is_better` is needed; `title` (its name by default), `unit`
    (`%` for a fraction that is shown in percent) and `scale` (see `Score`; `fraction` if 1 is perfect) may be left out.
    """

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor | None:
        """Take in a batch.

        Args:
            outputs: What the network returned: float32 (N, …).
            targets: The labels of the samples, in the form that the user gave: (N, …).

        Returns:
            The value of every sample, (N,), if the metric is their mean; it then takes part in paired comparisons.
        """

    def compute(self) -> float:
        """The metric of everything so far."""


MetricFactory = Callable[[], Any]
F = TypeVar("F", bound=MetricFactory)
METRICS: Registry[MetricFactory] = Registry("metric", group="amed_env.metrics")


def register_metric(name: str) -> Callable[[F], F]:
    """Decorator that registers a metric class (see `Metric`) under a name; its constructor needs no argument.

    Example:
        >>> @register_metric("error-rate")
        ... class ErrorRate:
        ...     higher_is_better = False
        ...     def __init__(self):
        ...         self.wrong = self.samples = 0
        ...     def update(self, outputs, targets):
        ...         self.wrong += int((outputs.argmax(dim=1) != targets).sum())
        ...         self.samples += len(targets)
        ...     def compute(self):
        ...         return self.wrong / self.samples

    Raises:
        InputError: If the name is taken.
    """

    def decorator(factory: F) -> F:
        if name in SHIPPED or name.startswith(TORCHMETRICS_PREFIX):
            raise InputError(f"the metric name {name!r} is taken; choose another name.")
        METRICS.register(name, factory)
        return factory

    return decorator


def metric_names() -> list[str]:
    """Names of all metrics but those of torchmetrics, sorted."""
    return sorted({*SHIPPED, *METRICS.names()})


@dataclass(frozen=True)
class NamedMetric:
    """A metric, ready to be measured.

    Attributes:
        score: Its name, orientation and unit.
        factory: Makes an instance that has seen nothing.
    """

    score: Score
    factory: MetricFactory

    def value(self, instance: Metric) -> float:
        """What an instance computes.

        Raises:
            InputError: If it fails, or gives no number.
        """
        try:
            value = float(instance.compute())
        except AmedError:
            raise
        except Exception as error:  # a metric may be code of the user
            raise InputError(f"the metric {self.score.name!r} failed: {type(error).__name__}: {error}.") from error
        if math.isnan(value):
            raise InputError(f"the metric {self.score.name!r} is NaN; it means nothing on these samples.")
        return value

    def updated(self, instance: Metric, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor | None:
        """Let an instance take in a batch.

        Raises:
            DataError: If it cannot take such outputs or targets.
        """
        try:
            return instance.update(outputs, targets)
        except AmedError:
            raise
        except Exception as error:
            raise DataError(
                f"the metric {self.score.name!r} cannot take outputs {tensor_text(outputs)} with labels "
                f"{tensor_text(targets)}: {type(error).__name__}: {error}."
            ) from error


def find_metric(spec: str | type[Any] | NamedMetric, classes: int | None = None) -> NamedMetric:
    """A metric from what a user calls it.

    Args:
        spec: A name of `metric_names`, `torchmetrics:NAME`, `package.module:Class`, or a metric class.
        classes: Classes of the network's outputs, which many metrics of torchmetrics must be told.

    Raises:
        UnknownNameError: If there is none of that name.
        InputError: If it does not say whether more is better, or cannot be made.
    """
    if isinstance(spec, NamedMetric):
        return spec
    if not isinstance(spec, str):
        return _described_metric(getattr(spec, "__name__", repr(spec)), spec)
    if spec.startswith(TORCHMETRICS_PREFIX):
        return _torchmetric(spec, classes)
    if spec in SHIPPED:
        module, _, name = SHIPPED[spec].partition(":")
        return _described_metric(spec, getattr(importlib.import_module(f"{__package__}.{module}"), name))
    if ":" in spec:
        path_object = import_object(spec, "metric class")
        return _described_metric(spec.rpartition(":")[2], path_object)
    if spec not in METRICS:
        raise UnknownNameError("metric", spec, metric_names(), f"Others: {TORCHMETRICS_PREFIX}NAME.")
    return _described_metric(spec, METRICS.get(spec))


def find_metrics(specs: Sequence[Any], classes: int | None = None) -> tuple[NamedMetric, ...]:
    """Metrics from what a user calls them, each once."""
    found = [find_metric(spec, classes) for spec in specs]
    return tuple({metric.score.name: metric for metric in found}.values())


def _described_metric(name: str, factory: MetricFactory) -> NamedMetric:
    """A metric whose instances say what their number is."""
    try:
        instance = factory()
    except Exception as error:
        raise InputError(f"the metric {name!r} cannot be made: {type(error).__name__}: {error}.") from error
    missing = [part for part in ("update", "compute") if not callable(getattr(instance, part, None))]
    if missing:
        raise InputError(f"the metric {name!r} has no {' and no '.join(missing)}; see amed_env.register_metric.")
    higher = getattr(instance, "higher_is_better", None)
    if not isinstance(higher, bool):
        raise InputError(
            f"the metric {name!r} does not say whether more of it is better; set higher_is_better to True or False."
        )
    title, unit = getattr(instance, "title", name), getattr(instance, "unit", "")
    return NamedMetric(Score(name, title, higher, unit, getattr(instance, "scale", "open")), factory)


def _torchmetric(spec: str, classes: int | None) -> NamedMetric:
    """A metric of torchmetrics; the number of classes and the kind of task are filled in where it asks for them."""
    try:
        place: Any = importlib.import_module("torchmetrics")
    except ImportError as error:
        raise InputError(f"the metric {spec!r} needs torchmetrics; install amed-env[metrics].") from error
    path = spec.removeprefix(TORCHMETRICS_PREFIX)
    for part in path.split("."):
        place = getattr(place, part, None)
    if not isinstance(place, type):
        raise InputError(f"torchmetrics has no metric {path!r}; write it as in its documentation, with capitals.")
    parameters = inspect.signature(place).parameters
    filled: dict[str, Any] = {"task": "multiclass"} if "task" in parameters else {}
    if "num_classes" in parameters and classes is not None:
        filled["num_classes"] = classes
    return _described_metric(spec, _Torchmetric(place, tuple(filled.items())))


@dataclass(frozen=True)
class _Torchmetric:
    """Makes instances of a class of torchmetrics; unlike a function in a function it can be sent to other processes."""

    made: type[Any]
    arguments: tuple[tuple[str, Any], ...]

    def __call__(self) -> Any:
        return self.made(**dict(self.arguments))
