"""Running a file under ONNX Runtime, on one thread of the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amed_env.deploy.onnx.artefact import require

_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}
"""What networks read, by the runtime's names."""


def run_onnx(
    path: Path, inputs: npt.NDArray[Any], settings: Mapping[str, str] | None = None, batch_size: int = 125
) -> npt.NDArray[np.float32]:
    """What a file answers to samples.

    Args:
        path: The file.
        inputs: Numbers (N, …), as the network reads them.
        settings: Entries of the session's configuration; None for the runtime's defaults.
        batch_size: Samples of one pass, unless the file takes one size only.

    Raises:
        InputError: If ONNX Runtime is missing.
    """
    (outputs,) = run_session(session(path, settings), None, inputs, batch_size)
    return outputs


def session(model: Path | bytes, settings: Mapping[str, str] | None) -> Any:
    """A session of ONNX Runtime: one thread, and no lines but errors."""
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_session(
    runtime: Any, outputs: Sequence[str] | None, inputs: npt.NDArray[Any], batch_size: int
) -> list[npt.NDArray[Any]]:
    """What a session answers to samples: one array for each output; None for the graph's own."""
    (read,) = runtime.get_inputs()
    fixed = read.shape[0] if isinstance(read.shape[0], int) else None
    batch_size = fixed or batch_size
    parts: list[list[npt.NDArray[Any]]] = []
    for start in range(0, len(inputs), batch_size):
        batch = inputs[start : start + batch_size]
        filled: npt.NDArray[Any] = fill_up(batch, fixed or len(batch)).astype(_TYPES[read.type])
        parts.append([values[: len(batch)] for values in runtime.run(outputs, {read.name: filled})])
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def fill_up(batch: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """A batch of a size: its last sample stands for those that are missing."""
    missing = np.repeat(batch[-1:], size - len(batch), axis=0)
    return np.concatenate([batch, missing])
