"""Device files: the typed description of a device, read from YAML in format `amed-device/1`.

Every section has a `source` that says where its constants come from. Messages name file, line and field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from amed_env.errors import DeviceError, did_you_mean
from amed_env.hardware.files.device_sections import (
    ArraySection,
    BuffersSection,
    DramSection,
    EnergySection,
    MemorySection,
    PowerSection,
    PrecisionSection,
    ProcessorSection,
    ProxySection,
    ThroughputSection,
)
from amed_env.hardware.files.extends import extended
from amed_env.hardware.files.yaml_faults import Text, validated
from amed_env.hardware.files.yaml_lines import YamlDocument, read_text
from amed_env.hardware.protocol import Capabilities
from amed_env.support.text import shortened


class DeviceConfig(BaseModel):
    """What every device file has; the kind decides on the sections."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["amed-device/1"]
    name: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    description: Text
    kind: str
    memory: MemorySection | None = None

    def limited(self, capabilities: Capabilities) -> Capabilities:
        """Capabilities with what the device has of memory."""
        return capabilities if self.memory is None else self.memory.limited(capabilities)


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
        # GB are 10^9 bytes of 8 bits, as vendors of memory count.
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
        advice = did_you_mean(kind if isinstance(kind, str) else "", CONFIGS)
        raise DeviceError(f"{where}, line {document.line(('kind',))}: kind: {shortened(kind)} is unknown; {advice}")
    return validated(CONFIGS[kind], document)


def load_device_config(path: str | Path) -> DeviceConfig:
    """Read a device file.

    Raises:
        DeviceError: If the file cannot be read or is malformed; the message has file and line.
    """
    return parse_device_config(read_text(path), where=str(path))
