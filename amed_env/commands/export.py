"""`amed export`: a network under an allocation as files for a runtime, verified there."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from amed_env.commands.options import (
    OUTPUT,
    PREPARE_SECONDS,
    PROBLEM,
    ActivationBitsOption,
    AllocationOption,
    Bias,
    BiasOption,
    BitsOption,
    JsonOption,
    NetworkOption,
    OptionalTaskArgument,
    PinOption,
    PrepareTimeOption,
    RecipeOption,
    ThreadsOption,
    cli_option,
)
from amed_env.commands.output import Output
from amed_env.commands.parsing import chosen_allocation, default_threads, load_task
from amed_env.commands.run_folder import ALLOCATION_FILE, WEIGHTS_FILE
from amed_env.commands.tables import export_table
from amed_env.errors import InputError

if TYPE_CHECKING:
    from amed_env.agents.result import SearchResult
    from amed_env.deploy.export import Export
    from amed_env.evaluation.post_training import PostTrainingEvaluator
    from amed_env.problem.allocation import BitAllocation
    from amed_env.tasks.task import Task

ARTEFACT, VERIFICATION = "Artefact", "Verification"


class ExportFormat(StrEnum):
    """What is written."""

    C = "c"
    ONNX = "onnx"
    QONNX = "qonnx"


class Style(StrEnum):
    """How onnx computes."""

    INTEGER = "integer"
    QDQ = "qdq"


class Storage(StrEnum):
    """How onnx stores weights."""

    PACKED = "packed"
    TYPES = "types"
    INT8 = "int8"


class Epilogue(StrEnum):
    """How sums become codes in C."""

    FLOAT = "float"
    FIXED = "fixed"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `amed export` is asked for."""

    task: OptionalTaskArgument = None
    network: NetworkOption = None
    allocation: AllocationOption = None
    bits: BitsOption = None
    activation_bits: ActivationBitsOption = None
    pin: PinOption = field(default_factory=list)
    run: Annotated[
        Path | None,
        cli_option(PROBLEM, "What [b]amed search[/b] found there, with its tuned weights if it has.", "--run"),
    ] = None
    finetuned: Annotated[
        Path | None,
        cli_option(
            PROBLEM, "What [b]amed finetune[/b] trained there, at its allocation.", "--finetuned", metavar="DIR"
        ),
    ] = None
    recipe: RecipeOption = None
    prepare_time: PrepareTimeOption = PREPARE_SECONDS
    format: Annotated[
        ExportFormat,
        cli_option(
            ARTEFACT,
            "[b]c[/b]: C99 without dependencies. [b]onnx[/b]: standard operators. [b]qonnx[/b]: for FINN and hls4ml.",
            "--format",
            "-f",
        ),
    ] = ExportFormat.C
    style: Annotated[
        Style,
        cli_option(
            ARTEFACT,
            "Of onnx: [b]integer[/b] computes what was evaluated, [b]qdq[/b] leaves fusing to the runtime.",
            "--style",
        ),
    ] = Style.INTEGER
    storage: Annotated[
        Storage,
        cli_option(ARTEFACT, "Of onnx: weights at their widths, in types that onnx has, or as bytes.", "--storage"),
    ] = Storage.PACKED
    bias: BiasOption = Bias.FLOAT
    epilogue: Annotated[
        Epilogue,
        cli_option(ARTEFACT, "Of c: sums become codes in float, or with 32-bit multipliers and shifts.", "--epilogue"),
    ] = Epilogue.FLOAT
    opset: Annotated[
        int | None, cli_option(ARTEFACT, "Of onnx; by default the lowest that will do.", "--opset", min=21, metavar="N")
    ] = None
    verify: Annotated[
        str | None,
        cli_option(
            VERIFICATION,
            "Samples to run it on: test (the default, where there are any), search, or how many.",
            "--verify",
            metavar="SAMPLES",
        ),
    ] = None
    no_verify: Annotated[bool, cli_option(VERIFICATION, "Do not run it.", "--no-verify")] = False
    out: Annotated[Path, cli_option(OUTPUT, "Folder for what is written.", "--out", "-o", metavar="DIR")]
    as_json: JsonOption = False
    threads: ThreadsOption = None


def export(options: ExportOptions) -> None:
    """Write a network under an allocation as C or ONNX, run it, and compare its answers with the evaluated ones.

    Weights take the bits that the allocation promises. If less than 99 % of the answers are equal, it exits with 1.

    [b]Examples:[/b]

    amed export digits-cnn --allocation runs/digits/allocation.json --out build/digits

    amed export digits-cnn --run runs/digits --format onnx --out build/onnx

    amed export cifar10-resnet20 --bits 4 --pin first=8 --pin last=8 --epilogue fixed --verify 500 --out build/fixed
    """
    if options.no_verify and options.verify is not None:
        raise InputError("--verify and --no-verify exclude each other.")
    asked = None if options.verify is None else _samples(options.verify)
    with Output(options.as_json) as output:
        with output.status("starting"):
            from amed_env.commands.progress import prepare
            from amed_env.deploy.export import ExportOptions as How
            from amed_env.deploy.export import export as write

        _check_source(options)
        with output.status(f"preparing {options.task or options.network}") as say:
            task = load_task(
                options.task,
                options.network,
                threads=options.threads or default_threads(),
                recipe=options.recipe,
                bias=options.bias.value,
            )
            trained = _trained_folder(options)
            if trained is not None:
                prepare(task, output, say, options.prepare_time)
                allocation = _use_trained(trained, task)
            else:
                allocation = _allocation(options, task)
                prepare(task, output, say, options.prepare_time, allocation.values())
        verify = None if options.no_verify else asked or _most(task.evaluator.network_evaluator())
        with output.status(f"exporting {task.network}"):
            found = write(
                task,
                allocation,
                options.out,
                options.format.value,
                How(
                    options.style.value,
                    options.storage.value,
                    options.bias.value,
                    options.epilogue.value,
                    options.opset,
                ),
                verify,
            )
        _show(output, found)
        output.document({"network": task.network, **found.to_json(), "allocation": allocation.to_json(task.network)})


def export_result(output: Output, result: SearchResult, format_: ExportFormat, folder: Path) -> None:
    """Export the answer of a search, with its tuned weights if it has."""
    from amed_env.deploy.export import export as write

    assert result.best is not None
    evaluator = result.task.evaluator.network_evaluator()
    with output.status("exporting"), evaluator.restored():
        if result.tuned_weights is not None:
            evaluator.adopt(*result.tuned_weights)
        found = write(result.task, result.best.allocation, folder, format_.value, verify=_most(evaluator))
    _show(output, found)


def _most(evaluator: PostTrainingEvaluator) -> Literal["test", "search"]:
    return "test" if "test" in evaluator.splits else "search"


def _show(output: Output, found: Export) -> None:
    output.show(export_table(found))
    for remark in found.remarks:
        output.note(remark)
    for name, value in found.settings.items():
        output.note(f"the runtime needs {name}={value}")
    if not found.agreements:
        output.note("it was not run, so nothing is known of how it answers")
    for path in found.files:
        output.note(f"wrote {path}")


def _samples(text: str) -> Literal["test", "search"] | int:
    if text == "test":
        return "test"
    if text == "search":
        return "search"
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise InputError(f"--verify takes test, search or a number of samples, not {text!r}.")


def _check_source(options: ExportOptions) -> None:
    """Raises InputError unless exactly one says what the allocation is."""
    given = [
        name
        for name, value in (
            ("--allocation", options.allocation),
            ("--bits", options.bits),
            ("--run", options.run),
            ("--finetuned", options.finetuned),
        )
        if value is not None
    ]
    if len(given) != 1:
        what = " and ".join(given) or "none"
        raise InputError(f"give one of --allocation FILE, --bits N, --run DIR and --finetuned DIR, not {what}.")
    if options.bits is None and options.pin:
        raise InputError("--pin goes with --bits; the others have their own widths.")
    if options.finetuned is not None and options.activation_bits is not None:
        raise InputError("--finetuned brings its own allocation; leave --activation-bits out.")


def _trained_folder(options: ExportOptions) -> Path | None:
    """A folder whose weights were trained."""
    if options.run is not None and (options.run / WEIGHTS_FILE).exists():
        return options.run
    return options.finetuned


def _use_trained(folder: Path, task: Task) -> BitAllocation:
    from amed_env.training.checkpoint import use_trained

    return use_trained(folder, task.evaluator.network_evaluator())


def _allocation(options: ExportOptions, task: Task) -> BitAllocation:
    path = options.allocation
    if options.run is not None:
        path = options.run / ALLOCATION_FILE
        if not path.exists():
            raise InputError(f"{options.run} has no allocation.json; is it the folder of a search?")
    return chosen_allocation(task.workload, path, options.bits, options.activation_bits, options.pin)
