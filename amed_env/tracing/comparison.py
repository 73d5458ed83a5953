"""The comparison of a captured program with the untouched network."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import torch
from torch import fx, nn

from amed_env.errors import NetworkError
from amed_env.tracing.capture import module_path
from amed_env.tracing.lowering import COMPUTES
from amed_env.tracing.original import Call, tensors_of

logger = logging.getLogger(__name__)


def compare(
    outputs: Any,
    expected: list[torch.Tensor],
    tolerance: float,
    what: str,
    run: tuple[Any, fx.GraphModule, torch.Tensor] | None,
) -> float:
    """Check that outputs are those of the untouched network; returns the largest difference, relative to them.

    Raises:
        NetworkError: If they differ; the first operation that does is named, where it can be found.
    """
    found = tensors_of(outputs)
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            raise NetworkError(f"{what} returns shape {tuple(one.shape)}, the network itself {tuple(other.shape)}.")
        largest = float(other.float().abs().max()) if other.numel() else 0.0
        difference = float((one.float() - other.float()).abs().max()) if other.numel() else 0.0
        if math.isnan(difference):  # NaN in one of them; where both have it, the untouched network is refused before
            worst = math.inf
        elif difference > 0:
            worst = max(worst, difference / largest if largest > 0 else difference)
    if worst > tolerance:
        where = None if run is None else _first_difference(*run, tolerance)
        raise NetworkError(
            f"{what} differs from the network itself by {worst:.3g} of the largest output"
            f"{'' if where is None else f', first at {where}'}; it is not evaluated, since every figure would be wrong."
        )
    return worst


def difference_in_float64(
    network: nn.Module, module: fx.GraphModule, call: Call, example: torch.Tensor
) -> float | None:
    """The largest difference between both computed in float64, or None if they cannot be."""
    try:
        exact, program = copy.deepcopy(network).double().eval(), copy.deepcopy(module).double()
        inputs = example.double() if example.is_floating_point() else example
        return compare(program(inputs), call.in_float64()(exact, inputs), math.inf, "in float64", None)
    except Exception as error:  # a network may insist on float32 in ways of its own
        logger.info("it cannot be compared in float64 (%s)", error)
        return None


def _first_difference(
    before: fx.GraphModule, after: fx.GraphModule, inputs: torch.Tensor, tolerance: float
) -> str | None:
    """The first operation of a program whose result is another one than before."""
    known = {node.name: value for node, value in _results(before, inputs).items()}
    for node, value in _results(after, inputs).items():
        other = known.get(node.meta.get(COMPUTES, node.name))
        if not isinstance(value, torch.Tensor) or not isinstance(other, torch.Tensor) or value.shape != other.shape:
            continue
        found, expected = value.float(), other.float()
        if not torch.allclose(found, expected, rtol=0, atol=tolerance * _largest(expected) + 1e-6):
            return f"{node.name} in {module_path(node) or 'forward'!r}"
    return None


def _largest(values: torch.Tensor) -> float:
    """The largest absolute value that is finite."""
    return float(values.masked_fill(~values.isfinite(), 0).abs().max()) if values.numel() else 0.0


def _results(module: fx.GraphModule, inputs: torch.Tensor) -> dict[fx.Node, Any]:
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(inputs)
    return interpreter.env
