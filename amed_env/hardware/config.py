"""Device files: the typed description of a systolic accelerator, read from YAML in format `amed-device/1`.

Every section has a `source` that says where its constants come from. Messages name file, line and field.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from amed_env.errors import DeviceError
from amed_env.hardware.extends import extended
from amed_env.hardware.precision_models import PRECISION_MODELS, make_precision_model
from amed_env.hardware.systolic import Dataflow
from amed_env.hardware.yaml_lines import YamlDocument

# Upper limits catch a value in the wrong unit (Hz for MHz) and keep arithmetic inside int64.
Text = Annotated[str, Field(strict=True, min_length=1, pattern=r"\S")]
Count = Annotated[int, Field(strict=True, ge=1, le=65536)]
Bits = Annotated[int, Field(strict=True, ge=1, le=16)]
Positive = Annotated[float, Field(strict=True, gt=0, le=1e9, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(strict=True, ge=0, le=1e9, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Text


class ArraySection(_Section):
    """The systolic array: its processing elements, dataflow and clock, and what every layer costs on top."""

    rows: Count
    cols: Count
    dataflow: Dataflow
    clock_mhz: Annotated[Positive, Field(le=1e5)]
    overhead_cycles_per_layer: Annotated[int, Field(strict=True, ge=0, le=10**12)] = 0


class PrecisionSection(_Section):
    """The precision model, the widths that are allowed, and the width of partial sums."""

    model: Annotated[str, Field(strict=True)]
    weight_bits: Annotated[tuple[Bits, ...], Field(min_length=1)]
    activation_bits: Annotated[tuple[Bits, ...], Field(min_length=1)]
    accumulator_bits: Annotated[int, Field(strict=True, ge=8, le=64)] = 32

    @field_validator("model")
    @classmethod
    def _known(cls, model: str) -> str:
        if model not in PRECISION_MODELS:
            raise ValueError(f"{model!r} is unknown{_nearest(model, PRECISION_MODELS)}")
        return model

    @field_validator("weight_bits", "activation_bits")
    @classmethod
    def _distinct(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(bits)) != len(bits):
            raise ValueError("a width stands there twice")
        return tuple(sorted(bits))

    @model_validator(mode="after")
    def _within_model(self) -> PrecisionSection:
        widest = make_precision_model(self.model).widest
        if max(*self.weight_bits, *self.activation_bits) > widest:
            raise ValueError(f"the precision model {self.model!r} runs at most {widest} bits")
        return self


class BuffersSection(_Section):
    """Sizes of the on-chip buffers in KiB."""

    ifmap_kib: Positive
    weight_kib: Positive
    ofmap_kib: Positive


class DramSection(_Section):
    """Bandwidth of the external memory, either in bits per clock cycle or in GB/s (10^9 bytes)."""

    bandwidth_bits_per_cycle: Positive | None = None
    bandwidth_gb_per_s: Positive | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> DramSection:
        if (self.bandwidth_bits_per_cycle is None) == (self.bandwidth_gb_per_s is None):
            raise ValueError("give exactly one of bandwidth_bits_per_cycle and bandwidth_gb_per_s")
        return self


class MacEnergySection(_Section):
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


class SramEnergySection(_Section):
    """Energy of reading and writing one bit of each on-chip buffer, in pJ."""

    ifmap_read_pj_per_bit: NotNegative
    ifmap_write_pj_per_bit: NotNegative
    weight_read_pj_per_bit: NotNegative
    weight_write_pj_per_bit: NotNegative
    ofmap_read_pj_per_bit: NotNegative
    ofmap_write_pj_per_bit: NotNegative


class DramEnergySection(_Section):
    """Energy of moving one bit to or from the external memory, in pJ."""

    pj_per_bit: NotNegative


class EnergySection(BaseModel):
    """Energies of arithmetic, on-chip buffers and external memory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mac: MacEnergySection
    sram: SramEnergySection
    dram: DramEnergySection


class DeviceConfig(BaseModel):
    """A systolic accelerator as its device file describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["amed-device/1"]
    name: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    description: Text
    array: ArraySection
    precision: PrecisionSection
    buffers: BuffersSection
    dram: DramSection
    energy: EnergySection

    @model_validator(mode="after")
    def _energy_covers_widths(self) -> DeviceConfig:
        widest = max(*self.precision.weight_bits, *self.precision.activation_bits)
        if widest > max(self.energy.mac.pj_by_bits):
            raise ValueError(
                f"energy.mac.pj_by_bits ends at {max(self.energy.mac.pj_by_bits)} bits, "
                f"but the device allows {widest}; add the width, or allow fewer"
            )
        return self

    @property
    def bandwidth_bits_per_cycle(self) -> float:
        """Bits that the external memory moves in a clock cycle."""
        if self.dram.bandwidth_bits_per_cycle is not None:
            return self.dram.bandwidth_bits_per_cycle
        assert self.dram.bandwidth_gb_per_s is not None  # the section's validator saw to it
        return self.dram.bandwidth_gb_per_s * 8e9 / (self.array.clock_mhz * 1e6)


def parse_device_config(text: str, where: str = "device") -> DeviceConfig:
    """Read a device description from YAML text.

    Args:
        text: The YAML source.
        where: File name or other origin, for messages.

    Raises:
        DeviceError: If it is no YAML, or a field is missing, unknown, repeated, of the wrong type or out of
            range; every fault is named with its line.
    """
    document = extended(YamlDocument(text, where), parse_device_config)
    try:
        return DeviceConfig.model_validate(document.data)
    except ValidationError as error:
        faults = [_describe(fault, document) for fault in error.errors(include_url=False)]
        raise DeviceError("\n".join(faults)) from error


def load_device_config(path: str | Path) -> DeviceConfig:
    """Read a device file.

    Raises:
        DeviceError: If the file cannot be read or is malformed; the message has file and line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DeviceError(f"cannot read the device file {path}: {error}.") from error
    return parse_device_config(text, where=str(path))


def _describe(fault: Any, document: YamlDocument) -> str:
    """One fault of pydantic as a sentence with file, line and field."""
    location = tuple(part for part in fault["loc"] if part != "[key]")
    field = ".".join(map(str, location))
    here = f"{document.where}, line {document.line(location)}: "
    kind, value = fault["type"], fault["input"]
    if kind == "extra_forbidden":
        known = _fields_at(location[:-1])
        return f"{here}unknown key {field!r}{_nearest(str(location[-1]), known)}."
    if kind == "missing":
        advice = " Say where the constants of this section come from." if location[-1] == "source" else ""
        return f"{here}{field!r} is missing.{advice}"
    message = fault["msg"].removeprefix("Value error, ").removesuffix(".")
    message = message[:1].lower() + message[1:]
    found = ""
    if not isinstance(value, dict | list | tuple | BaseModel):
        found = f", found {_shorten(value)}"
        if isinstance(value, str) and kind in ("float_type", "int_type") and _is_number(value):
            found += " as text (YAML reads numbers like 1e3 as text: write 1.0e+3)"
    return f"{here}{field or 'device'}: {message}{found}."


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    model: Any = DeviceConfig
    for part in location:
        annotation = model.model_fields[part].annotation if part in getattr(model, "model_fields", {}) else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; allowed: {', '.join(known)}" if known else ""


def _shorten(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer with too many digits to print
        return "a very long number"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
