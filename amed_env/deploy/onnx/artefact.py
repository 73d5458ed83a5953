"""What is known of a written file, and the packages that writing and running it need."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from amed_env.errors import InputError


@dataclass(frozen=True)
class OnnxArtefact:
    """A file that was written.

    Attributes:
        path: The file.
        bytes: Its size.
        weight_bytes: Bytes in it that hold weights of layers; those that several layers share are stored once.
        session_options: Entries of ONNX Runtime's session configuration under which it answers as the evaluator does.
        opset: Version of the standard operators.
        input, output: Names of what the graph reads and returns.
        remarks: What a user should know of it, one sentence each.
    """

    path: Path
    bytes: int
    weight_bytes: int
    session_options: Mapping[str, str]
    opset: int
    input: str
    output: str
    remarks: tuple[str, ...]


def require(*packages: str) -> None:
    """Check that packages of the extra `export` are there.

    Raises:
        InputError: If one is missing.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX files need {' and '.join(missing)}; install with: pip install 'amed-env[export]'.")
