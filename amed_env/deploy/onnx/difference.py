"""Where a file first computes something else than the evaluator."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from amed_env.deploy.onnx.artefact import require
from amed_env.deploy.onnx.layers import codes_name, result_name
from amed_env.deploy.onnx.runtime import fill_up, session
from amed_env.deploy.onnx.write import QDQ_OPTIONS
from amed_env.deploy.program import Grid, Program
from amed_env.quantization.layers import QuantizedLayer, channels_last, on_grid
from amed_env.quantization.products import QuantizedProduct

# Values that lie near the middle between two codes go to the other one wherever sums are rounded otherwise; a layer
# that is wrong has many more.
_SHARE_BY_ROUNDING = 1e-3
_TOLERANCE = 1e-4
"""Of float values, relative to the largest."""


def first_difference(program: Program, path: Path, inputs: npt.NDArray[Any]) -> str | None:
    """The first layer that reads other codes than in the evaluator, or returns other values.

    Args:
        program: The network; the evaluator's must still be switched to the program's allocation.
        path: The file; it runs under the settings that are recommended.
        inputs: Numbers (N, …) as the network reads them, one batch.

    Returns:
        The layer's name: of the first with more differences than rounding makes, else of the first with any; None if
        all codes are equal, and all values within rounding error.

    Raises:
        InputError: If a package is missing.
    """
    require("onnx", "onnxruntime")
    batch = _batch(program, inputs)
    expected = _expected(program, batch)
    found = _found(path, list(expected), batch)
    shares: dict[str, float] = {}
    for node, values in found.items():
        layer = expected[node].layer
        shares[layer] = max(shares.get(layer, 0.0), expected[node].share_that_differs(values))
    beyond = [layer for layer, share in shares.items() if share > _SHARE_BY_ROUNDING]
    return next(iter(beyond or [layer for layer, share in shares.items() if share > 0]), None)


@dataclass(frozen=True)
class _Expected:
    """What the evaluator has where a node of the file makes values.

    Attributes:
        layer: The layer that reads or returns them.
        values: Integers that it reads, or floats that it returns.
        grid: Of the integers; None for floats.
    """

    layer: str
    values: npt.NDArray[np.float32]
    grid: Grid | None

    def share_that_differs(self, found: npt.NDArray[Any]) -> float:
        """The share of a file's values that are others; uint8 are codes, which count from a zero point."""
        if self.values.shape != found.shape:
            return 1.0
        if self.grid is None:
            limit = _TOLERANCE * float(np.abs(self.values).max(initial=0))
            return float(np.mean(~(np.abs(self.values - found) <= limit)))
        integers = found.astype(np.float32)
        if found.dtype == np.uint8:
            integers -= self.grid.format.zero_point
        return float(np.mean(integers != self.values))


def _batch(program: Program, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if program.fixed_batch is not None:
        inputs = fill_up(inputs[: program.fixed_batch], program.fixed_batch)
    return inputs.astype(program.example.cpu().numpy().dtype)


def _expected(program: Program, inputs: npt.NDArray[Any]) -> dict[str, _Expected]:
    """By the node's name, in the order in which the network computes."""
    expected: dict[str, _Expected] = {}
    calls: Counter[str] = Counter()

    def note(
        module: QuantizedLayer | QuantizedProduct, operands: tuple[torch.Tensor, ...], result: torch.Tensor
    ) -> None:
        calls[module.name] += 1
        call = module.name if calls[module.name] == 1 else f"{module.name}#{calls[module.name]}"
        grids = _grids(program, module.name)
        for operand, grid in enumerate(grids):
            if grid is not None:
                integers = on_grid(operands[operand], grid.scale, grid.low, grid.high)
                expected[codes_name(call, operand)] = _Expected(module.name, integers.cpu().numpy(), grid)
        expected[result_name(call)] = _Expected(module.name, result.cpu().numpy(), None)

    hooks = []
    for module in program.module.modules():
        if isinstance(module, QuantizedLayer | QuantizedProduct):
            hooks.append(module.register_forward_hook(note))
    try:
        with torch.no_grad():
            device = next(program.module.parameters()).device
            program.module(channels_last(torch.from_numpy(inputs).to(device)))
    finally:
        for hook in hooks:
            hook.remove()
    return expected


def _grids(program: Program, layer: str) -> tuple[Grid | None, ...]:
    if layer in program.products:
        product = program.products[layer]
        return product.left, product.right
    return (program.layers[layer].read,)


def _found(path: Path, nodes: list[str], batch: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """The values that nodes of a file make, by the node's name; equal values are made once, by the first."""
    import onnx

    model = onnx.load(path)
    outputs = {node.name: node.output[0] for node in model.graph.node}
    wanted = {node: outputs[node] for node in nodes if node in outputs}
    present = {value.name for value in model.graph.output}
    for value in set(wanted.values()) - present:
        model.graph.output.append(onnx.ValueInfoProto(name=value))
    runtime = session(model.SerializeToString(), QDQ_OPTIONS)
    (read,) = runtime.get_inputs()
    return dict(zip(wanted, runtime.run(list(wanted.values()), {read.name: batch}), strict=True))
