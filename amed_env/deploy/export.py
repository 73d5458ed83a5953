"""Exports: write an artefact, run it where it will run, and say how it compares with what was evaluated."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch

from amed_env.deploy.agreement import LEAST, Agreement, compare
from amed_env.deploy.program import Program, program_of
from amed_env.errors import DisagreementError, ExportError, UnknownNameError
from amed_env.evaluation.post_training import PostTrainingEvaluator
from amed_env.evaluation.quality import Evaluator
from amed_env.problem.allocation import BitAllocation
from amed_env.problem.workload import flash_kib
from amed_env.quantization.saturation import sums_saturate
from amed_env.support.files import write_atomically
from amed_env.support.threads import torch_threads

if TYPE_CHECKING:
    from amed_env.deploy.onnx import OnnxArtefact

Format = Literal["c", "onnx", "qonnx"]
FORMATS: tuple[Format, ...] = get_args(Format)
REPORT_FILE = "export.json"


class Evaluated(Protocol):
    """What has an evaluator: a task."""

    @property
    def evaluator(self) -> Evaluator:
        """It."""


@dataclass(frozen=True)
class ExportOptions:
    """How a network is exported.

    Attributes:
        style: Of onnx: `integer` computes as the evaluator does, `qdq` leaves fusing to the runtime.
        storage: Of onnx: `packed` bits, the `types` that onnx has (4 bits, 2 bits), or bytes (`int8`).
        bias: `float`, or `int32` as integer-only devices have them.
        epilogue: Of c: how sums become codes, in `float` as the evaluator does it, or in `fixed` point.
        opset: Of onnx; None takes the lowest that has what is needed.
    """

    style: Literal["integer", "qdq"] = "integer"
    storage: Literal["packed", "types", "int8"] = "packed"
    bias: Literal["float", "int32"] = "float"
    epilogue: Literal["float", "fixed"] = "float"
    opset: int | None = None


@dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        format: The format.
        files: What was written.
        size: Bytes of the artefact: of the file, or of constants and weights in C.
        weight_bytes: Bytes of the weights in it.
        ideal_bytes: Bytes of the weights at the allocation's widths.
        float_bytes: Bytes of the float network's parameters.
        ram: Bytes of static memory (c).
        agreements: How it answers, by settings of the runtime; empty if it was not run. The last one counts.
        settings: Options that the runtime needs.
        remarks: What else must be known.
        saturates: Whether sums of products of 8 bits overflow in this processor's kernels.
    """

    format: Format
    files: tuple[Path, ...]
    size: int
    weight_bytes: int
    ideal_bytes: float
    float_bytes: int
    ram: int | None = None
    agreements: tuple[Agreement, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    saturates: bool = False

    def to_json(self) -> dict[str, Any]:
        """As a JSON document."""
        return {
            "format": self.format,
            "files": [path.name for path in self.files],
            "bytes": self.size,
            "weight_bytes": self.weight_bytes,
            "ideal_weight_bytes": self.ideal_bytes,
            "float_bytes": self.float_bytes,
            "ram_bytes": self.ram,
            "agreement": [agreement.to_json() for agreement in self.agreements],
            "runtime_settings": dict(self.settings),
            "remarks": list(self.remarks),
            "processor_saturates": self.saturates,
        }


_Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class _Samples:
    """What an export is verified on, with what the evaluator returns."""

    inputs: npt.NDArray[np.float32]
    labels: torch.Tensor | None
    expected: npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Written:
    """An artefact, and how it is run.

    Attributes:
        export: What was written.
        runs: Settings to what makes a function from inputs to outputs, with a scratch folder; the last one counts.
        difference: Says what differs first on a sample; None where nobody looks.
    """

    export: Export
    runs: Mapping[str, Callable[[Path], _Run]]
    difference: Callable[[torch.Tensor], str | None] | None


def export(
    task: Evaluated,
    allocation: BitAllocation,
    out: Path | str,
    format: Format = "c",
    options: ExportOptions | None = None,
    verify: Literal["test", "search"] | int | None = "test",
) -> Export:
    """Write a network under an allocation for a runtime, and verify it there.

    Args:
        task: The task; its evaluator is prepared.
        allocation: The allocation of its layers.
        out: Folder for the files; it is made.
        format: `c`, `onnx` or `qonnx`.
        options: How; None for the defaults.
        verify: Samples to run it on: a split, the first so many of the last one that there is, or None.

    Returns:
        What was written, and how it answers.

    Raises:
        ExportError: If the format cannot hold the network, or a tool is missing.
        DisagreementError: If less than 99 % of the answers are equal, with the first layer whose codes differ.
        UnknownNameError: If there is no such format.
    """
    if format not in FORMATS:
        raise UnknownNameError("format", str(format), FORMATS)
    evaluator = task.evaluator.network_evaluator()
    evaluator.prepare()
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot make the folder {folder}: {error.strerror}; choose another one.") from error
    options = options or ExportOptions()
    with torch_threads(evaluator.threads):
        program = program_of(evaluator.network, allocation)
        write = {"c": _write_c, "onnx": _write_onnx, "qonnx": _write_qonnx}[format]
        written = write(evaluator, program, folder, options)
        agreements: tuple[Agreement, ...] = ()
        if verify is not None:
            agreements = _verified(evaluator, written, _samples(evaluator, verify))
    found = replace(written.export, agreements=agreements)
    document = {**found.to_json(), "allocation": allocation.to_json(evaluator.workload.name)}
    write_atomically(folder / REPORT_FILE, (json.dumps(document, indent=2) + "\n").encode())
    if agreements and not agreements[-1].enough:
        raise DisagreementError(
            f"the export answers otherwise than the evaluated network: {100 * agreements[-1].same_answer:.2f} % of "
            f"{agreements[-1].samples:,} answers are equal, expected {100 * LEAST:.0f} %. "
            f"{_where(written, _first_inputs(evaluator, verify))} The files stay in "
            f"{folder} for inspection.{_advice(format, options)}"
        )
    return found


def _where(written: _Written, sample: torch.Tensor) -> str:
    if written.difference is None:
        return "Where they part is not looked for in this format."
    found = written.difference(sample)
    return f"First difference: {found}." if found else "No code of the first sample differs."


def _advice(format_: Format, options: ExportOptions) -> str:
    if format_ == "onnx" and options.style == "qdq":
        # The runtime's floats round otherwise at single codes, and layers of 2 and 3 bits make much of them.
        return " The style 'integer' computes what was evaluated."
    if options.bias == "int32":
        return " Biases as 32-bit integers are coarse at narrow widths; 'float' keeps them."
    return ""


def _split(evaluator: PostTrainingEvaluator, verify: Literal["test", "search"] | int) -> tuple[str, int | None]:
    if isinstance(verify, int):
        return evaluator.splits[-1], verify
    return verify, None


def _first_inputs(evaluator: PostTrainingEvaluator, verify: Literal["test", "search"] | int | None) -> torch.Tensor:
    split, _ = _split(evaluator, "search" if verify is None else verify)
    inputs, _ = next(iter(evaluator.samples(split).batches(1)))  # type: ignore[arg-type]
    return inputs


def _samples(evaluator: PostTrainingEvaluator, verify: Literal["test", "search"] | int) -> _Samples:
    split, most = _split(evaluator, verify)
    inputs, labels, expected = [], [], []
    known = 0
    for batch, of_batch in evaluator.samples(split).batches(evaluator.batch_size):  # type: ignore[arg-type]
        if most is not None and known >= most:
            break
        if most is not None:
            batch, of_batch = batch[: most - known], None if of_batch is None else of_batch[: most - known]
        known += len(batch)
        inputs.append(batch.numpy())
        expected.append(evaluator.network(batch).cpu().numpy())
        if of_batch is not None:
            labels.append(of_batch)
    return _Samples(np.concatenate(inputs), torch.cat(labels) if labels else None, np.concatenate(expected))


def _verified(evaluator: PostTrainingEvaluator, written: _Written, samples: _Samples) -> tuple[Agreement, ...]:
    found = []
    for settings, make in written.runs.items():
        with tempfile.TemporaryDirectory() as scratch:
            run = make(Path(scratch))
            start = perf_counter()
            outputs = run(samples.inputs)
            seconds = perf_counter() - start
        found.append(compare(settings, samples.expected, outputs, evaluator.scoring, samples.labels, seconds))
    return tuple(found)


def _float_bytes(program: Program) -> int:
    return 4 * sum(parameter.numel() for parameter in program.module.parameters())


def _write_c(evaluator: PostTrainingEvaluator, program: Program, folder: Path, options: ExportOptions) -> _Written:
    from amed_env.deploy.c.building import build, run, sections
    from amed_env.deploy.c.difference import first_difference
    from amed_env.deploy.c.lowering import lower
    from amed_env.deploy.c.writing import write_c

    lowered = lower(evaluator.network, program)
    how: dict[str, Any] = {"epilogue": options.epilogue, "bias": options.bias}
    sizes = write_c(lowered, folder, program.name, scales_first=program.scales_first, **how)
    remarks = [
        f"{sizes.tables:,} bytes of scales, biases and other tables, {sizes.arena:,} bytes for results of layers"
    ]
    workload = evaluator.workload
    counted = sum(flash_kib(layer, program.allocation[layer.name].weight_bits) for layer in workload) * 1024
    kept = "unknown" if workload.memory is None else f"{workload.memory.bytes(program.allocation):,}"
    remarks.append(f"as a search counts them: {counted:,.0f} bytes of flash without the program, {kept} of memory")
    remarks += [f"{one.compiler}: {one.flash:,} bytes of flash, {one.ram:,} of memory" for one in sections(folder)]
    files = tuple(folder / name for name in ("model.c", "model.h", "main.c", "Makefile"))
    found = Export(
        "c",
        files,
        sizes.weights + sizes.tables,
        sizes.weights,
        program.weight_bytes,
        _float_bytes(program),
        sizes.ram,
        remarks=tuple(remarks),
        saturates=sums_saturate(False),
    )

    def compiled(scratch: Path) -> _Run:
        binary = build(folder, scratch)
        return lambda inputs: run(binary, inputs, lowered.output.elements)

    def difference(sample: torch.Tensor) -> str | None:
        return first_difference(evaluator.network, lowered, sample, scales_first=program.scales_first, **how)

    return _Written(found, {"compiled here": compiled}, difference)


def _write_onnx(evaluator: PostTrainingEvaluator, program: Program, folder: Path, options: ExportOptions) -> _Written:
    from amed_env.deploy.onnx import first_difference, run_onnx, write_onnx

    path = folder / "model.onnx"
    artefact = write_onnx(
        program, path, style=options.style, storage=options.storage, bias=options.bias, opset=options.opset
    )
    runs = {"runtime's defaults": lambda scratch: lambda inputs: run_onnx(path, inputs, None)}
    if artefact.session_options:
        runs["recommended settings"] = lambda scratch: lambda inputs: run_onnx(path, inputs, artefact.session_options)
    found = _onnx_export("onnx", program, artefact)
    return _Written(found, runs, lambda sample: first_difference(program, path, sample.numpy()))


def _write_qonnx(evaluator: PostTrainingEvaluator, program: Program, folder: Path, options: ExportOptions) -> _Written:
    from amed_env.deploy.onnx import run_qonnx, write_qonnx

    path = folder / "model.qonnx.onnx"
    artefact = write_qonnx(program, path)
    found = _onnx_export("qonnx", program, artefact)
    return _Written(found, {"qonnx": lambda scratch: lambda inputs: run_qonnx(path, inputs)}, None)


def _onnx_export(format_: Format, program: Program, artefact: OnnxArtefact) -> Export:
    return Export(
        format_,
        (artefact.path,),
        artefact.path.stat().st_size,
        artefact.weight_bytes,
        program.weight_bytes,
        _float_bytes(program),
        settings=artefact.session_options,
        remarks=tuple(artefact.remarks),
        saturates=sums_saturate(False),
    )
