"""Typed sections of device files: arrays, precision, buffers, external memory, energy, processors, proxies.

Every section has a `source` that says where its constants come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from amed_env.hardware.files.layer_choices import PairsByKind, PairsByLayer, check_pairs
from amed_env.hardware.files.yaml_faults import Text
from amed_env.hardware.protocol import Capabilities
from amed_env.problem.workload import KINDS, LayerKind

# Upper limits catch a value in the wrong unit (Hz for MHz) and keep arithmetic inside int64.
SerialOperands = Literal["weights", "activations", "both"]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1, le=65536)]
Cycles = Annotated[int, Field(strict=True, ge=0, le=10**12)]
Bits = Annotated[int, Field(strict=True, ge=1, le=16)]
Positive = Annotated[float, Field(strict=True, gt=0, le=1e9, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(strict=True, ge=0, le=1e9, allow_inf_nan=False)]


def _distinct(bits: tuple[int, ...]) -> tuple[int, ...]:
    """Widths in rising order; they come as a list, which may repeat one."""
    if len(set(bits)) != len(bits):
        raise ValueError("a width is repeated")
    return tuple(sorted(bits))


Widths = Annotated[tuple[Bits, ...], Field(min_length=1), AfterValidator(_distinct)]


class Section(BaseModel):
    """A part of a device file with the origin of its constants."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Text


class WidthsSection(Section):
    """A section with the widths that a device runs.

    Attributes:
        weight_bits: Widths of weights.
        activation_bits: Widths of activations.
        pairs: Pairs of both, for all layers or by kind, where not every weight width goes with every activation width.
        layers: Pairs of single layers, by name, `first` or `last`.
    """

    weight_bits: Widths
    activation_bits: Widths
    pairs: PairsByKind | None = None
    layers: PairsByLayer | None = None

    @model_validator(mode="after")
    def _pairs_are_of_these_widths(self) -> WidthsSection:
        check_pairs(self.pairs, (self.weight_bits, self.activation_bits))
        return self

    def capabilities(self, kinds: Iterable[str], metrics: Mapping[str, str]) -> Capabilities:
        """What a device with this section can run, by kind of layer."""
        return Capabilities.same_for_kinds(kinds, self.weight_bits, self.activation_bits, metrics, pairs=self.pairs)


class ArraySection(Section):
    """The array of processing elements, its dataflow and clock, and what every layer costs on top.

    Attributes:
        rows: Rows of processing elements.
        cols: Columns of processing elements.
        dataflow: `os`, `ws`, `is`, or `rs` for the row-stationary mapping of Eyeriss.
        clock_mhz: Clock in MHz.
        overhead_cycles_per_layer: Cycles that every layer takes on top.
        convolution: `im2col` packs the sum over channels and kernel positions into the array; `direct` takes
            one kernel position after the other, so that rows hold input channels only.
        im2col_up_to_channels: With `direct`: convolutions with at most so many input channels are lowered to
            a matrix product in external memory all the same.
        fill_and_drain: Whether every fold fills and drains the array on its own; if not, only streaming counts.
    """

    rows: Count
    cols: Count
    dataflow: Literal["os", "ws", "is", "rs"]
    clock_mhz: Annotated[Positive, Field(le=1e5)]
    overhead_cycles_per_layer: Cycles = 0
    convolution: Literal["im2col", "direct"] = "im2col"
    im2col_up_to_channels: Count | None = None
    fill_and_drain: Flag = True

    @model_validator(mode="after")
    def _fits_together(self) -> ArraySection:
        if self.im2col_up_to_channels is not None and self.convolution != "direct":
            raise ValueError("im2col_up_to_channels needs `convolution: direct`")
        if self.dataflow == "rs" and (self.convolution != "im2col" or not self.fill_and_drain):
            raise ValueError("the dataflow rs has no options convolution and fill_and_drain")
        return self


class PrecisionSection(WidthsSection):
    """The precision model, the widths that are allowed, and the width of partial sums.

    For the model `serial`, `serial_operands` says which operands are taken bit by bit, and `serial_lanes` how
    many products an element adds at once.
    """

    model: Literal["fixed", "fusion", "serial"]
    serial_operands: SerialOperands | None = None
    serial_lanes: Count | None = None
    accumulator_bits: Annotated[int, Field(strict=True, ge=8, le=64)] = 32

    @model_validator(mode="after")
    def _serial_belongs_together(self) -> PrecisionSection:
        if (self.model == "serial") != (self.serial_operands is not None):
            raise ValueError("serial_operands belongs to the model 'serial' and is needed there")
        if self.serial_lanes is not None and self.model != "serial":
            raise ValueError("serial_lanes belongs to the model 'serial'")
        return self


class BuffersSection(Section):
    """Sizes of the on-chip buffers in KiB; with `double_buffered` one half works while the other is filled."""

    ifmap_kib: Positive
    weight_kib: Positive
    ofmap_kib: Positive
    double_buffered: Flag = False


class DramSection(Section):
    """The external memory: its bandwidth in bits per clock cycle or in GB/s (10^9 bytes), and how it is used.

    Attributes:
        bandwidth_bits_per_cycle: Bandwidth in bits per clock cycle; or
        bandwidth_gb_per_s: in 10^9 bytes a second.
        outputs: Whether outputs are written `requantized` to the activation width, or as `sums` at accumulator
            width.
        loads_sums: Whether sums are loaded before the first product is added.
        whole_columns: Whether the sums of a partly used group of columns move in full.
        exposed_transfers: Whether compute waits for the tensors that fit their buffers as a whole: loads
            before the first product, stores after the last one.
    """

    bandwidth_bits_per_cycle: Positive | None = None
    bandwidth_gb_per_s: Positive | None = None
    outputs: Literal["requantized", "sums"] = "requantized"
    loads_sums: Flag = False
    whole_columns: Flag = False
    exposed_transfers: Flag = False

    @model_validator(mode="after")
    def _exactly_one(self) -> DramSection:
        if (self.bandwidth_bits_per_cycle is None) == (self.bandwidth_gb_per_s is None):
            raise ValueError(
                "give exactly one of bandwidth_bits_per_cycle and bandwidth_gb_per_s; null takes away an inherited one"
            )
        return self


class MacEnergySection(Section):
    """Energy of one multiply-accumulate with weights and activations of one width.

    Attributes:
        pj_by_bits: Width to energy in pJ.
        between: Widths that the table lacks: `next` takes the next wider one (operands are padded),
            `interpolate` a line in log-log scale. Both keep the value of the narrowest width below it.
    """

    pj_by_bits: Annotated[dict[Bits, NotNegative], Field(min_length=1)]
    between: Literal["next", "interpolate"]

    @model_validator(mode="after")
    def _loggable(self) -> MacEnergySection:
        if self.between == "interpolate" and min(self.pj_by_bits.values()) == 0:
            raise ValueError("a width with 0 pJ cannot be interpolated; use `between: next`")
        return self


class SramEnergySection(Section):
    """Energy of reading and writing one bit of each on-chip buffer, in pJ."""

    ifmap_read_pj_per_bit: NotNegative
    ifmap_write_pj_per_bit: NotNegative
    weight_read_pj_per_bit: NotNegative
    weight_write_pj_per_bit: NotNegative
    ofmap_read_pj_per_bit: NotNegative
    ofmap_write_pj_per_bit: NotNegative


class DramEnergySection(Section):
    """Energy of moving one bit to or from the external memory, in pJ."""

    pj_per_bit: NotNegative


class PowerSection(Section):
    """Power in mW, drawn all the time that the device computes."""

    power_mw: NotNegative


class MemorySection(Section):
    """What a device has for a network: a budget of every search that gives none of its own on it.

    Attributes:
        flash_kib: For weights, scales and biases.
        ram_kib: For results of layers, and what kernels need for themselves.
        granule_bytes: Weights of a layer take a multiple of this in flash.
    """

    flash_kib: Positive | None = None
    ram_kib: Positive | None = None
    granule_bytes: Annotated[int, Field(strict=True, ge=1, le=2**20)] = 1

    def limited(self, capabilities: Capabilities) -> Capabilities:
        """Capabilities with these limits."""
        given = {"flash_kib": self.flash_kib, "ram_kib": self.ram_kib}
        limits = {metric: float(value) for metric, value in given.items() if value is not None}
        return replace(capabilities, limits=limits, granule_bytes=self.granule_bytes)


class EnergySection(BaseModel):
    """Energies of arithmetic, on-chip buffers and external memory, and leakage if it is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mac: MacEnergySection
    sram: SramEnergySection
    dram: DramEnergySection
    leakage: PowerSection | None = None


class ThroughputSection(WidthsSection):
    """How fast a processor multiplies and adds, and the widths that it runs.

    Attributes:
        macs_per_cycle: Weight width to activation width to multiply-accumulates per cycle. Widths that the
            table lacks run as the next wider ones.
        cycles_per_mac: Kind of layer to cycles per multiply-accumulate; instead of the table, for processors
            whose speed does not depend on the widths. Kinds that are not listed are not supported.
        cycles_per_output: Cycles for every output element on top: bias, rescaling, clamping, loop control.
        cycles_per_element: Cycles for every value that an operation between the layers returns, by its name in torch's
            ATen (`add`, `max_pool2d`); operations that are not named cost nothing. They count with the layer before.
    """

    macs_per_cycle: dict[Bits, Annotated[dict[Bits, Positive], Field(min_length=1)]] | None = None
    cycles_per_mac: Annotated[dict[LayerKind, Positive], Field(min_length=1)] | None = None
    cycles_per_output: NotNegative = 0.0
    cycles_per_element: dict[Text, NotNegative] = {}

    @model_validator(mode="after")
    def _one_table_that_covers_the_widths(self) -> ThroughputSection:
        if (self.macs_per_cycle is None) == (self.cycles_per_mac is None):
            raise ValueError("give exactly one of macs_per_cycle and cycles_per_mac; null takes away an inherited one")
        if self.macs_per_cycle is None:
            return self
        columns = {tuple(sorted(row)) for row in self.macs_per_cycle.values()}
        if len(columns) != 1:
            raise ValueError("macs_per_cycle needs the same activation widths for every weight width")
        for what, widest, listed in (
            ("weight", self.weight_bits[-1], max(self.macs_per_cycle, default=0)),
            ("activation", self.activation_bits[-1], max(columns.pop(), default=0)),
        ):
            if widest > listed:
                raise ValueError(f"macs_per_cycle ends at {listed} {what} bits, but {widest} are allowed")
        return self

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Kinds of layers that the processor runs."""
        return KINDS if self.cycles_per_mac is None else tuple(self.cycles_per_mac)


class ProcessorSection(Section):
    """A processor that runs layers in software: its clock, and what every layer costs on top."""

    clock_mhz: Annotated[Positive, Field(le=1e5)]
    overhead_cycles_per_layer: Cycles = 0


class ProxySection(WidthsSection):
    """A figure that needs no device, taken for latency: `bops`, or `memory` (bits of weights), per millisecond."""

    metric: Literal["bops", "memory"]
    per_ms: Annotated[float, Field(strict=True, gt=0, le=1e15, allow_inf_nan=False)]
    # 32: activations are left in float
    activation_bits: Annotated[tuple[Bits | Literal[32], ...], Field(min_length=1), AfterValidator(_distinct)]
