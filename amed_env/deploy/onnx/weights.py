"""How the integers of a layer's weights are stored: bit planes, the types that ONNX has, or bytes.

Whatever the storage, what a layer reads in the end is a tensor of int8 or uint8, which the runtime computes once as it
loads the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from amed_env.deploy.onnx.builder import GraphBuilder
from amed_env.deploy.program import LayerProgram
from amed_env.quantization.codes import WIDEST
from amed_env.quantization.layers import SIGNED_ZERO

Storage = Literal["packed", "types", "int8"]
STORAGES: tuple[Storage, ...] = ("packed", "types", "int8")
INT2_OPSET = 25
"""The first opset that has integers of 2 bits."""


@dataclass(frozen=True)
class StoredWeights:
    """The integers of a layer in a graph.

    Attributes:
        integers: Name of a tensor of the weight's shape, output channel first: int8, uint8, or int16 above 8 bits.
        zero_point: What the integers count from: 128 for uint8, else 0.
        scales: float32 (out_channels,); negative for a channel whose integers are stored with the other sign.
    """

    integers: str
    zero_point: int
    scales: npt.NDArray[np.float32]


class WeightStore:
    """Writes weights.

    Args:
        builder: Where to.
        storage: `packed` for bit planes of any width; `types` for the types of ONNX where it has one of the width;
            `int8` for a byte a weight.
        opset: Version of the standard operators.

    Attributes:
        names: Names of the initializers that hold weights.
        packed_anyway: Layers whose width has no type, so that they are packed although types were asked for.
    """

    def __init__(self, builder: GraphBuilder, storage: Storage, opset: int) -> None:
        self._builder, self._storage = builder, storage
        self._typed = {2: "INT2", 4: "INT4"} if opset >= INT2_OPSET else {4: "INT4"}
        self.names: set[str] = set()
        self.packed_anyway: list[str] = []

    def floats(self, values: npt.NDArray[np.float32], layer: str) -> str:
        """The name of weights that stay floats."""
        return self._kept(self._builder.constant(values, np.float32, f"{layer}.weight"))

    def store(self, layer: LayerProgram) -> StoredWeights:
        """Write the integers of a layer."""
        assert layer.integers is not None and layer.scales is not None
        bits = layer.precision.weight_bits
        signs = channel_signs(layer)
        integers = layer.integers.astype(np.int32) * signs.reshape(-1, *[1] * (layer.integers.ndim - 1))
        scales = (layer.scales * signs).astype(np.float32)
        name = f"{layer.name}.weight"
        if bits > WIDEST:
            return StoredWeights(self._kept(self._builder.constant(integers, np.int16, name)), 0, scales)
        if bits == WIDEST:
            # Runtimes add two products of uint8 and int8 into 16 bits on x86 without VNNI, which saturate at 8 bits
            # (`quantization.saturation`); for products of uint8 and uint8 they use instructions that do not.
            values = integers + SIGNED_ZERO
            return StoredWeights(self._kept(self._builder.constant(values, np.uint8, name)), SIGNED_ZERO, scales)
        if self._storage == "int8":
            return StoredWeights(self._kept(self._builder.constant(integers, np.int8, name)), 0, scales)
        if self._storage == "types" and bits in self._typed:
            return StoredWeights(self._by_type(integers, bits, name), 0, scales)
        if self._storage == "types":
            self.packed_anyway.append(layer.name)
        return StoredWeights(self._packed(integers, bits, name), 0, scales)

    def _by_type(self, integers: npt.NDArray[np.int32], bits: int, name: str) -> str:
        from onnx import TensorProto

        data_type = TensorProto.DataType.Value(self._typed[bits])
        codes = _low_bits(integers, bits).reshape(-1, 1)
        stream = np.packbits((codes >> np.arange(bits, dtype=np.uint8)) & 1, bitorder="little")
        stored = self._kept(self._builder.raw_constant(data_type, integers.shape, stream.tobytes(), name))
        # Runtimes have no kernels for these types, and ONNX Runtime fuses nothing that reads them.
        return self._builder.node("Cast", stored, to=TensorProto.INT8)

    def _packed(self, integers: npt.NDArray[np.int32], bits: int, name: str) -> str:
        from onnx import TensorProto

        build = self._builder
        planes = build.constant(bit_planes(integers, bits)[:, np.newaxis, :], np.uint8, name)
        self._kept(planes)
        shifts = build.constant(np.arange(8).reshape(8, 1), np.uint8, "shifts")
        single_bits = build.node("BitwiseAnd", build.node("BitShift", planes, shifts, direction="RIGHT"), self._one())
        powers = 2 ** np.arange(bits)
        powers[-1] *= -1  # two's complement
        values = build.node("MatMulInteger", single_bits, build.constant(powers.reshape(bits, 1), np.int8, "powers"))
        if integers.size % 8:
            flat = build.node("Reshape", values, build.sizes(-1))
            values = build.node("Slice", flat, build.sizes(0), build.sizes(integers.size))
        shaped = build.node("Reshape", values, build.sizes(*integers.shape))
        return build.node("Cast", shaped, to=TensorProto.INT8)

    def _one(self) -> str:
        return self._builder.number(1, np.uint8)

    def _kept(self, name: str) -> str:
        self.names.add(name)
        return name


def channel_signs(layer: LayerProgram) -> npt.NDArray[np.int32]:
    """-1 for every output channel that holds +2^(w-1), which two's complement of w bits does not have; else 1."""
    assert layer.integers is not None
    largest = layer.integers.reshape(len(layer.integers), -1).max(axis=1)
    return np.where(largest > 2 ** (layer.precision.weight_bits - 1) - 1, -1, 1).astype(np.int32)


def bit_planes(integers: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.uint8]:
    """Integers in two's complement, the same bit of 8 in a row as one byte.

    Args:
        integers: In the range of the width.
        bits: Width, at most 8.

    Returns:
        uint8 (ceil(n / 8), bits): bit i of byte (j, p) is bit p of integer 8 j + i.
    """
    codes = _low_bits(integers, bits).reshape(-1)
    eights = np.pad(codes, (0, -codes.size % 8)).reshape(-1, 8)
    planes = [np.packbits((eights >> plane) & 1, axis=1, bitorder="little") for plane in range(bits)]
    return np.concatenate(planes, axis=1)


def _low_bits(integers: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.uint8]:
    codes: npt.NDArray[np.uint8] = (integers & (2**bits - 1)).astype(np.uint8)
    return codes
