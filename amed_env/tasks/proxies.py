"""Proxies: named priors of what every layer loses at every precision alone, optimised in place of the truth.

A proxy is a function from a task to a float64 table (L, P); the sum over layers predicts the loss of an allocation. It
depends on the network, its calibration samples and the precisions, never on device or budget: one computation, kept in
the user's cache or shipped beside a table, serves all of them. None of them asks for the quality of an allocation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amed_env.errors import AgentError, InputError
from amed_env.evaluation.quality import GradientMeasure
from amed_env.support.registry import Registry
from amed_env.tasks.task import Task

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Proxy:
    """A named prior.

    Attributes:
        name: Its name, as in `--option proxy=NAME`.
        description: One line: what it measures, unit, source.
        measure: Task to float64 (L, P).
    """

    name: str
    description: str
    measure: Callable[[Task], FloatArray]


PROXIES: Registry[Proxy] = Registry("proxy")
"""Proxies by name."""
_SYNONYMS = {"taylor": "fisher", "hessian-trace": "hessian", "mse": "squared-error", "squared_error": "squared-error"}


def register_proxy(proxy: Proxy) -> Proxy:
    """Make a proxy known under its name.

    Raises:
        InputError: If the name is taken.
    """
    if proxy.name in PROXIES:
        raise InputError(f"a proxy named {proxy.name!r} is registered already; choose another name.")
    PROXIES.register(proxy.name, proxy)
    return proxy


def get_proxies(names: str | Iterable[str]) -> list[Proxy]:
    """Proxies by their names, given as a list or as one text with commas.

    `taylor`, `hessian-trace` and `mse` are other names that papers use.

    Raises:
        UnknownNameError: If there is none of that name.
        AgentError: If none is named, or what is given is no text.
    """
    listed: list[str] = []
    if isinstance(names, str):
        listed = names.split(",")
    elif isinstance(names, Iterable):
        listed = list(names)
    if not listed or not all(isinstance(name, str) for name in listed):
        raise AgentError(f"proxy is {names!r}; give a name or several: {', '.join(PROXIES.names())}.")
    return [PROXIES.get(_SYNONYMS.get(name.strip(), name.strip())) for name in listed]


def proxy_table(task: Task, proxy: Proxy) -> FloatArray:
    """A proxy's table for a task, checked: float64 (L, P).

    Raises:
        InputError: If the table has another shape, or holds NaN or infinity.
    """
    table = np.asarray(proxy.measure(task), dtype=np.float64)
    shape = (len(task.workload), len(task.precisions))
    if table.shape != shape:
        raise InputError(f"proxy {proxy.name!r} gave a table of shape {table.shape}; it must be {shape}.")
    if not np.isfinite(table).all():
        raise InputError(f"proxy {proxy.name!r} gave NaN or infinity; every value must be a finite number.")
    return table


def _register(name: GradientMeasure, description: str) -> None:
    register_proxy(Proxy(name, description, lambda task: task.evaluator.sensitivity(name, task.precisions)))


register_proxy(
    Proxy(
        "kl",
        "Kullback-Leibler divergence in nats when one layer alone is quantized (forward passes)",
        lambda task: task.predicted_loss,
    )
)
_register("squared-error", "noise-to-signal ratio of the layer's weights and of what it reads")
_register("fisher", "squared first-order change of the loss by the layer's output error, in nats (Fisher/Taylor)")
_register("hessian", "mean Hessian diagonal x squared error, in nats (Hutchinson's estimate; HAWQ-V2)")
