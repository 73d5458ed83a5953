"""A list of nodes and initializers that grows: equal ones are there once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class GraphBuilder:
    """Writes nodes and initializers.

    Args:
        taken: Names of values that must not be used again.

    Attributes:
        nodes: What was written, in order (`onnx.NodeProto`).
        initializers: Constants by name (`onnx.TensorProto`).
    """

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self._constants: dict[Any, str] = {}
        self._results: dict[Any, str] = {}
        self._number = 0

    def constant(self, values: npt.ArrayLike, dtype: Any, name: str = "constant") -> str:
        """The name of an initializer of these values."""
        from onnx import numpy_helper

        array = np.asarray(values, dtype=dtype, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._free(name)
            self.initializers[self._constants[key]] = numpy_helper.from_array(array, self._constants[key])
        return self._constants[key]

    def raw_constant(self, data_type: int, shape: Sequence[int], data: bytes, name: str) -> str:
        """The name of an initializer of a type that numpy does not have."""
        from onnx import TensorProto

        key = (data_type, tuple(shape), data)
        if key not in self._constants:
            self._constants[key] = self._free(name)
            tensor = TensorProto(name=self._constants[key], data_type=data_type, dims=shape, raw_data=data)
            self.initializers[tensor.name] = tensor
        return self._constants[key]

    def number(self, value: float | np.float32, dtype: Any = np.float32) -> str:
        """The name of a scalar."""
        return self.constant(value, dtype)

    def sizes(self, *sizes: int) -> str:
        """The name of a list of sizes."""
        return self.constant(sizes, np.int64)

    def node(self, operator: str, *inputs: str, name: str = "", domain: str = "", **attributes: Any) -> str:
        """The name of the result of a node; if it was computed before, of that one.

        Args:
            operator: Type of the node.
            inputs: What it reads.
            name: A name for the node itself, for whoever looks at the graph.
            domain: Of the operator; empty for standard ones.
            attributes: Its attributes.
        """
        from onnx import helper

        key = (operator, inputs, domain, repr(sorted(attributes.items())))
        if key not in self._results:
            self._number += 1
            result = self._free(f"v{self._number}")
            self._results[key] = result
            self.nodes.append(helper.make_node(operator, inputs, [result], name=name, domain=domain, **attributes))
        return self._results[key]

    def cast(self, values: str, data_type: str, name: str = "") -> str:
        """The name of values as another type of `onnx.TensorProto`."""
        from onnx import TensorProto

        return self.node("Cast", values, name=name, to=TensorProto.DataType.Value(data_type))

    def finish(self, result: str, output: str, name: str) -> None:
        """Let a result be the value of a name that the graph has already, as the result of a node of a name."""
        from onnx import helper

        last = self.nodes[-1] if self.nodes else None
        if last is None or list(last.output) != [result]:
            self.nodes.append(helper.make_node("Identity", [result], [output], name=name))
            return
        last.output[0], last.name = output, name
        # It cannot be found under its old name any more.
        self._results = {key: value for key, value in self._results.items() if value != result}

    def _free(self, name: str) -> str:
        free, number = name, 1
        while free in self._taken:
            number += 1
            free = f"{name}_{number}"
        self._taken.add(free)
        return free
