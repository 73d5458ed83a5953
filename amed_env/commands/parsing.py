"""Texts of the command line to values: widths, agent options, and the tasks and allocations that they name."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amed_env.commands.output import Output
from amed_env.errors import AgentError, AllocationError, DataError, InputError
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.pins import parse_pins
from amed_env.problem.workload import Workload
from amed_env.tasks.catalogue import TASKS, named_workload
from amed_env.tasks.make import import_task, load_allocation, make_task
from amed_env.tasks.parts import PROGRAM_SUFFIX, import_workload

if TYPE_CHECKING:
    from amed_env.tasks.task import Task


def parse_bits(text: str) -> tuple[int, ...]:
    """Widths from `"2,3,4,8"`.

    Raises:
        AllocationError: If a part is no whole number.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise AllocationError(f"--bits {text!r}: write widths with commas, for example 2,3,4,8.") from None


def parse_options(texts: list[str]) -> dict[str, Any]:
    """Agent options from `["warm_start_steps=2000", "reward=terminal"]`; values are JSON or Python literals, or text.

    Raises:
        AgentError: If one has no `=`, or a name stands twice.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        name = name.strip()
        if not separator or not name.isidentifier():
            raise AgentError(f"--option {text!r}: write it as name=value, for example warm_start_steps=2000.")
        if name in options:
            raise AgentError(f"--option {name} is given more than once; give it once.")
        options[name] = _value(value.strip())
    return options


def _value(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError:
        pass
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    if isinstance(value, tuple):
        return list(value)
    # Options are written to JSON, which has no sets, bytes or complex numbers.
    is_plain = value is None or isinstance(value, bool | int | float | str | list | dict)
    return value if is_plain else text


def _check_exactly_one(first: object, second: object, advice: str) -> None:
    if (first is None) == (second is None):
        raise InputError(f"{advice}; {'neither is' if first is None else 'both are'} given.")


def check_task_or_network(task: str | None, network: str | None) -> None:
    """Check that either a task or a network function is named.

    Raises:
        InputError: If both are, or neither is.
    """
    _check_exactly_one(
        task,
        network,
        "name a task (see `amed tasks`) or give a network of your own with --network package.module:function",
    )


def check_network_or_layers(network: str | None, layers: Path | None) -> None:
    """Check that either a network or a file of layers is named.

    Raises:
        InputError: If both are, or neither is.
    """
    _check_exactly_one(network, layers, "give either --network or --layers FILE")


def check_complete(name: str) -> None:
    """Check that a task exists and that all its files are there, before anything slow begins.

    Raises:
        UnknownNameError: If there is no such task.
        DataError: If something is missing; the message says how to get it.
    """
    missing = TASKS.get(name).missing()
    if missing is not None:
        raise DataError(f"task {name!r}: {missing}.")


def load_task(task: str | None, network: str | None, **options: Any) -> Task:
    """The task of a name, or of a network function; `options` are those of `make_task`."""
    check_task_or_network(task, network)
    if network is not None:
        return import_task(network, **options)
    assert task is not None
    check_complete(task)
    return make_task(task, **options)


def chosen_allocation(
    workload: Workload, allocation: Path | None, bits: int | None, activation_bits: int | None, pins: Sequence[str]
) -> BitAllocation:
    """The allocation of a file, or a uniform one but for pinned layers.

    Raises:
        InputError: If a file and widths are given, or neither.
    """
    _check_exactly_one(allocation, bits, "give either --allocation FILE or --bits N")
    if allocation is not None:
        if pins:
            raise InputError("--pin goes with --bits; an allocation file has its own widths.")
        return load_allocation(allocation, workload, activation_bits)
    assert bits is not None
    return workload.uniform(bits, activation_bits).replace(parse_pins(pins, workload.layer_names))


def network_shapes(output: Output, network: str | None, layers: Path | None) -> Workload:
    """The layers of a named network, of a network function, or of a CSV file.

    Raises:
        InputError: If both are named, or neither.
    """
    check_network_or_layers(network, layers)
    if layers is not None:
        return Workload.load_csv(layers)
    assert network is not None
    with output.status(f"tracing {network}"):
        is_own = ":" in network or network.endswith(PROGRAM_SUFFIX)
        return import_workload(network) if is_own else named_workload(network)


def default_threads() -> int:
    """Threads of an evaluation: all cores, or fewer where `OMP_NUM_THREADS` says so, as elsewhere in torch."""
    from amed_env.support.machine import available_cores

    wished = os.environ.get("OMP_NUM_THREADS", "")
    return min(available_cores(), int(wished)) if wished.isdecimal() and int(wished) > 0 else available_cores()
