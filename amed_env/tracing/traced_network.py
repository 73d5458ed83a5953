"""What tracing makes of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from amed_env.problem.workload import Workload
from amed_env.tracing.stored import StoredProgram


@dataclass(frozen=True)
class KeptFloat:
    """An operation that is computed in float, and why.

    Attributes:
        name: Path of the module in which it runs; `forward` for the network itself.
        type: Name of the operation.
        reason: Why it is not quantized.
        macs: Multiply-accumulate operations a sample.
    """

    name: str
    type: str
    reason: str
    macs: int = 0


@dataclass(frozen=True)
class TracedNetwork:
    """A network that is ready to be quantized.

    Attributes:
        module: What the network computes, as a graph whose layers are modules of torch by their names; batch norms are
            folded, everything is float32, and nothing is changed in place.
        workload: Its quantizable layers in the order in which they first run.
        kept_float: Operations with weights, and products, that stay in float.
        batch_size: The only batch size that it takes, or None if it takes any.
        remarks: What a user should know, a line each.
        difference: Largest difference from the untouched network that was found, as a part of its largest output.
    """

    module: fx.GraphModule
    workload: Workload
    kept_float: tuple[KeptFloat, ...]
    batch_size: int | None = None
    remarks: tuple[str, ...] = ()
    difference: float = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "module": StoredProgram.of(self.module)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "module": state["module"].program()})
