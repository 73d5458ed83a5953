"""The parts of a network of one's own: what a function returns, or a `.pt2` file is, before a task is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amed_env.errors import AmedError, InputError
from amed_env.support.registry import import_object

if TYPE_CHECKING:
    from amed_env.datasets import Samples
    from amed_env.problem.workload import Workload
    from amed_env.tracing.packing import Inputs

PROGRAM_SUFFIX = ".pt2"
"""How the files of `torch.export.save` end."""


def import_workload(path: str) -> Workload:
    """Layers of the network of `package.module:function` or of a `.pt2` file; an example or calibration is enough.

    Raises:
        InputError: If the function cannot be imported, fails, or returns something else.
    """
    from amed_env.tracing.trace import trace

    parts = imported_parts(path)
    return trace(parts["network"], example_of(parts, path), parts["name"], outputs=parts.get("outputs")).workload


def example_of(parts: Mapping[str, Any], path: str) -> Inputs:
    """The example input among the parts of a network, its first calibration sample, or what it was exported with.

    Raises:
        InputError: If there is none.
    """
    if parts.get("example_input") is not None:
        return parts["example_input"]
    if parts.get("calibration") is not None:
        return calibration_of(parts).example()
    from amed_env.tracing.programs import given_network

    example = given_network(parts["network"]).example
    if example is None:
        raise InputError(f"{path!r} returned neither example_input nor calibration; shapes need one of them.")
    return example


def calibration_of(parts: Mapping[str, Any]) -> Samples:
    """The calibration samples among the parts of a network.

    Raises:
        DataError: If they are in no form that fits, or malformed.
        NetworkError: If the network is none, or its file cannot be read.
    """
    from amed_env.datasets.forms import as_samples
    from amed_env.tracing.programs import takes_one_input

    one_input = takes_one_input(parts["network"], parts.get("example_input"))
    transform = parts.get("transform")
    return as_samples(parts["calibration"], "calibration", labelled=False, one_input=one_input, transform=transform)


def imported_parts(path: str) -> Mapping[str, Any]:
    """What the function of a network, `package.module:function`, returns, or the network of a `.pt2` file alone.

    Returns:
        Its parts by their names in `make_task`; `network` and `name` are always among them.

    Raises:
        InputError: If the function cannot be imported, fails, or returns something else.
    """
    if path.endswith(PROGRAM_SUFFIX):
        return {"name": Path(path).stem, "network": path}
    function = import_object(path, "network function")
    if not callable(function):
        raise InputError(f"{path!r} is no function; it must return a dict with network, calibration, search and test.")
    try:
        parts = function()
    except AmedError:
        raise
    except Exception as error:
        raise InputError(f"{path!r} failed: {type(error).__name__}: {error}.") from error
    allowed = {
        *("name", "network", "example_input", "outputs", "calibration", "search", "test", "training"),
        *("transform", "score", "metrics"),
    }
    if not isinstance(parts, Mapping) or "network" not in parts or not set(parts) <= allowed:
        returned = sorted(parts) if isinstance(parts, Mapping) else type(parts).__name__
        raise InputError(
            f"{path!r} returned {returned}; expected a dict with network, calibration, search and test, and "
            "perhaps name, example_input, outputs, training, transform, score and metrics."
        )
    return {"name": path.replace(":", "."), **parts}
