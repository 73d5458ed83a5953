"""Device files: the typed description of a device, read from YAML in format `amed-device/1`.

Every section has a `source` that says where its constants come from. Messages name file, line and field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from amed_env.errors import DeviceError
from amed_env.hardware.device_sections import (
    ArraySection,
    BuffersSection,
    DramSection,
    EnergySection,
    PowerSection,
    PrecisionSection,
    ProcessorSection,
    ProxySection,
    Text,
    ThroughputSection,
    nearest,
)
from amed_env.hardware.extends import extended
from amed_env.hardware.yaml_lines import YamlDocument


class DeviceConfig(BaseModel):
    """What every device file has; the kind decides on the sections."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["amed-device/1"]
    name: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    description: Text
    kind: str


class SystolicConfig(DeviceConfig):
    """An array of processing elements with buffers and external memory; the kind of files that name none."""

    kind: Literal["systolic"] = "systolic"
    array: ArraySection
    precision: PrecisionSection
    buffers: BuffersSection
    dram: DramSection
    energy: EnergySection

    @model_validator(mode="after")
    def _energy_covers_widths(self) -> SystolicConfig:
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


class ProcessorConfig(DeviceConfig):
    """A processor that runs layers in software."""

    kind: Literal["processor"]
    processor: ProcessorSection
    throughput: ThroughputSection
    energy: PowerSection | None = None


class ProxyConfig(DeviceConfig):
    """A figure that needs no device, taken for latency."""

    kind: Literal["proxy"]
    proxy: ProxySection


CONFIGS: dict[str, type[DeviceConfig]] = {
    "systolic": SystolicConfig,
    "processor": ProcessorConfig,
    "proxy": ProxyConfig,
}
"""Descriptions by the `kind` of a device file."""


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
    kind = document.data.get("kind", "systolic")
    if not (isinstance(kind, str) and kind in CONFIGS):
        line, advice = document.line(("kind",)), nearest(kind if isinstance(kind, str) else "", CONFIGS)
        raise DeviceError(f"{where}, line {line}: kind: {_shorten(kind)} is unknown{advice}.")
    model = CONFIGS[kind]
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        faults = [_describe(fault, document, model) for fault in error.errors(include_url=False)]
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


def _describe(fault: Any, document: YamlDocument, model: type[DeviceConfig]) -> str:
    """One fault of pydantic as a sentence with file, line and field."""
    location = tuple(part for part in fault["loc"] if part != "[key]")
    field = ".".join(map(str, location))
    here = f"{document.where}, line {document.line(location)}: "
    kind, value = fault["type"], fault["input"]
    if kind == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        return f"{here}unknown key {field!r}{nearest(str(location[-1]), known)}."
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


def _fields_at(model: Any, location: tuple[Any, ...]) -> list[str]:
    for part in location:
        annotation = model.model_fields[part].annotation if part in getattr(model, "model_fields", {}) else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


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
