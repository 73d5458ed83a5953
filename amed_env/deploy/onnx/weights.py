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
from amed_env.deploy.packing import bit_stream, mirrored_channels
from amed_env.deploy.program import LayerProgram
from amed_env.quantization.codes import WIDEST

Storage = Literal["packed", "types", "int8"]
STORAGES: tuple[Storage, ...] = ("packed", "types", "int8")
INT2_OPSET = 25
"""The first opset that has integers of 2 bits."""


@dataclass(frozen=True)
class StoredWeights:
    """The integers of a layer in a graph.

    Attributes:
        integers: Name of a tensor of the weight's shape, output channel first: int8, uint8, or int16 above 8 bits.
        zero_point: What they count from: 2^(w-1) for uint8, else 0.
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
        unsigned: Whether layers read uint8 at all widths up to 8, or int8 below 8 bits.

    Attributes:
        names: Names of the initializers that hold weights.
        packed_anyway: Layers whose width has no type, so that they are packed although types were asked for.
    """

    def __init__(self, builder: GraphBuilder, storage: Storage, opset: int, unsigned: bool) -> None:
        self._builder, self._storage, self._unsigned = builder, storage, unsigned
        self._typed = (2, 4) if opset >= INT2_OPSET else (4,)
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
        assert integers.min() >= -(2 ** (bits - 1)) and integers.max() < 2 ** (bits - 1)
        scales = (layer.scales * signs).astype(np.float32)
        name = f"{layer.name}.weight"
        if bits > WIDEST:
            return StoredWeights(self._kept(self._builder.constant(integers, np.int16, name)), 0, scales)
        # Runtimes add two products of uint8 and int8 into 16 bits on x86 without VNNI, which saturate at 8 bits
        # (`quantization.saturation`); for products of uint8 and uint8 they use instructions that do not.
        unsigned = self._unsigned or bits == WIDEST
        zero_point = 2 ** (bits - 1) if unsigned else 0
        stored = self._by_bytes if bits == WIDEST or self._storage == "int8" else self._packed
        if self._storage == "types" and bits in self._typed:
            stored = self._by_type
        elif self._storage == "types" and bits != WIDEST:
            self.packed_anyway.append(layer.name)
        return StoredWeights(stored(integers + zero_point, bits, unsigned, name), zero_point, scales)

    def _by_bytes(self, integers: npt.NDArray[np.int32], bits: int, unsigned: bool, name: str) -> str:
        return self._kept(self._builder.constant(integers, np.uint8 if unsigned else np.int8, name))

    def _by_type(self, integers: npt.NDArray[np.int32], bits: int, unsigned: bool, name: str) -> str:
        from onnx import TensorProto

        data_type = TensorProto.DataType.Value(f"{'UINT' if unsigned else 'INT'}{bits}")
        stream = bit_stream(_low_bits(integers, bits), bits)
        stored = self._kept(self._builder.raw_constant(data_type, integers.shape, stream.tobytes(), name))
        # Runtimes have no kernels for these types, and ONNX Runtime fuses nothing that reads them.
        return self._as_bytes(stored, unsigned)

    def _packed(self, integers: npt.NDArray[np.int32], bits: int, unsigned: bool, name: str) -> str:
        build = self._builder
        planes = build.constant(bit_planes(integers, bits)[:, np.newaxis, :], np.uint8, name)
        self._kept(planes)
        shifts = build.constant(np.arange(8).reshape(8, 1), np.uint8, "shifts")
        shifted = build.node("BitShift", planes, shifts, direction="RIGHT")
        single_bits = build.node("BitwiseAnd", shifted, build.number(1, np.uint8))
        powers = 2 ** np.arange(bits)
        if not unsigned:
            powers[-1] *= -1  # two's complement
        values = build.node("MatMulInteger", single_bits, build.constant(powers.reshape(bits, 1), np.int8, "powers"))
        if integers.size % 8:
            flat = build.node("Reshape", values, build.sizes(-1))
            values = build.node("Slice", flat, build.sizes(0), build.sizes(integers.size))
        return self._as_bytes(build.node("Reshape", values, build.sizes(*integers.shape)), unsigned)

    def _as_bytes(self, integers: str, unsigned: bool) -> str:
        return self._builder.cast(integers, "UINT8" if unsigned else "INT8")

    def _kept(self, name: str) -> str:
        self.names.add(name)
        return name


def channel_signs(layer: LayerProgram) -> npt.NDArray[np.int32]:
    """-1 for every output channel that holds +2^(w-1), which two's complement of w bits does not have; else 1."""
    assert layer.integers is not None
    return np.where(mirrored_channels(layer.integers, layer.precision.weight_bits), -1, 1).astype(np.int32)


def bit_planes(integers: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.uint8]:
    """The same bit of 8 integers in a row as one byte.

    Args:
        integers: In the range of the width; negative ones in two's complement.
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
