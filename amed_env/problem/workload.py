"""What a network asks of a device: its layers as matrix products, without any torch.

A workload comes from a traced network (`amed_env.tracing.trace`) or from a CSV file with the columns
`name,kind,m,n,k,groups`; a depthwise layer has `groups` = channels, `k` = kernel height x width and `n` = 1.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from amed_env.errors import WorkloadError
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.memory_plan import NetworkMemory
from amed_env.problem.operations import Operation
from amed_env.support.files import read_limited
from amed_env.support.text import read_csv, repeated

LayerKind = Literal["conv", "depthwise", "linear", "matmul", "transposed", "embedding"]
KINDS: tuple[LayerKind, ...] = get_args(LayerKind)
BASIC_KINDS: dict[LayerKind, LayerKind] = {
    **{kind: kind for kind in KINDS},
    "transposed": "conv",
    "embedding": "linear",
}
"""What a kind is taken for by devices and features that know the first four kinds only."""
CSV_COLUMNS = ("name", "kind", "m", "n", "k", "groups")
_CSV_COUNTS = ("input_elements", "weight_elements", "output_elements")
CSV_OPTIONAL = (*_CSV_COUNTS, "batch")
_LARGEST_FILE_MIB = 64  # rows of a million layers
_LARGEST = 2**40  # a dimension beyond this is a typing error, and products would leave int64


@dataclass(frozen=True)
class Layer:
    """One quantizable operation as `groups` matrix products of (m x k) by (k x n).

    Attributes:
        name: The layer's name in its network.
        kind: `conv`, `depthwise`, `transposed` (convolution), `linear`, `embedding`, or `matmul`: the product of two
            activations, of which the second takes the place of the weights, and their width.
        m: Output pixels (times the batch); of an embedding the rows that are looked up.
        n: Filters of one group.
        k: Products that are summed for one output: input channels of a group x kernel height x kernel width.
        groups: Independent products of this shape; the channels of a depthwise layer.
        input_elements: Activations read; by default m x k x groups, the im2col size, an upper bound.
        weight_elements: Weights, or elements of the second activation; by default n x k x groups.
        output_elements: Activations written; by default m x n x groups.
        kernel: Kernel height and width.
        stride: Vertical and horizontal stride.
        shares_weights_with: The earlier layer that has the same weights, which are stored once; empty for none.
        batch: Images of which `m` has the pixels; networks are taken one by one.

    Raises:
        WorkloadError: If the name is empty, the kind unknown, or a size is no positive integer.
    """

    name: str
    kind: LayerKind
    m: int
    n: int
    k: int
    groups: int = 1
    input_elements: int = 0
    weight_elements: int = 0
    output_elements: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    shares_weights_with: str = ""
    batch: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise WorkloadError(f"a layer needs a name; found {self.name!r}.")
        if self.kind not in KINDS:
            raise WorkloadError(f"layer {self.name!r}: kind {self.kind!r} is unknown; use one of {', '.join(KINDS)}.")
        for name in ("m", "n", "k", "groups", "batch"):
            self._check_size(name)
        if self.m % self.batch:
            raise WorkloadError(f"layer {self.name!r}: m is {self.m}, no multiple of the batch of {self.batch}.")
        # Without the true counts the im2col sizes: exact for matrix products, an upper bound for convolutions.
        defaults = {
            "input_elements": self.m * self.k * self.groups,
            "weight_elements": self.n * self.k * self.groups,
            "output_elements": self.m * self.n * self.groups,
        }
        for name, default in defaults.items():
            value = getattr(self, name)
            if value == 0 and isinstance(value, int):
                object.__setattr__(self, name, default)
            self._check_size(name)
        if self.kind == "depthwise" and self.n != 1:
            raise WorkloadError(
                f"layer {self.name!r}: a depthwise layer has n = 1 filter per group, not {self.n}; "
                "put its channels into 'groups'."
            )

    def _check_size(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise WorkloadError(f"layer {self.name!r}: {name} is {value!r}, expected an integer.")
        if not 1 <= value <= _LARGEST:
            raise WorkloadError(f"layer {self.name!r}: {name} is {value}, expected 1 to {_LARGEST}.")

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of one pass; of an embedding, a scale for every value that is looked up."""
        return self.m * self.n * self.k * self.groups

    @property
    def stored_weights(self) -> int:
        """Weights that this layer adds to the network's memory: none in a product of activations, or if shared."""
        return 0 if self.kind == "matmul" or self.shares_weights_with else self.weight_elements

    @property
    def read_weights(self) -> int:
        """Weights that one pass reads: of an embedding only the rows that are looked up."""
        return min(self.weight_elements, self.m * self.n) if self.kind == "embedding" else self.weight_elements

    @property
    def scale_elements(self) -> int:
        """Scales and biases: one of each for every output channel; of an embedding a scale for every row."""
        if self.kind == "embedding":
            return self.weight_elements // self.n
        taps = self.kernel[0] * self.kernel[1] if self.kind == "transposed" else 1
        return 2 * max(1, self.out_channels // taps)

    @property
    def in_channels(self) -> int:
        """Input channels, all groups together."""
        return max(1, self.k * self.groups // (self.kernel[0] * self.kernel[1]))

    @property
    def out_channels(self) -> int:
        """Output channels, all groups together."""
        return self.n * self.groups


@dataclass(frozen=True)
class Workload:
    """The ordered layers of a network.

    Attributes:
        name: The network's name.
        layers: At least one layer; names are unique.
        edges: Pairs of layers (from, to): the second computes with what the first returns, whatever stands between
            them but other layers. Empty where it is not known, as in a file of layers.
        memory: What it keeps in memory while it runs; None where that is not known, as in a file of layers.
        operations: Its layers, and what is computed between them, in order; empty where that is not known.

    Raises:
        WorkloadError: If there is no layer, a name is repeated, or an edge or a shared weight names no layer.
    """

    name: str
    layers: tuple[Layer, ...] = field(default_factory=tuple)
    edges: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    memory: NetworkMemory | None = field(default=None, compare=False)
    operations: tuple[Operation, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise WorkloadError(f"workload {self.name!r} has no layers; it needs at least one.")
        twice = repeated(layer.name for layer in self.layers)
        if twice:
            raise WorkloadError(
                f"workload {self.name!r}: layer names must be unique; {', '.join(map(repr, twice))} is repeated."
            )
        names = {layer.name for layer in self.layers}
        referred = [end for edge in self.edges for end in edge]
        referred += [layer.shares_weights_with for layer in self.layers if layer.shares_weights_with]
        unknown = sorted({name for name in referred if name not in names})
        if unknown:
            raise WorkloadError(f"workload {self.name!r}: {unknown[0]!r} is referred to, but there is no such layer.")

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """The names in network order."""
        return tuple(layer.name for layer in self.layers)

    @cached_property
    def sharing(self) -> frozenset[str]:
        """Layers that have weights in common with another one."""
        readers = [layer for layer in self.layers if layer.shares_weights_with]
        return frozenset(name for layer in readers for name in (layer.name, layer.shares_weights_with))

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of one pass through all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weight_elements(self) -> int:
        """Weights that are stored, each once."""
        return sum(layer.stored_weights for layer in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def uniform(self, weight_bits: int, activation_bits: int | None = None) -> BitAllocation:
        """The allocation that gives every layer the same widths."""
        return BitAllocation.uniform(self.layer_names, weight_bits, activation_bits)

    def weight_kib(self, allocation: BitAllocation) -> float:
        """Size of all weights in KiB under an allocation; scales and biases are not counted.

        Weights that two layers share are stored once, if both have them at one width.
        """
        total = 0.0
        for layer in self.layers:
            bits = allocation[layer.name].weight_bits
            total += weight_kib(layer, bits)
            if layer.shares_weights_with and allocation[layer.shares_weights_with].weight_bits != bits:
                total += layer.weight_elements * bits / 8 / 1024
        return total

    def bops(self, allocation: BitAllocation) -> int:
        """Bit operations: the sum of MACs x weight bits x activation bits (Baskin et al. 2021, UNIQ)."""
        return sum(bops(layer, *allocation[layer.name]) for layer in self.layers)

    @classmethod
    def load_csv(cls, path: str | Path) -> Workload:
        """Read layers from a CSV file.

        Raises:
            WorkloadError: If the file is missing or malformed; the message has file and line.
        """
        try:
            text = read_limited(path, _LARGEST_FILE_MIB, pipes=True).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            raise WorkloadError(f"cannot read the layer file {path}: {error}.") from error
        return cls.parse_csv(text, name=Path(path).stem, where=str(path))

    @classmethod
    def parse_csv(cls, text: str, name: str = "layers", where: str = "layers") -> Workload:
        """Read layers from the text of a CSV file.

        Args:
            text: A header with `name,kind,m,n,k,groups` in any order, optionally also `input_elements`,
                `weight_elements` and `output_elements` where the true counts are known, and `batch`; then a row for
                each layer.
            name: Name of the workload.
            where: File name or other origin, for messages.

        Raises:
            WorkloadError: If a column is missing, unknown or repeated, a value is no positive integer, or there are
                no rows.
        """
        table = read_csv(text, where, ",".join(CSV_COLUMNS), WorkloadError)
        missing = [column for column in CSV_COLUMNS if column not in table.header]
        unknown = [column for column in table.header if column not in CSV_COLUMNS + CSV_OPTIONAL]
        if missing or unknown:
            raise WorkloadError(
                f"{where}, line {table.header_line}: columns missing: {', '.join(missing) or 'none'}; unknown: "
                f"{', '.join(map(repr, unknown)) or 'none'}; expected {','.join(CSV_COLUMNS)}."
            )
        layers = []
        for line, cells in table.rows:
            sizes = {}
            for column, cell in cells.items():
                left_out = column in CSV_OPTIONAL and cell == ""
                if column not in ("name", "kind") and not left_out:
                    sizes[column] = _integer(cell, f"{where}, line {line}, column {column!r}")
            try:
                layers.append(Layer(name=cells["name"], kind=cells["kind"], **sizes))  # type: ignore[arg-type]
            except WorkloadError as error:
                raise WorkloadError(f"{where}, line {line}: {error}") from error
        if not layers:
            raise WorkloadError(f"{where}: there are no layers below the header.")
        try:
            return cls(name, tuple(layers))
        except WorkloadError as error:
            raise WorkloadError(f"{where}: {error}") from error

    def to_csv(self) -> str:
        """The layers as CSV with the true element counts; `parse_csv` reads it back but for kernel and stride."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        # Without a batch as it always was: digests of tables are made of it.
        columns = CSV_COLUMNS + (_CSV_COUNTS if all(layer.batch == 1 for layer in self.layers) else CSV_OPTIONAL)
        writer.writerow(columns)
        writer.writerows([getattr(layer, column) for column in columns] for layer in self.layers)
        return stream.getvalue()


def weight_kib(layer: Layer, weight_bits: int) -> float:
    """What a layer's weights add to the memory, in KiB."""
    return layer.stored_weights * weight_bits / 8 / 1024


def flash_kib(layer: Layer, weight_bits: int, granule_bytes: int = 1) -> float:
    """What a layer takes in flash, in KiB: its weights, and a scale and a bias of four bytes for every output.

    Args:
        layer: The layer.
        weight_bits: Width of its weights.
        granule_bytes: The weights are rounded up to a multiple of this.
    """
    if layer.kind == "matmul":
        return 0.0
    weights = -(-layer.stored_weights * weight_bits // (8 * granule_bytes)) * granule_bytes
    return (weights + 4 * layer.scale_elements) / 1024


def bops(layer: Layer, weight_bits: int, activation_bits: int) -> int:
    """Bit operations of a layer: MACs x weight bits x activation bits."""
    return layer.macs * weight_bits * activation_bits


def _integer(text: str, where: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise WorkloadError(f"{where}: {text!r} is no integer.") from None
    if not 1 <= value <= _LARGEST:
        raise WorkloadError(f"{where}: {value} is out of range; expected 1 to {_LARGEST}.")
    return value
