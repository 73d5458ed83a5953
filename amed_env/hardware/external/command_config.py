"""What the package must know of a program that simulates a device: a YAML file in format `amed-command/1`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from amed_env.errors import DeviceError
from amed_env.hardware.external.command_format import REQUEST_FORMAT, RequestFormat
from amed_env.hardware.files.layer_choices import PairsByKind, PairsByLayer, check_pairs
from amed_env.hardware.files.yaml_faults import Text, validated
from amed_env.hardware.files.yaml_lines import YamlDocument
from amed_env.hardware.metrics import METRIC_UNITS, known_metric
from amed_env.hardware.protocol import HardwareBackend
from amed_env.problem.allocation import FLOAT_BITS, MAX_BITS
from amed_env.problem.units import plain_unit
from amed_env.problem.workload import KINDS, LayerKind

FORMAT = "amed-command/1"
Widths = Annotated[tuple[Annotated[int, Field(strict=True)], ...], Field(min_length=1)]


class CommandConfig(BaseModel):
    """A program that simulates a device.

    Attributes:
        request: The format of what it is asked; the second one has the operations between the layers.
        name: The device's name.
        description: One line.
        command: The program and its arguments, as one text in shell quoting or as a list; no shell is started.
        timeout_s: Seconds that one call may take before the program, and whatever it started, is killed.
        retries: Further tries after a failure.
        workers: Calls that may run side by side.
        metrics: Metric name to unit of what every answer has.
        bits: Widths of weights and of activations; or one list each in `weight_bits` and `activation_bits`.
        pairs: Pairs of both that it can simulate, for all layers or by kind; every pair of the widths by default.
        layers: Pairs of single layers, by name, `first` or `last`.
        kinds: Kinds of layers that it can simulate; by default all of them, or those of `pairs` if only these are
            given.
        additive: Whether every answer has the costs of all layers and these add up.
        deterministic: Whether equal requests get equal answers; only then answers are kept.
        folder: Where it is started, and what the paths in `command` are relative to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["amed-command/1"] = "amed-command/1"
    request: RequestFormat = REQUEST_FORMAT
    name: Text
    description: Text = "A program that answers JSON"
    command: tuple[str, ...]
    timeout_s: Annotated[float, Field(strict=True, gt=0, le=1e7, allow_inf_nan=False)] = 60.0
    retries: Annotated[int, Field(strict=True, ge=0, le=1000)] = 1
    workers: Annotated[int, Field(strict=True, ge=1, le=1024)] = 1
    metrics: Annotated[dict[Text, Text], Field(min_length=1)] = {"latency_ms": "ms"}
    bits: Widths | None = None
    weight_bits: Widths | None = None
    activation_bits: Widths | None = None
    pairs: PairsByKind | None = None
    layers: PairsByLayer | None = None
    kinds: Annotated[tuple[LayerKind, ...], Field(min_length=1)] | None = None
    # Not additive unless it is said: then nothing is assumed, and every allocation is asked for as a whole.
    additive: Annotated[bool, Field(strict=True)] = False
    deterministic: Annotated[bool, Field(strict=True)] = True
    folder: Path = Path()

    @field_validator("command", mode="before")
    @classmethod
    def _split(cls, command: object) -> object:
        if isinstance(command, str):
            command = shlex.split(command)
        if not isinstance(command, list | tuple) or not command or not all(isinstance(w, str) for w in command):
            raise ValueError("write the program and its arguments as one text or as a list of texts")
        return tuple(command)

    @field_validator("metrics")
    @classmethod
    def _units(cls, metrics: Mapping[str, str]) -> Mapping[str, str]:
        for metric, unit in metrics.items():
            if METRIC_UNITS.get(metric, unit) != unit:
                raise ValueError(f"{metric!r} is in {METRIC_UNITS[metric]} everywhere, not in {unit}")
            known = known_metric(metric)
            if known is not None and not metric.endswith(f"_{plain_unit(unit)}"):
                raise ValueError(f"{metric!r} is in {metric.rpartition('_')[2]} by its name, not in {unit}")
            if known is not None and known[0] in metrics:
                raise ValueError(f"{metric!r} is {known[0]!r} in another unit; keep one of them")
        return metrics

    @field_validator("bits", "weight_bits", "activation_bits")
    @classmethod
    def _widths(cls, bits: tuple[int, ...] | None) -> tuple[int, ...] | None:
        for width in bits or ():
            if not (1 <= width <= MAX_BITS or width == FLOAT_BITS):
                raise ValueError(f"{width} is no width; give 1 to {MAX_BITS}, or {FLOAT_BITS} for float")
        return None if bits is None else tuple(sorted(set(bits)))

    @model_validator(mode="after")
    def _one_way_of_widths(self) -> CommandConfig:
        apart = (self.weight_bits is not None, self.activation_bits is not None)
        if (self.bits is not None and any(apart)) or apart[0] != apart[1]:
            raise ValueError("give either bits, or both weight_bits and activation_bits")
        check_pairs(self.pairs, self.widths)
        return self

    @property
    def widths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Widths of weights, and widths of activations."""
        if self.weight_bits is not None and self.activation_bits is not None:
            return self.weight_bits, self.activation_bits
        if self.bits is None and self.pairs is not None:
            named = {pair for of_kind in self.pairs.values() for pair in of_kind}
            return tuple(sorted({pair[0] for pair in named})), tuple(sorted({pair[1] for pair in named}))
        bits = self.bits or tuple(HardwareBackend.bits)  # what a Python device declares by default
        return bits, bits

    @property
    def conversions(self) -> dict[str, tuple[str, float]]:
        """For every metric of the answers its name in this package, and what its values are multiplied by."""
        return {metric: known_metric(metric) or (metric, 1.0) for metric in self.metrics}

    @property
    def known_units(self) -> dict[str, str]:
        """Metric to unit as this package has them."""
        named = ((self.conversions[metric][0], unit) for metric, unit in self.metrics.items())
        return {metric: METRIC_UNITS.get(metric, unit) for metric, unit in named}

    @property
    def simulated_kinds(self) -> tuple[LayerKind, ...]:
        """Kinds of layers that the program can simulate."""
        if self.kinds is not None:
            return self.kinds
        only_pairs = self.pairs is not None and self.bits is None and self.weight_bits is None
        return tuple(self.pairs or ()) if only_pairs else KINDS


def parse_command_config(document: YamlDocument, folder: Path) -> CommandConfig:
    """A command device from its YAML.

    Args:
        document: The YAML.
        folder: The folder of the file.

    Raises:
        DeviceError: If a field is missing, unknown, of the wrong type or out of range; the message has file, line and
            field.
    """
    if "folder" in document.data:
        raise DeviceError(
            f"{document.where}, line {document.line(('folder',))}: unknown key 'folder'; the program is started in the "
            "folder of this file."
        )
    return validated(CommandConfig, document).model_copy(update={"folder": folder})


def command_of_text(text: str) -> CommandConfig:
    """A command device from a command line, relative to the current folder, with all defaults.

    Raises:
        DeviceError: If the text is no command line.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise DeviceError(f"command {text!r} is no command line: {error}.") from error
    if not words:
        raise DeviceError("the command is empty; write for example --device 'command: ./my_simulator --fast'.")
    return CommandConfig(name=Path(words[0]).name, command=tuple(words), folder=Path.cwd())
