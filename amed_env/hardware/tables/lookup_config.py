"""A table with options: a YAML file in format `amed-table/1` that names the table and says how to read it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from amed_env.hardware.files.yaml_faults import validated
from amed_env.hardware.files.yaml_lines import YamlDocument

FORMAT = "amed-table/1"
Interpolation = Literal["none", "linear"]
Text = Annotated[str, Field(strict=True, min_length=1, pattern=r"\S")]


class TableConfig(BaseModel):
    """A table of costs as a device.

    Attributes:
        name: The device's name.
        description: One line.
        table: Path of the `.csv` or `.npy` file, relative to this one.
        clock_mhz: Clock that turns cycles into milliseconds.
        interpolation: `linear` for widths between those of the table; `none` refuses them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["amed-table/1"]
    name: Text
    description: Text = "A table of costs"
    table: Text
    clock_mhz: Annotated[float, Field(strict=True, gt=0, le=1e5, allow_inf_nan=False)] | None = None
    interpolation: Interpolation = "none"


def parse_table_config(document: YamlDocument) -> TableConfig:
    """The options of a table from YAML.

    Raises:
        DeviceError: If a field is missing, unknown, of the wrong type or out of range.
    """
    return validated(TableConfig, document)
